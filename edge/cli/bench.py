"""`edge bench`: measure a plan or a bundle: latency, its parts, throughput, memory, energy."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.bundle import FORM_FILES, Bundle
from edge.cli.numbers import at_least_one, threads
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.plan import FLAVOURS, Plan, PlanStamp
from edge.scorer import Engine

if TYPE_CHECKING:
    from device_agents.engine.gpu import Gpu
    from device_agents.monitor.machine import Machine
    from edge.plan import MachineIdentity
    from export.bench import Figures

_SCHEMA = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", type=Path, metavar="PLAN|BUNDLE", help="what to measure")
    parser.add_argument("--runs", type=at_least_one, default=1000, help="timed runs (default 1000)")
    parser.add_argument(
        "--provider", default="cpu", choices=("cpu", "cuda"), help="of a bundle (default cpu)"
    )
    parser.add_argument(
        "--form", choices=FORM_FILES, help="of a bundle (default: the one `edge export` chose)"
    )
    parser.add_argument(
        "--threads", type=threads, help="of onnxruntime (default: one core is left free)"
    )
    parser.add_argument(
        "--memory",
        choices=("mapped", "managed", "device"),
        help="of a plan: where its inputs and outputs lie (default: by what the GPU reports)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, with the machine's identity"
    )


@dataclass(frozen=True)
class _Target:
    """What is measured, and how to load it."""

    spec: ModelSpec
    bundle_digest: str
    form: str
    stamp: PlanStamp | None
    on_gpu: bool
    provider: str
    threads: int | None  # of onnxruntime; None: a plan has none
    load: Callable[[bool], Engine]  # with or without a cuda_graph


@dataclass(frozen=True)
class _Result:
    cuda_graph: bool | None  # None: this engine runs on the CPU
    figures: Figures
    process_bytes: int  # resident, after the runs
    gpu_bytes: int | None  # of the GPU's memory, or of the board's that it shares


def run(arguments: argparse.Namespace) -> int:
    """Measure, with and without a cuda_graph where there is a GPU; print a table or JSON."""
    from device_agents.engine.gpu import gpu_and_identity
    from device_agents.monitor.machine import Machine

    target = _target_of(arguments)
    gpu, identity = gpu_and_identity()
    board = Machine(Path("/"), Path("/"))
    results = [
        _measured(target, cuda_graph, arguments.runs, board.power_watts)
        for cuda_graph in ((True, False) if target.on_gpu else (None,))
    ]
    machine = _machine(gpu, identity, board)
    if arguments.json:
        print(json.dumps(_document(arguments.target, target, results, machine)))
    else:
        _show(target, results, machine)
    return 0


def _target_of(arguments: argparse.Namespace) -> _Target:
    """Open the plan or the bundle, whichever the path is. Raises InputError."""
    path: Path = arguments.target
    if path.is_dir():
        return _bundle_target(Bundle.open(path), arguments)
    if (arguments.provider, arguments.form, arguments.threads) != ("cpu", None, None):
        raise InputError(
            where=path,
            expected="a bundle with --provider, --form or --threads",
            found="a plan, which has one form and one provider",
            do=f"Leave them out; another form is another plan ({', '.join(FLAVOURS)}).",
        )
    plan = Plan.open(path)

    def load(cuda_graph: bool) -> Engine:
        from device_agents.engine.on_tensorrt import engine_from_plan

        return engine_from_plan(plan, cuda_graph=cuda_graph, memory=arguments.memory)

    stamp = plan.stamp
    flavour = stamp.flavour
    return _Target(stamp.spec, stamp.bundle_digest, stamp.form, stamp, True, flavour, None, load)


def _bundle_target(bundle: Bundle, arguments: argparse.Namespace) -> _Target:
    from device_agents.engine.on_onnxruntime import default_threads

    if arguments.memory is not None:
        raise InputError(
            where=bundle.folder,
            expected="a plan with --memory",
            found="a bundle: onnxruntime has its own memory",
            do="Leave --memory out, or build a plan with `edge build`.",
        )

    def load(cuda_graph: bool) -> Engine:
        from device_agents.engine.load import engine_from_bundle

        return engine_from_bundle(
            *(bundle, arguments.provider),
            form=arguments.form,
            threads=arguments.threads,
            cuda_graph=cuda_graph,
        )

    on_gpu = arguments.provider != "cpu"
    return _Target(
        bundle.manifest.spec,
        bundle.digest,
        arguments.form or bundle.manifest.form,
        None,
        on_gpu,
        arguments.provider,
        arguments.threads or default_threads(),
        load,
    )


def _measured(
    target: _Target,
    cuda_graph: bool | None,
    runs: int,
    read_power: Callable[[], dict[str, float]],
) -> _Result:
    from device_agents.engine.gpu import gpu_here
    from export.bench import invented_inputs, measure

    before = gpu_here() if target.on_gpu else None
    with target.load(bool(cuda_graph)) as engine:
        after = gpu_here() if target.on_gpu else None
        # One line and no live bar: what draws it would take its time from the runs.
        print(f"Measuring {engine.name}, {runs:,} runs ...", file=sys.stderr, flush=True)
        figures = measure(engine, invented_inputs(target.spec), runs=runs, read_power=read_power)
        process_bytes = _resident_bytes()
    taken = None if before is None or after is None else before.free_bytes - after.free_bytes
    return _Result(cuda_graph, figures, process_bytes, taken)


def _machine(gpu: Gpu | None, identity: MachineIdentity, board: Machine) -> dict[str, Any]:
    """Say on what it was measured, for who reads the figures elsewhere.

    Board and power mode also where the GPU took no part: they set the CPU's pace, too.
    """
    return {
        "module": identity.module or board.module(),
        "power_mode": identity.power_mode or board.power_mode(),
        "gpu": identity.gpu,
        "compute_capability": identity.compute_capability,
        "driver": identity.driver,
        "cuda": identity.cuda,
        "gpu_memory_bytes": gpu.total_bytes if gpu else None,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _document(
    path: Path, target: _Target, results: list[_Result], machine: dict[str, Any]
) -> dict[str, Any]:
    from importlib.metadata import version

    stamp = target.stamp
    return {
        "schema": _SCHEMA,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "orin_inspect": version("orin-inspect"),
        "machine": machine,
        "model": {
            "name": target.spec.name,
            "form": target.form,
            "bundle_digest": target.bundle_digest,
            "provider": target.provider,
            "threads": target.threads,
            "file": path.name,
            "plan": None if stamp is None else {"sha256": stamp.sha256, "tensorrt": stamp.tensorrt},
        },
        "results": [_rounded(asdict(result)) for result in results],
    }


def _rounded(figures: Any) -> Any:
    """Round to what a clock can tell."""
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def _show(target: _Target, results: list[_Result], machine: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(_title(result) for result in results))
    columns = [dict(_rows(result)) for result in results]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    known = [_known(name, value) for name, value in machine.items() if value]
    if target.threads is not None:
        known.append(f"threads {target.threads}")
    model = f"'{target.spec.name}' {target.form}, bundle {target.bundle_digest[:12]}"
    console.print(f"{model}; {results[0].figures.engine}", highlight=False)
    console.print(table)
    console.print("On: " + ", ".join(known), highlight=False)


def _known(name: str, value: Any) -> str:
    """Write one word of the machine's identity as people read it."""
    if name.endswith("_bytes"):
        name, value = name.removesuffix("_bytes"), f"{value / 1e9:.0f} GB"
    return f"{name.replace('_', ' ')} {value}"


def _title(result: _Result) -> str:
    return {None: "ms", True: "with cuda_graph", False: "without"}[result.cuda_graph]


def _rows(result: _Result) -> Iterator[tuple[str, str]]:
    figures = result.figures
    latency, split, energy = figures.latency_ms, figures.split_ms, figures.energy
    for name, value in asdict(latency).items():
        fewer = f"- ({figures.runs} runs; from 1,000 on)"
        yield name.replace("_", "."), fewer if value is None else f"{value:.3f}"
    yield "copy", f"{split.copy:.3f}"
    yield "compute", f"{split.compute:.3f}"
    yield "wait", "not measured: in compute" if split.wait is None else f"{split.wait:.3f}"
    yield "samples/s", f"{figures.samples_per_s:.1f} (batch {figures.batch})"
    yield "process", f"{result.process_bytes / 1e6:.0f} MB"
    if result.gpu_bytes is not None:
        yield "GPU memory", f"{result.gpu_bytes / 1e6:.0f} MB"
    if energy is None:
        yield "energy", "not reported by this board"
    else:
        said = f"{energy.joules_per_sample:.4f} J ({energy.busy_watts:.1f} W, idle "
        yield "energy", f"{said}{energy.idle_watts:.1f} W; {energy.rail})"


def _resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) << 10 if found else 0


def _cpu_name() -> str:
    """As the kernel calls it; on Arm, where it does not, the architecture."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found[1] if found else platform.machine()
