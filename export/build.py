"""The plan from a bundle: NVIDIA's builder turns the bundle's ONNX file into a plan, stamped.

    bundle -> files checked -> memory looked at -> builder, in its own process -> plan, stamped

It runs where the plan will run: on the Orin, under Python 3.10, with JetPack's TensorRT and none of
the host's packages. Only TensorRT-RTX builds for a GPU that is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edge.artefact import new_file
from edge.bundle import FORM_FILES, Bundle
from edge.errors import InputError, MachineError, nearest_hint
from edge.onnx_weights import model_path, weight_files_of
from edge.plan import HEADER_BYTES, MAGIC, MachineIdentity, PlanStamp, write_stamp
from export.builder_call import FREE_SOME, OnProgress, build_in_process
from export.tensorrt_library import flavours_here

# What the builder takes beside its workspace. TensorRT-RTX 1.7, ahead of time, took 0.45 GB and 2.8
# times the weights (files of 90 to 345 MB); where a GPU measures kernels, the weights lie there
# once more.
_BUILDER_BYTES = 512 << 20
_WEIGHTS_TIMES = 4
_LEAST_WORKSPACE_BYTES = 128 << 20
_MOST_WORKSPACE_BYTES = 4 << 30


@dataclass(frozen=True)
class BuildOrder:
    """What to build, as a person asked for it."""

    form: str | None = None  # one of FORM_FILES; None: the one chosen by `edge export`
    flavour: str | None = None  # None: what is installed, TensorRT before TensorRT-RTX
    compute_capability: str | None = None  # ahead of time, for a GPU that is not here: "8.6"
    dla_core: int | None = None  # None: the GPU alone
    workspace_bytes: int | None = None  # None: what memory is left for, within bounds
    timing_cache: Path | None = None  # None: beside the plan, by flavour


@dataclass(frozen=True)
class Built:
    """A plan that was built, and what it took."""

    stamp: PlanStamp
    peak_bytes: int  # of host memory, of the builder's process
    cached_bytes: int  # of the timing cache that was taken up
    timing_cache: Path | None
    cache_problem: str  # why the timing cache could not be kept; mostly empty


def plan_from_bundle(  # noqa: PLR0913  what is of the machine is given by who may look at it
    bundle: Bundle,
    out: Path,
    order: BuildOrder,
    *,
    here: MachineIdentity,
    free_bytes: int | None,
    on_progress: OnProgress = lambda event: None,
    force: bool = False,
) -> Built:
    """Build `out` from the bundle's ONNX file.

    `here` is the machine the plan will be bound to, `free_bytes` what memory it has left (None:
    not known). Raises InputError, MachineError, or AnswerIsNo where the builder refuses.
    """
    form = order.form or bundle.manifest.form
    if form not in FORM_FILES:
        raise _unknown_form(form)
    flavour = _flavour_of(order, here)
    onnx = model_path(bundle, FORM_FILES[form])
    workspace_bytes = order.workspace_bytes or _workspace_for(onnx, free_bytes)
    timing_cache = _timing_cache_of(order, flavour, out)
    with new_file(out, force=force, magic=MAGIC) as partial:
        report = build_in_process(
            {
                "flavour": flavour,
                "onnx": str(onnx.absolute()),
                "out": str(partial.absolute()),
                "skip": HEADER_BYTES,
                "timing_cache": timing_cache and str(timing_cache.absolute()),
                "workspace_bytes": workspace_bytes,
                "dla_core": order.dla_core,
                "compute_capability": order.compute_capability,
            },
            onnx,
            on_progress,
        )
        stamp = write_stamp(
            partial,
            PlanStamp(
                bundle_digest=bundle.digest,
                form=form,
                spec=bundle.manifest.spec,
                flavour=flavour,
                tensorrt=report["tensorrt"],
                built_for=_bound_to(order, here),
                dla_core=order.dla_core,
                workspace_bytes=workspace_bytes,
                seconds=report["seconds"],
                created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            ),
        )
    return Built(
        stamp, report["peak_bytes"], report["cached_bytes"], timing_cache, report["cache_problem"]
    )


def _flavour_of(order: BuildOrder, here: MachineIdentity) -> str:
    """Return which builder to use. Raises MachineError where there is none, or no GPU for it."""
    installed = flavours_here()
    flavour = order.flavour or (installed[0] if installed else "tensorrt")
    if flavour not in installed:
        raise MachineError(
            where=f"builder '{flavour}'",
            expected="it to be installed",
            found=f"only {', '.join(installed)}" if installed else "no builder of NVIDIA's",
            do="JetPack brings TensorRT (apt install python3-libnvinfer); a virtual environment "
            "sees it with --system-site-packages. Elsewhere: pip install "
            "'orin-inspect[tensorrt]'.",
        )
    if order.compute_capability is not None and flavour != "tensorrt_rtx":
        raise InputError(
            where="--compute-capability",
            expected="the builder tensorrt_rtx: TensorRT builds for the GPU that is here",
            found=flavour,
            do="Leave it out and build on the Orin, or say --builder tensorrt_rtx.",
        )
    if order.compute_capability is None and here.gpu is None:
        raise MachineError(
            where=f"builder '{flavour}'",
            expected="an NVIDIA GPU to build for",
            found="none that the driver knows",
            do="Build on the Orin; TensorRT-RTX also builds ahead of time, when told for what: "
            "--builder tensorrt_rtx --compute-capability 8.6.",
        )
    return flavour


def _workspace_for(onnx: Path, free_bytes: int | None) -> int:
    """Return the builder's workspace: half of what is left, within bounds. Raises MachineError."""
    if free_bytes is None:
        return _LEAST_WORKSPACE_BYTES
    files = (onnx, *(onnx.with_name(name) for name in weight_files_of(onnx)))
    needed_bytes = _BUILDER_BYTES + _WEIGHTS_TIMES * sum(file.stat().st_size for file in files)
    left_bytes = free_bytes - needed_bytes
    if left_bytes < _LEAST_WORKSPACE_BYTES:
        raise MachineError(
            where=onnx,
            expected=f"{(needed_bytes + _LEAST_WORKSPACE_BYTES) / 1e9:.1f} GB of free memory to "
            "build it",
            found=f"{free_bytes / 1e9:.1f} GB",
            do=f"{FREE_SOME} To try all the same: --workspace-mb {_LEAST_WORKSPACE_BYTES >> 20}.",
        )
    return max(_LEAST_WORKSPACE_BYTES, min(left_bytes // 2, _MOST_WORKSPACE_BYTES))


def _timing_cache_of(order: BuildOrder, flavour: str, out: Path) -> Path | None:
    """Return where the builder keeps what it measured; TensorRT-RTX measures nothing."""
    if flavour == "tensorrt_rtx" and order.timing_cache is not None:
        raise InputError(
            where=f"--timing-cache {order.timing_cache}",
            expected="the builder tensorrt",
            found="tensorrt_rtx, which keeps none",
            do="Leave it out.",
        )
    if flavour == "tensorrt_rtx":
        return None
    kept = order.timing_cache or out.with_name(f"{flavour}.timing")
    if kept.is_dir() or not kept.absolute().parent.is_dir():
        raise InputError(
            where=f"--timing-cache {kept}",
            expected="a file in a folder that is there",
            found="a folder" if kept.is_dir() else "no such folder",
            do="Make the folder, or name another file: what the builder measures takes minutes.",
        )
    return kept


def _bound_to(order: BuildOrder, here: MachineIdentity) -> MachineIdentity:
    """A plan built ahead of time is bound to a kind of GPU only, any other to this machine."""
    if order.compute_capability is None:
        return here
    return MachineIdentity(compute_capability=order.compute_capability)


def _unknown_form(form: str) -> InputError:
    return InputError(
        where="model form",
        expected=f"one of {', '.join(FORM_FILES)}",
        found=f"'{form}'",
        do=nearest_hint(form, FORM_FILES),
    )
