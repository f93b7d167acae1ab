"""The engine's door: a bundle and a provider become an engine, or an error that says the next step.

cpu, cuda                the bundle's ONNX file on onnxruntime
tensorrt, tensorrt_rtx   a plan that `edge build` made of that file on this machine
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from device_agents.engine.on_onnxruntime import PROVIDERS as ON_ONNXRUNTIME
from device_agents.engine.on_onnxruntime import engine_from_onnx
from device_agents.engine.on_tensorrt import engine_from_plan
from edge.bundle import FORM_FILES, Bundle
from edge.errors import InputError, nearest_hint
from edge.onnx_weights import model_path
from edge.plan import FLAVOURS, Plan
from edge.scorer import Engine

PROVIDERS = (*ON_ONNXRUNTIME, *FLAVOURS)


def engine_from_bundle(  # noqa: PLR0913  each is a choice of its own, by name
    bundle: Bundle,
    provider: str = "cpu",
    *,
    form: str | None = None,
    threads: int | None = None,
    plan: str | Path | None = None,
    cuda_graph: bool = True,
) -> Engine:
    """Load the bundle's model on `provider`, its digests checked first.

    `form` is one of FORM_FILES; None is the one that `edge export` chose for the device.
    `plan` is the file that `edge build` wrote, for the providers of TensorRT. Raises InputError
    where bundle, form, provider and plan do not fit together, MachineError where the machine lacks
    what was asked for.
    """
    form = form or bundle.manifest.form
    if form not in FORM_FILES:
        raise _unknown("model form", form, FORM_FILES)
    if provider not in PROVIDERS:
        raise _unknown("provider", provider, PROVIDERS)
    if provider in FLAVOURS:
        return _on_tensorrt(bundle, provider, form, plan, cuda_graph)
    if plan is not None:
        raise InputError(
            where=f"provider '{provider}'",
            expected="no plan: onnxruntime runs the bundle's ONNX file",
            found=str(plan),
            do=f"Remove the plan, or ask for the provider {' or '.join(FLAVOURS)}.",
        )
    path = model_path(bundle, FORM_FILES[form])
    engine = engine_from_onnx(
        path, bundle.manifest.spec, provider, threads=threads, cuda_graph=cuda_graph
    )
    engine.name = f"{engine.name} {form}"
    return engine


def _on_tensorrt(
    bundle: Bundle, provider: str, form: str, path: str | Path | None, cuda_graph: bool
) -> Engine:
    if path is None:
        raise InputError(
            where=f"provider '{provider}'",
            expected="a plan of the bundle",
            found="none named",
            do=f'edge build {bundle.folder} --out PLAN, then name it: plan = "PLAN" under '
            "[model], or --plan PLAN.",
        )
    plan = Plan.open(Path(path))
    plan.refuse_other_bundle(bundle.digest, form)
    if plan.stamp.flavour != provider:
        raise InputError(
            where=plan.path,
            expected=f"a plan of {provider}",
            found=f"one of {plan.stamp.flavour}",
            do=f"Ask for the provider {plan.stamp.flavour}, or rebuild it with --builder "
            f"{provider}.",
        )
    return engine_from_plan(plan, cuda_graph=cuda_graph)


def _unknown(what: str, given: str, known: Iterable[str]) -> InputError:
    return InputError(
        where=what,
        expected=f"one of {', '.join(known)}",
        found=f"'{given}'",
        do=nearest_hint(given, known),
    )
