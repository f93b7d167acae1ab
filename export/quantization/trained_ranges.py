"""Ranges handed over to training, and taken back from it.

Training plays INT8 where export writes it, so it is told by the traced student itself: which layers
there are, what they read together, and from which ranges to begin. What it made of the ranges comes
back with the run, and export measures none again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from torch import nn

from distill.checkpoint import Int8Input, Int8Ranges
from edge.errors import InputError
from edge.recording.format import SampleRow
from export.calibration import CalibrationSet
from export.quantization.choices import Measure, choose_method, measured_samples
from export.quantization.observers import FINEST_SCALE
from export.quantization.prepared import PreparedStudent, prepared_student
from export.quantization.ranges import LEVELS

TRAINED = "training"
"""Stands in the manifest for the method by which ranges were read from samples."""


def calibrated_ranges(
    student: nn.Module,
    calibration: CalibrationSet,
    *,
    kept_float: Iterable[str] = (),
    walk: Callable[[Sequence[SampleRow]], Iterable[SampleRow]] = iter,
) -> Int8Ranges:
    """Trace the student, and read its ranges by the method by which its scores move least.

    `kept_float` names submodules that stay float, as in export; `walk` shows how far it is. Nothing
    is smoothed: training moves LayerNorms and weights by itself. Raises AnswerIsNo where nothing
    can become int8.
    """
    prepared = prepared_student(student, calibration.spec, kept_float=kept_float)
    prepared.watch(calibration.inputs_from(walk(calibration.rows)))
    spare = calibration.inputs_from(calibration.spare_rows)
    choose_method(prepared, Measure(prepared, list(islice(spare, measured_samples(student)))))
    inputs = tuple(
        Int8Input(unit.layers, unit.activations[0].scale * LEVELS) for unit in prepared.units
    )
    return Int8Ranges(prepared.method, len(calibration.rows), inputs)


def take_trained_ranges(prepared: PreparedStudent, trained: Iterable[Int8Input]) -> None:
    """Settle every range as it was trained, and every weight by itself. Raises InputError.

    Layers must be exactly those that were trained in int8.
    """
    ranges = {frozenset(one.layers): one.covered for one in trained}
    wanted = {frozenset(unit.layers): unit for unit in prepared.units}
    if ranges.keys() != wanted.keys():
        odd = sorted(layer for layers in ranges.keys() ^ wanted.keys() for layer in layers)
        raise InputError(
            where=f"student '{prepared.spec.name}'",
            expected="to write in int8 what the run was trained with in int8",
            found=f"other layers: {', '.join(odd[:3])}",
            do="Leave out --int8-convolutions and --int8-attention, name a --calibration-method to "
            "measure all ranges anew, or train again with this version: edge distill --quantize.",
        )
    prepared.settle("max")  # for the weights; nothing was watched, so activations follow
    for layers, unit in wanted.items():
        for one in unit.activations:
            one.scale = max(ranges[layers] / LEVELS, FINEST_SCALE)
