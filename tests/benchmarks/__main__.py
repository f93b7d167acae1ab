"""`make bench`: measure what the README states, on this machine, and print it with ratios.

    python -m tests.benchmarks            everything
    python -m tests.benchmarks ballscrew  one of them

Exit status 1 when an accuracy that the project promises was not reached. Timings are printed,
never judged: they belong to the machine.
"""

import argparse
import platform
import sys
from importlib import import_module

BENCHMARKS = ("ballscrew",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    names = parser.parse_args().names or BENCHMARKS
    print(f"{platform.platform()}, Python {platform.python_version()}, {_processor()}")
    reached = [import_module(f"tests.benchmarks.{name}").run() for name in names]
    return 0 if all(reached) else 1


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
