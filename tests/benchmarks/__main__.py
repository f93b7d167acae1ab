"""`make bench`: measure what the README states, on this machine, and print it with ratios.

    python -m tests.benchmarks                     everything, about two and a half hours
    python -m tests.benchmarks fleet drain         some of them
    python -m tests.benchmarks --quick             a look at each, for who changes a benchmark
    python -m tests.benchmarks --out figures.json  and all figures as JSON

Exit status 1 when a promise that does not depend on the machine was broken: an accuracy, a lost
record. Timings are printed, and held against their budget in words, never in the exit status:
they belong to the machine.
"""

import argparse
import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path

from tests.benchmarks.machine import identity


@dataclass(frozen=True)
class Benchmark:
    """One module here. It has `run()`, which prints and returns figures, or `measure(...)`."""

    about: str
    minutes: float  # on 2 cores, in full
    quick: dict = field(default_factory=dict)  # arguments of `measure` for a look at it
    module: str = ""  # "": of the same name
    full: dict | None = None  # arguments of `measure`, where that is meant and not `run`
    measured: bool = False  # whether `minutes` were, on 2 cores; else they are an estimate

    @property
    def duration(self) -> str:
        return f"{self.minutes:g} min" if self.measured else f"{self.minutes:g} min (an estimate)"


# The quiet ones first, the hour of records and the training last.
BENCHMARKS = {
    "agents": Benchmark("start to ready, and memory", 1.5),
    "hot_loop": Benchmark("frame in memory to record durable", 4.5, {"seconds": 5.0}),
    "ten_minutes": Benchmark(
        "the same for ten minutes: no drop, no growth",
        10.2,
        {"seconds": 10.0},
        module="hot_loop",
        full={"seconds": 600.0},
        measured=True,
    ),
    "resize": Benchmark("frame to scores, resized on the host and in the graph", 2),
    "comparison": Benchmark("beside the plain loop and Node-RED", 10),
    "outbox": Benchmark("records made durable", 1),
    "augment": Benchmark("a copy of a training part", 0.5),
    "pairing": Benchmark("windows cut, resampled and checked", 0.5),
    "drain": Benchmark("an hour of records, drained", 5, {"records": 10_000}),
    "fleet": Benchmark("500 stations on one broker", 6),
    "adapt": Benchmark("a student of one simulated line taken to another", 40),
    "ballscrew": Benchmark("the figures on real images", 9, measured=True),
    "loop_overhead": Benchmark("the training loop beside bare steps", 2),
    "targets_read": Benchmark("reading targets beside the step they feed", 1),
    "big_step": Benchmark("one training step of 600m: does it fit", 5),
    "large_compile": Benchmark("600m and 600m-sparse, FP32 and INT8, by NVIDIA's builder", 15),
    "modelopt": Benchmark("export of 600m beside nvidia-modelopt: time, memory, verdicts", 40),
    "distilled": Benchmark("students of teachers and labels, and of labels alone", 75),
    "students": Benchmark("the students beside each other", 50),
    "int8_forms": Benchmark("what INT8 and INT4 do to verdicts and to size", 25),
    "quantized_self": Benchmark("a student that taught its INT8 self, in INT8", 12),
    "gate": Benchmark("what the gate of windowed attention costs and gives", 40),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {n:12} {b.about}, {b.duration}" for n, b in BENCHMARKS.items()),
    )
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--out", type=Path, help="write all figures here, as JSON")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    machine = identity()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    minutes = sum(BENCHMARKS[name].minutes for name in names)
    if not arguments.quick:
        print(f"{', '.join(names)}: about {minutes:g} minutes, an estimate", flush=True)
    report: dict = {"machine": machine, "quick": arguments.quick, "benchmarks": {}}
    kept = True
    for name in names:
        started = time.monotonic()
        figures, fine = _run(name, quick=arguments.quick)
        kept = kept and fine
        took_s = round(time.monotonic() - started, 1)
        report["benchmarks"][name] = {"kept": fine, "seconds": took_s, "figures": figures}
        if arguments.out:  # after each: an hour of figures must not die with the last one
            arguments.out.write_text(json.dumps(report, indent=2, default=str) + "\n")
    return 0 if kept else 1


def _run(name: str, *, quick: bool) -> tuple[object, bool]:
    """Run one; return its figures and whether what it promises was kept."""
    if quick and name == "ballscrew":
        print("ballscrew: SKIPPED by --quick, there is no short form of a training")
        return None, True
    try:
        figures = _figures_of(BENCHMARKS[name], name, quick=quick)
    except Exception:  # whatever it is, it must not take the others' figures with it
        traceback.print_exc()
        print(f"{name}: FAILED, see above")
        return None, False
    if isinstance(figures, dict):
        return figures, bool(figures.get("kept", True))
    return figures, figures is None or bool(figures)


def _figures_of(benchmark: Benchmark, name: str, *, quick: bool) -> object:
    module = import_module(f"tests.benchmarks.{benchmark.module or name}")
    run = getattr(module, "run", None)
    if benchmark.full is None and run and (not quick or "quick" in signature(run).parameters):
        return run(quick=True) if quick else run()
    if not hasattr(module, "measure"):
        return run()
    figures = module.measure(**((benchmark.quick if quick else benchmark.full) or {}))
    print(f"\n{name}: {benchmark.about}")
    _print_tree(figures)
    return figures


def _print_tree(figures: object, indent: int = 2) -> None:
    """Print figures of any shape, one a line."""
    if not isinstance(figures, dict):
        print(" " * indent + str(figures))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}")
            _print_tree(value, indent + 2)
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{' ' * indent}{name:28} {shown}")


if __name__ == "__main__":
    sys.exit(main())
