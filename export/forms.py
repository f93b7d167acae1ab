"""The forms that a student can be shipped in, each made as a file and held against its budget.

INT8 is made by measurement (`export.quantization`), and where the budget does not hold, the layers
that move scores most go back to float, a few at a time, until it does. What is held against the
budget is always the file itself, as onnxruntime runs it on held-out samples.

Which form is the fastest on an Orin is known from public measurements, not from this machine: INT8
gemms have twice FP16's peak there (the same transformer: FP16 5.7 ms, INT8 4.9 ms, Orin Nano);
weights in int4 leave the arithmetic in FP16 (Qwen3-0.6B on an Orin, 512 tokens: FP16 64.7 ms, INT4
68.0 ms; 128 tokens: 21.4 and 19.3 ms). FP8 is refused: the Orin's GPU (SM 8.7) has no FP8
arithmetic, which begins with SM 8.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import nn

from distill.checkpoint import Int8Input
from edge.bundle import FORM_FILES, LayerEffect, Parity, Quantisation
from edge.errors import AnswerIsNo, InputError
from edge.model_spec import ImageInput, ModelSpec
from edge.scorer import ModelInputs, Scorer
from export import onnx_file
from export.calibration import CalibrationSet
from export.half_precision import half_precision
from export.judge import Judged
from export.onnx_graph import onnx_from_module
from export.parity import BUDGETS, ONNX_INT8, check_budget, excesses, parity_of
from export.quantization.choices import (
    Effect,
    Measure,
    choose_method,
    choose_strength,
    effects_of,
    measured_samples,
    strength_of,
)
from export.quantization.int4 import int4_weights, linears_of
from export.quantization.prepared import PreparedStudent, Unit, prepared_student
from export.quantization.ranges import Method
from export.quantization.trained_ranges import TRAINED, take_trained_ranges
from export.quantize import int8_onnx_from_qdq

FASTEST_FIRST = ("int8", "fp16", "int4-weights")
PRECISIONS = ("auto", *FASTEST_FIRST)
_TIMED_SAMPLES = 8
_STEPS = 16  # of the units, that go back to float at a time
_MOST_RETURNED = 0.5  # beyond this share of the units the form is INT8 by name only


@dataclass(frozen=True)
class Int8Choices:
    """What a person asks of INT8."""

    method: Method | Literal["auto"] = "auto"
    smooth: bool = True  # try SmoothQuant, keep it where it helps
    convolutions: bool = False
    attention: bool = False


@dataclass(frozen=True)
class Form:
    """One file, and how it stands against the checkpoint."""

    name: str
    parity: Parity
    judged: tuple[Judged, ...]
    over: tuple[str, ...]  # what of the budget does not hold; none: it may be shipped
    score_ms: float  # one sample on this machine, by onnxruntime
    int8_nodes: tuple[str, ...] = ()
    quantisation: Quantisation | None = None


@dataclass
class Trial:
    """All that making and judging a form needs."""

    folder: Path
    student: nn.Module
    calibration: CalibrationSet
    kept_float: tuple[str, ...]  # submodules of the student: heads, embeddings
    reference: Sequence[Judged]  # what the checkpoint says of the held-out samples
    load: Callable[[Path], Scorer]  # what runs a file on this machine
    judge: Callable[[Scorer, str], list[Judged]]  # the held-out samples, by a scorer of this name
    trained: tuple[Int8Input, ...] = ()  # ranges that the student was trained with; none: measured
    frame: ImageInput | None = None  # the size of the frames that the files take whole
    say: Callable[[str], Any] = field(default=lambda _line: None)
    progress: Callable[[str], Callable[[Sequence[Any]], Iterable[Any]]] = field(
        default=lambda _title: lambda items: items
    )

    @property
    def spec(self) -> ModelSpec:
        """The contract of the files; the student's own is the calibration set's."""
        return msgspec.structs.replace(self.calibration.spec, frame=self.frame)


def refuse_fp8(precision: str) -> None:
    """Raise InputError for FP8, saying why no Orin can run it."""
    if precision == "fp8":
        raise InputError(
            where="--precision fp8",
            expected="a form that the Orin's GPU computes in: " + ", ".join(PRECISIONS),
            found="fp8, whose arithmetic begins with SM 8.9, while every Orin has SM 8.7",
            do="Choose --precision int8, which the Orin runs at twice FP16's rate, or auto.",
        )


def refuse_untrained(choices: Int8Choices, student: nn.Module, run: Path) -> None:
    """Raise InputError where an INT8 self is asked for in int8 where it was not trained in it."""
    has_convolutions = any(isinstance(one, nn.Conv1d | nn.Conv2d) for one in student.modules())
    asked = {
        "--int8-attention": choices.attention,
        "--int8-convolutions": choices.convolutions and has_convolutions,
    }
    untrained = " and ".join(option for option, is_asked in asked.items() if is_asked)
    if untrained and choices.method == "auto":
        raise InputError(
            where=run,
            expected="to write in int8 what the run was trained with in int8",
            found=f"{untrained}: that it was not trained with",
            do=f"Leave out {untrained}, or name a --calibration-method to measure all ranges anew.",
        )


def made_forms(trial: Trial, precision: str, choices: Int8Choices) -> list[Form]:
    """Make the form asked for, or with `auto` each one, and judge them; the fastest first.

    A form that cannot be made of this student is left out of `auto`, and said. Raises AnswerIsNo
    where none can.
    """
    if precision != "auto":
        return [_form(trial, precision, choices)]
    forms: list[Form] = []
    # INT8 last, for SmoothQuant is folded into the weights that the other forms are made of.
    for name in reversed(FASTEST_FIRST):
        try:
            forms.insert(0, _form(trial, name, choices))
        except AnswerIsNo as error:
            trial.say(f"  not made: {name}: {error.found}")
            if name == FASTEST_FIRST[0] and not forms:
                raise
    return forms


def fastest_within_budget(forms: Sequence[Form], reference: Sequence[Judged]) -> Form:
    """Return the form to ship. Raises AnswerIsNo naming the worst samples where none holds."""
    for form in forms:
        if not form.over:
            return form
    assert forms, "where none could be made, the export stopped before"
    first = forms[0]
    check_budget(first.parity, BUDGETS[first.parity.form], reference, do=_remedy(first))
    raise AssertionError("a form over its budget passed it")


def _form(trial: Trial, name: str, choices: Int8Choices) -> Form:
    if name == "int8":
        return _int8(trial, choices)
    model = onnx_from_module(trial.student.eval(), trial.spec)
    if name == "int4-weights":
        layers = int4_weights(model, linears_of(trial.student, kept_float=trial.kept_float))
        trial.say(
            f"  {len(layers.quantised)} layers in int4, {len(layers.too_narrow)} of widths that "
            "no block divides stay FP16"
        )
    model = half_precision(model)
    onnx_file.save(model, trial.folder / FORM_FILES[name])
    return judged_form(trial, name)


def _int8(trial: Trial, choices: Int8Choices) -> Form:
    """Make INT8, and give layers back to float until the budget holds or too many would go."""
    prepared, measure, found = _settled(trial, choices)
    effects: list[Effect] = []
    returned: tuple[Unit, ...] = ()
    while True:
        qdq = prepared.converted(returned)
        nodes = int8_onnx_from_qdq(qdq, trial.spec, trial.folder / FORM_FILES["int8"])
        form = judged_form(trial, "int8", tuple(nodes))
        if not form.over or len(returned) == _most_returned(prepared):
            break
        if not effects:
            trial.say(f"  over budget ({'; '.join(form.over)}): ranking layers by their effect")
            effects = effects_of(prepared, measure)
        returned = _returned(trial, prepared, effects, len(returned))
    record = Quantisation(
        **found,
        layers=qdq.quantised,
        kept_float=qdq.kept_float,
        returned=qdq.returned,
        effects=tuple(LayerEffect(one.unit.name, one.movement) for one in effects),
        watched_in=prepared.watched_in,
    )
    return replace(form, quantisation=record)


def _returned(
    trial: Trial, prepared: PreparedStudent, effects: list[Effect], before: int
) -> tuple[Unit, ...]:
    """Give back more than the `before` worst units, until the traced student holds the budget.

    The traced student plays int8 as the file computes it, to rounding, so the file is written and
    judged only where that is within the budget or as many went back as may.
    """
    most = _most_returned(prepared)
    step = max(1, len(prepared.units) // _STEPS)
    for count in (*range(before + step, most, step), most):
        returned = tuple(one.unit for one in effects[:count])
        trial.say(f"  back to float: {', '.join(unit.name for unit in returned)}")
        left = [unit for unit in prepared.units if unit not in returned]
        with prepared.playing("int8", left):
            judged = trial.judge(prepared, f"{len(left)} of {len(prepared.units)} units in int8")
        parity = parity_of(ONNX_INT8, trial.reference, judged)
        if not excesses(parity, BUDGETS[ONNX_INT8], trial.reference):
            break
    return returned


def _most_returned(prepared: PreparedStudent) -> int:
    return max(1, int(len(prepared.units) * _MOST_RETURNED))


def _settled(trial: Trial, choices: Int8Choices) -> tuple[PreparedStudent, Measure, dict[str, Any]]:
    """Trace, watch the calibration samples, choose method and smoothing; return them too."""
    calibration = trial.calibration
    prepared = prepared_student(
        trial.student,
        calibration.spec,
        kept_float=trial.kept_float,
        convolutions=choices.convolutions,
        attention=choices.attention,
    )
    trained = choices.method == "auto" and trial.trained
    if trained:
        take_trained_ranges(prepared, trained)
        trial.say(f"  {len(trained)} ranges as trained with this student: none is measured")
    else:
        _watch(trial, prepared)
    spare = calibration.inputs_from(calibration.spare_rows)
    measure = Measure(prepared, _first(spare, measured_samples(trial.student)))
    if trained:
        return prepared, measure, _found(TRAINED, {}, {})
    methods: dict[Method, float] = {}
    if choices.method == "auto":
        methods = choose_method(prepared, measure)
        trial.say(f"  method: {prepared.method} ({_in_text(methods)} log odds)")
    else:
        prepared.settle(choices.method)
    strengths: dict[float, float] = {}
    if choices.smooth:
        strengths = choose_strength(prepared, measure)
        trial.say(f"  SmoothQuant: {_in_text(strengths)} log odds")
        if strength_of(strengths) > 0.0:
            _watch(trial, prepared)
    return prepared, measure, _found(prepared.method, methods, strengths)


def _found(
    method: str, methods: dict[Method, float], strengths: dict[float, float]
) -> dict[str, Any]:
    """Return what the manifest says of the choices."""
    return {
        "method": method,
        "method_movements": {str(key): value for key, value in methods.items()},
        "smoothing": strength_of(strengths) if strengths else 0.0,
        "smoothing_movements": {f"{key:g}": value for key, value in strengths.items()},
    }


def _watch(trial: Trial, prepared: PreparedStudent) -> None:
    calibration = trial.calibration
    swiftly = ", in bfloat16" if prepared.watched_in == "bfloat16" else ""
    title = f"Calibrating on {len(calibration.rows)} samples{swiftly}"
    trial.say(f"  {title}")
    bar = trial.progress(title)
    prepared.watch(calibration.inputs_from(bar(calibration.rows)))


def judged_form(trial: Trial, name: str, int8_nodes: tuple[str, ...] = ()) -> Form:
    """Hold the file of a form against the checkpoint, on the held-out samples."""
    as_files_take_it = replace(trial.calibration, spec=trial.spec)
    few = as_files_take_it.inputs_from(as_files_take_it.spare_rows[:_TIMED_SAMPLES])
    with trial.load(trial.folder / FORM_FILES[name]) as scorer:
        judged = trial.judge(scorer, name)
        score_ms = timed(scorer, few)
    parity = parity_of(f"onnx-{name}", trial.reference, judged)
    over = excesses(parity, BUDGETS[parity.form], trial.reference)
    return Form(name, parity, tuple(judged), tuple(over), score_ms, int8_nodes)


def _remedy(form: Form) -> str:
    more = "calibrate on more samples (--samples), hold out more parts"
    if form.name != "int8" or form.quantisation is None:
        return f"Choose --precision int8 or auto, or {more}."
    worst = ", ".join(one.layer for one in form.quantisation.effects[:3])
    layers = f" (layers that move scores most: {worst})" if worst else ""
    return (
        "Choose --precision auto, which ships another form, leave out --int8-convolutions and "
        f"--int8-attention, {more}, or train longer so that scores lie further from the "
        f"threshold{layers}."
    )


def _first(samples: Iterable[ModelInputs], count: int) -> list[ModelInputs]:
    return [inputs for inputs, _ in zip(samples, range(count), strict=False)]


def _in_text(movements: dict[Any, float]) -> str:
    return ", ".join(f"{key or 'off'} {value:.4f}" for key, value in movements.items())


def timed(scorer: Scorer, samples: Iterable[ModelInputs]) -> float:
    """Return the median milliseconds of one sample."""
    took = []
    for inputs in samples:
        started = time.perf_counter()
        scorer.score(inputs)
        took.append(time.perf_counter() - started)
    return sorted(took)[len(took) // 2] * 1e3 if took else 0.0
