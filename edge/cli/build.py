"""`edge build`: build a bundle's plan on the machine that will run it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.artefact import check_free
from edge.bundle import FORM_FILES, Bundle
from edge.cli.numbers import at_least_one, not_negative
from edge.cli.progress import typed
from edge.plan import FLAVOURS, MAGIC

_LINE_EVERY_S = 10.0
_MOST_MB = 1 << 20  # a terabyte: beyond it somebody meant bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="PLAN", help="the new plan")
    parser.add_argument("--form", choices=FORM_FILES, help="default: the one `edge export` chose")
    parser.add_argument("--force", action="store_true", help="replace an existing plan")
    parser.add_argument(
        "--builder", choices=FLAVOURS, help="default: what is installed, tensorrt first"
    )
    parser.add_argument(
        "--compute-capability",
        metavar="X.Y",
        help="build ahead of time for such a GPU, without one (tensorrt_rtx only): 8.6",
    )
    parser.add_argument(
        "--dla-core",
        type=not_negative,
        metavar="N",
        help="run on this DLA what it takes, the rest on the GPU",
    )
    parser.add_argument(
        "--workspace-mb",
        type=_megabytes,
        metavar="MB",
        help="the builder's workspace (default: half of the memory that is left)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="what the builder measured, kept and used again (default: beside the plan)",
    )


def _megabytes(text: str) -> int:
    number = at_least_one(text)
    if number > _MOST_MB:
        raise argparse.ArgumentTypeError(f"{number} is above {_MOST_MB}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Build the plan, show how far it is, and say what was made."""
    from device_agents.engine.gpu import gpu_and_identity
    from device_agents.monitor.machine import Machine
    from export.build import BuildOrder, plan_from_bundle

    check_free(arguments.out, force=arguments.force, magic=MAGIC)
    bundle = Bundle.open(arguments.bundle)
    order = BuildOrder(
        form=arguments.form,
        flavour=arguments.builder,
        compute_capability=arguments.compute_capability,
        dla_core=arguments.dla_core,
        workspace_bytes=arguments.workspace_mb and arguments.workspace_mb << 20,
        timing_cache=arguments.timing_cache,
    )
    _, here = gpu_and_identity()
    with _BuildProgress() as progress:
        built = plan_from_bundle(
            *(bundle, arguments.out, order),
            here=here,
            free_bytes=Machine(Path("/"), Path("/")).free_memory_bytes(),
            on_progress=progress.see,
            force=arguments.force,
        )
    stamp = built.stamp
    size_mb = stamp.plan_bytes / 1e6
    print(f"Plan: {arguments.out} ({size_mb:.1f} MB, '{stamp.spec.name}' {stamp.form})")
    print(
        f"Built by {stamp.flavour} {stamp.tensorrt} in {stamp.seconds:.1f} s, with "
        f"{stamp.workspace_bytes >> 20} MB of workspace; the builder's peak was "
        f"{built.peak_bytes / 1e6:.0f} MB."
    )
    if built.cache_problem:
        print(f"Timing cache NOT KEPT in {built.timing_cache}: {built.cache_problem}")
    elif built.timing_cache is not None:
        print(f"Timing cache: {built.timing_cache}, {built.cached_bytes:,} bytes of it used again.")
    bound = [f"{name} {value}" for name, value in _fields(stamp.built_for) if value]
    print(f"Bound to: {', '.join(bound)}.")
    if arguments.compute_capability is None:
        print(f"Next: {typed('edge', 'bench', arguments.out)}")
    else:
        print(
            "Next: copy it to a machine with that GPU, and there: "
            f"{typed('edge', 'bench', arguments.out.name)}"
        )
    return 0


def _fields(identity: Any) -> list[tuple[str, str | None]]:
    return [
        (name.replace("_", " "), getattr(identity, name)) for name in identity.__struct_fields__
    ]


class _BuildProgress:
    """The builder's phases, nested, on standard error: bars on a terminal, else a line at times."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._open: dict[str, int] = {}  # the phases under way, with their steps
        self._tasks: dict[str, Any] = {}  # their bars
        self._said_s = time.monotonic()

    def see(self, event: dict[str, Any]) -> None:
        """Take one event of the builder's progress monitor: a phase begins, moves or ends."""
        phase = str(event.get("phase", ""))
        if "steps" in event:
            self._open[phase] = max(1, int(event["steps"]))
            if self._bars:
                self._tasks[phase] = self._bars.add_task(phase, total=self._open[phase])
        elif phase in self._open and event.get("ended"):
            del self._open[phase]
            if self._bars:
                self._bars.remove_task(self._tasks.pop(phase))
        elif phase in self._open:
            if self._bars:
                self._bars.update(self._tasks[phase], completed=event["step"])
            else:
                self._say_at_times(phase, int(event["step"]), self._open[phase])

    def _say_at_times(self, phase: str, done: int, steps: int) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s > _LINE_EVERY_S:
            self._said_s = now_s
            print(f"{phase}: {done:,} of {steps:,}", file=sys.stderr, flush=True)

    def __enter__(self) -> _BuildProgress:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:
                return self
            self._bars = Progress(console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()
