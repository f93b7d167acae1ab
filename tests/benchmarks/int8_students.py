"""A student in INT8 by the shortest way: ranges by max, nothing chosen by measurement.

`edge export` chooses (`export.forms`); what the graph looks like does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import nn

from distill.students.student import EMBEDDINGS, HEADS
from edge.model_spec import ModelSpec
from edge.scorer import ModelInputs
from export.quantization.prepared import QdqStudent, prepared_student
from export.quantize import int8_onnx_from_qdq


def qdq_from_student(
    student: nn.Module,
    spec: ModelSpec,
    calibration: Iterable[ModelInputs],
    *,
    kept_float: Iterable[str] = (),
    convolutions: bool = False,
) -> QdqStudent:
    """Watch the student on the calibration samples and write the ranges into its graph.

    `kept_float` names submodules of the student (heads, embeddings) whose layers stay float.
    """
    prepared = prepared_student(student, spec, kept_float=kept_float, convolutions=convolutions)
    prepared.watch(calibration)
    return prepared.converted()


def int8_file(student: nn.Module, spec: ModelSpec, path: Path) -> list[str]:
    """Write a student of a recipe as INT8 to `path`, its ranges from one sample of noise.

    Returns the names of the nodes that compute on int8.
    """
    kept = (*HEADS, *EMBEDDINGS)
    qdq = qdq_from_student(student, spec, [noise_for(spec)], kept_float=kept)
    return int8_onnx_from_qdq(qdq, spec, path)


def noise_for(spec: ModelSpec) -> ModelInputs:
    """Return one sample of noise, everything present."""
    random = np.random.default_rng(0)
    pixels, sensor, present = (tensor.shape for tensor in spec.inputs())
    return {
        "image": random.integers(0, 256, pixels, dtype=np.uint8),
        "sensor": random.normal(size=sensor).astype(np.float32),
        "present": np.ones(present, np.float32),
    }
