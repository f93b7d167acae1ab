"""Targets opened for training: read-only, cheap to open, and opened anew by each worker.

Shapes: R rounds, N parts, G grid cells, S stem features, F teacher features, K classes, V views,
C T sensor (see `folder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.dataset import TrainingParts
from distill.features.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE
from distill.recipe import Recipe, Stage
from distill.students.student import Student
from distill.targets.asked import backbones_asked
from distill.targets.folder import Layout, array_paths, mapped


class StoredPixels:
    """A stem of raw pixels: kept as uint8, half of float16, and read as the stem gives them.

    Nothing is lost: the stem's values are (pixel - 127) / 128, which are exact either way.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.shape = pixels.shape

    def __getitem__(self, place: Any) -> NDArray[np.float32]:
        pixels = self._pixels[place].astype(np.float32)
        return np.asarray((pixels - PIXEL_MEAN) / PIXEL_SCALE, np.float32)

    def __len__(self) -> int:
        return len(self._pixels)


@dataclass(frozen=True)
class Targets:
    """What teachers and persons say of every part and copy; nan where nobody knows."""

    folder: Path
    layouts: Mapping[str, Layout]
    stem: NDArray[np.float16] | StoredPixels  # [R, N, G, S]
    map: NDArray[np.float16]  # [R, N, G]
    scores: NDArray[np.float32]  # [R, N, 3]
    soft_labels: NDArray[np.float32]  # [V, R or 1, N, K]
    features: tuple[NDArray[np.float16], ...]  # [R, N, G, F]; none where no loss asks
    summaries: tuple[NDArray[np.float16], ...]  # [R, N, F]; none where no loss asks
    window: NDArray[np.float16] | None  # [R, N, F]
    readings: NDArray[np.float32] | None  # [N, C, T]: the parts' own windows
    remarks: tuple[str, ...] = ()  # what a person should know of the teachers

    @property
    def rounds(self) -> int:
        """Original plus copies."""
        return int(self.map.shape[0])

    def __reduce__(self) -> tuple[Callable[..., Targets], tuple[Any, ...]]:
        """Cross to a worker as a path: what is mapped is opened there again, never copied."""
        return opened, (self.folder, self.layouts, self.remarks)


def opened(folder: Path, layouts: Mapping[str, Layout], remarks: tuple[str, ...] = ()) -> Targets:
    """Map the arrays. Raises InputError where a file is not what was computed."""
    paths = array_paths(folder, layouts)
    arrays = {name: mapped(path, layouts[name]) for name, path in paths.items()}
    stem = arrays["stem"]
    return Targets(
        folder=folder,
        layouts=layouts,
        stem=StoredPixels(stem) if stem.dtype == np.uint8 else stem,
        map=arrays["map"],
        scores=arrays["scores"],
        soft_labels=arrays["soft_labels"],
        features=_numbered("features", arrays),
        summaries=_numbered("summaries", arrays),
        window=arrays.get("window"),
        readings=arrays.get("readings"),
        remarks=remarks,
    )


def layouts_of(
    own: TrainingParts, student: Student, recipe: Recipe, stage: Stage
) -> dict[str, Layout]:
    """Return what is kept of these parts, known before any teacher is asked."""
    rounds, size, loss = recipe.targets.copies + 1, recipe.teacher.feature_size, stage.loss
    parts, cells, views = len(own), student.cells, 1 if own.spec.sensor is None else 3
    stem = "|u1" if recipe.student.stem == "patch" else "<f2"
    teachers = len(backbones_asked(recipe, stage))
    layouts = {
        "stem": Layout((rounds, parts, cells, student.stem.size), stem),
        "map": Layout((rounds, parts, cells), "<f2"),
        "scores": Layout((rounds, parts, 3), "<f4"),
        "soft_labels": Layout(
            (views, rounds if stage.runs else 1, parts, len(own.spec.classes)), "<f4"
        ),
    }
    if own.spec.sensor is not None and own.windows_N.any():
        window = (len(own.spec.sensor.channels), own.spec.sensor.samples)
        layouts["readings"] = Layout((parts, *window), "<f4")
    for number in range(teachers):
        if loss.features:
            layouts[f"features_{number}"] = Layout((rounds, parts, cells, size), "<f2")
        if loss.summary:
            layouts[f"summaries_{number}"] = Layout((rounds, parts, size), "<f2")
    if teachers and not stage.runs:
        layouts["seen"] = Layout((parts, 2 * size * teachers), "<f4")
    if loss.window:
        layouts["window"] = Layout((rounds, parts, size), "<f2")
    return layouts


def _numbered(kind: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float16], ...]:
    names = [f"{kind}_{number}" for number in range(len(arrays))]
    return tuple(arrays[name] for name in names if name in arrays)


def stored_stem(stem_BGS: Tensor, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the student's stem as it is kept (see `StoredPixels`)."""
    if kind != np.uint8:
        return stem_BGS.numpy()
    return (stem_BGS * PIXEL_SCALE + PIXEL_MEAN).round().to(torch.uint8).numpy()
