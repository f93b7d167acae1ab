"""The sensor teacher: one vector of a window, and its distance from those of normal windows.

The vector is the window's spectra, averaged over time, or, with `teacher.sensor_epochs`, what a
network that was trained on the windows makes of them.

Shapes: P windows, C channels, T readings, N time tokens, D spectral features, F of the vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.dataset import Progress, TrainingParts, evenly
from distill.features.spectral import SpectralFrames
from distill.recipe import Recipe
from distill.teachers.chosen import Chosen
from distill.teachers.normal_memory import (
    Calibration,
    Candidates,
    CrossFittedMemory,
    calibration_of,
)
from distill.teachers.standardise import Basis, basis_of
from distill.teachers.window_network import WindowNetwork, window_network_of

PART_LIMIT = 0.95  # quantile of held-out normal parts that counts as the limit
_FEWEST_WINDOWS = 2
_FEWEST_FOLDS = 2
_STATISTICS_WINDOWS = 512  # that the spectra are standardised by, at most
_LEARNED_WINDOWS = 4000  # that the network is trained on, at most
_MEMORY_WINDOWS = 2000
_BATCH_WINDOWS = 256


@dataclass(frozen=True)
class Learned:
    """A trained network, and what brings its vectors to the teachers' scale."""

    network: WindowNetwork
    basis: Basis


@dataclass(frozen=True)
class SensorTeacher:
    """One vector of a window, and how far it is from normal where normal parts were known."""

    frames: SpectralFrames
    learned: Learned | None
    memory: CrossFittedMemory | None
    parts: Calibration | None

    @torch.inference_mode()
    def vector(self, window_CT: NDArray[np.float32]) -> Tensor:
        """Return one standardised vector [F]: of spectra, or `teacher.feature_size` learned ones.

        Learned ones are 0 where the network knows fewer.
        """
        frames_1CND: Tensor = self.frames(torch.from_numpy(window_CT)[None])
        if self.learned is None:
            return frames_1CND[0].mean(1).flatten().clone()
        return self.learned.basis.reduce(self.learned.network(frames_1CND))[0].clone()

    def part_probability(self, vector_F: Tensor, fold: int | None) -> float:
        """Return how likely one part's window is anomalous."""
        assert self.memory is not None
        assert self.parts is not None
        distance = self.memory.distances(vector_F[None], fold)
        return float(torch.sigmoid(self.parts.logits(distance))[0])


def fit_sensor_teacher(
    parts: TrainingParts,
    chosen: Chosen,
    recipe: Recipe,
    progress: Progress,
) -> SensorTeacher | None:
    """Fit spectra on the windows of the `chosen` parts, and the memory where they have folds.

    None where fewer than two of them have a window. A network learns from the windows of all
    parts, labelled or not.
    """
    with_window = [index for index in chosen.indices if parts.windows_N[index]]
    if parts.spec.sensor is None or len(with_window) < _FEWEST_WINDOWS:
        return None
    frames = _fitted_frames(parts, with_window, recipe)
    teacher = SensorTeacher(frames, None, None, None)
    if recipe.teacher.sensor_epochs:
        teacher = replace(teacher, learned=_learned(parts, frames, recipe, progress))
    fold_of = chosen.fold_of
    if len({fold_of[index] for index in with_window if fold_of}) < _FEWEST_FOLDS:
        return teacher  # nobody to measure them against who has not seen them
    vectors = {index: teacher.vector(window) for index, window in _windows(parts, with_window)}
    memory = _memory_of(vectors, fold_of, recipe.seed)
    distances = [memory.distances(v[None], fold_of[index]) for index, v in vectors.items()]
    return replace(teacher, memory=memory, parts=calibration_of(torch.cat(distances), PART_LIMIT))


def _fitted_frames(
    parts: TrainingParts, with_window: Sequence[int], recipe: Recipe
) -> SpectralFrames:
    assert parts.spec.sensor is not None
    frames = SpectralFrames(
        len(parts.spec.sensor.channels),
        parts.spec.sensor.samples,
        recipe.sensor.frame_samples,
        recipe.sensor.time_tokens,
    )
    some = [with_window[i] for i in evenly(len(with_window), _STATISTICS_WINDOWS)]
    frames.fit(torch.from_numpy(np.stack([window for _, window in _windows(parts, some)])))
    return frames


def _learned(
    parts: TrainingParts, frames: SpectralFrames, recipe: Recipe, progress: Progress
) -> Learned:
    known = np.flatnonzero(parts.windows_N)
    some = known[evenly(len(known), _LEARNED_WINDOWS)].tolist()
    with torch.no_grad():
        frames_PCND = torch.cat(
            [frames(torch.from_numpy(window)[None]) for _, window in _windows(parts, some)]
        )
        teacher = recipe.teacher
        with torch.enable_grad():
            network = window_network_of(frames_PCND, teacher.sensor_epochs, recipe.seed, progress)
        vectors = [network(batch) for batch in torch.split(frames_PCND, _BATCH_WINDOWS)]
    return Learned(network, basis_of(torch.cat(vectors), teacher.feature_size))


def _windows(
    parts: TrainingParts, indices: Sequence[int]
) -> Iterable[tuple[int, NDArray[np.float32]]]:
    for index in indices:
        window = parts.window(index)
        assert window is not None
        yield index, window


def _memory_of(
    vectors: Mapping[int, Tensor], fold_of: Mapping[int, int], seed: int
) -> CrossFittedMemory:
    by_fold: dict[int, Candidates] = {}
    for index, vector_F in vectors.items():
        fold = fold_of[index]
        if fold not in by_fold:
            by_fold[fold] = Candidates(_MEMORY_WINDOWS, seed + fold, torch.float32)
        by_fold[fold].see(vector_F[None])
    return CrossFittedMemory(by_fold, size=_MEMORY_WINDOWS)
