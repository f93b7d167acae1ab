"""What the student measures of its input before it learns: means and deviations, from the parts.

Image and sensor are each standardised once, by the first stage that has them, for what a student
learned means nothing under another scale. What the image lets expect of the sensor belongs to the
line, and is measured anew in each stage that has normal parts with windows.

Shapes: N parts, P cells of parts, G cells of one, S stem features, C T sensor, D spectral features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.augment.copies import Copies
from distill.dataset import evenly
from distill.students.relation import LEAST_PARTS
from distill.students.student import Student, part_spectrum
from distill.targets.opened import Targets

_FIT_PARTS = 1024  # that standardisation is taken from, at most


@torch.no_grad()
def fit_standardisation(
    student: Student, targets: Targets, copies: Copies, *, first_stage: bool
) -> None:
    """Fit what `student` lacks, in place, on the original parts of a stage."""
    parts = copies.parts
    if first_stage:
        mean_S, deviation_S = _stem_moments(targets, evenly(len(parts), _FIT_PARTS).tolist())
        student.image_tokens.mean_S.copy_(mean_S)
        student.image_tokens.scale_S.copy_(deviation_S.clamp_min(1e-3))
    if student.sensor_tokens is None:
        return
    frames = student.sensor_tokens.frames
    as_made = bool((frames.feature_scale_CD == 1.0).all())
    if as_made and parts.windows_N.any():
        frames.fit(_windows(copies, _some(parts.windows_N)))
    normal = _some(parts.windows_N & (parts.normal_N == 1.0))
    if normal:
        _fit_relation(student, targets, normal, _windows(copies, normal))


def _fit_relation(
    student: Student, targets: Targets, normal: list[int], windows_NCT: Tensor
) -> None:
    """Fit what the image lets expect of the sensor, on normal parts and their windows."""
    assert student.relation is not None
    assert student.sensor_tokens is not None
    image_NS = torch.stack([_stem(targets, part).mean(0) for part in normal])
    frames_NCNE = student.sensor_tokens.frames(windows_NCT)
    if len(normal) < LEAST_PARTS:
        student.relation.silence_if_foreign(image_NS, part_spectrum(frames_NCNE))
    student.relation.fit(image_NS, part_spectrum(frames_NCNE))


def _some(wanted_N: NDArray[np.bool_]) -> list[int]:
    """Return parts of that kind, from all recordings of the stage and not too many."""
    known = np.flatnonzero(wanted_N)
    some: list[int] = known[evenly(len(known), _FIT_PARTS)].tolist()
    return some


def _windows(copies: Copies, some: list[int]) -> Tensor:
    """Return the windows [N, C, T] of original parts that have one."""
    windows = [copies.window(part, 0) for part in some]
    return torch.stack([torch.from_numpy(window) for window in windows if window is not None])


def _stem_moments(targets: Targets, some: list[int]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [S] over the cells of some parts; one part's are in memory."""
    cells = len(some) * targets.stem.shape[2]
    mean_S = sum(_stem(targets, part).double().sum(0) for part in some) / cells
    squares_S = sum(((_stem(targets, part).double() - mean_S) ** 2).sum(0) for part in some)
    return mean_S, torch.sqrt(squares_S / max(cells - 1, 1))


def _stem(targets: Targets, part: int) -> Tensor:
    """Return the stem's features [G, S] of one original part."""
    return torch.tensor(targets.stem[0, part]).float()
