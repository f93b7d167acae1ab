"""Runs as teachers: students that were trained before judge the parts, in place of the memories.

A large student of a GPU box, or several that began from different seeds, teaches a small one what
it learned: of labels as well as of parts that nobody labelled (Hinton, Vinyals and Dean, arXiv
1503.02531; several as one, Lakshminarayanan et al., arXiv 1612.01474, eq. 1). Each sees the copies
at its own image size, so a teacher may have sharper eyes than its student: moved and lit as the
student's are, with the same made defects in the same places. Only noise and JPEG's traces differ.

Shapes: B batch, H W pixels, C T sensor, G cells of the student's map, h w the run's map, K classes,
V views (all, image alone, sensor alone; all only where there is no sensor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.augment.copies import Copies
from distill.augment.pictures import Picture
from distill.checkpoint import Checkpoint, checkpoint_from_run, read_record
from distill.dataset import TrainingParts
from distill.recipe import Recipe
from distill.teachers.backbone import bring_to, the_device
from edge.errors import InputError
from edge.model_spec import ModelSpec, SensorInput
from edge.prepare import channels_text

_VIEWS = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))  # what is shown of (image, sensor)


class Word(NamedTuple):
    """What runs say of a batch of copies."""

    map_logits_BG: Tensor
    anomalous_VB: NDArray[np.float32]  # probability, nan for a view that the part has not
    classes_VBK: NDArray[np.float32]  # probabilities, nan likewise

    def scores(self, place: int) -> tuple[float, float, float]:
        """Return how likely image, sensor and both of one copy are anomalous; nan: not asked."""
        said = [float(value) for value in self.anomalous_VB[:, place]]
        both, image, sensor = said if len(said) > 1 else (said[0], said[0], float("nan"))
        return image, sensor, both


@dataclass(frozen=True)
class TrainedRun:
    """One run, and the copies as its student sees them."""

    checkpoint: Checkpoint
    copies: Copies

    @torch.inference_mode()
    def word(
        self, batch: Sequence[int], number: int, grid: tuple[int, int], seen: Sequence[Picture]
    ) -> Word:
        """Judge the copies of the parts in `batch`; `seen` are they at the learner's size."""
        teacher, size, device = self.checkpoint.student, self.checkpoint.spec.image, the_device()
        bring_to(device, teacher)
        if seen[0].pixels.shape[:2] != (size.height, size.width):
            seen = [self.copies.picture(index, number) for index in batch]
        pixels_BHW3 = torch.from_numpy(np.stack([one.pixels for one in seen])).to(device)
        stem_BGS = teacher.stem_features(pixels_BHW3)
        sensor_BCT, has_B = self._windows(batch, number)
        if sensor_BCT is not None:
            sensor_BCT = sensor_BCT.to(device)
        anomalous, classes = [], []
        map_logits_BG = torch.empty(0)
        views = _VIEWS if self.checkpoint.spec.sensor else _VIEWS[:1]
        for view, shown in enumerate(views):
            present_B2 = torch.tensor(shown).expand(len(batch), 2) * torch.stack(
                [torch.ones_like(has_B), has_B], 1
            )
            reading = teacher.read(stem_BGS, sensor_BCT, present_B2.to(device))
            if view == 0:
                map_logits_BG = _on_grid(reading.map_logits_Bhw, grid).cpu()
            known_B = present_B2.any(1)
            anomalous.append(_where(known_B, torch.sigmoid(reading.score_logit_B).cpu()))
            classes.append(_where(known_B, torch.softmax(reading.class_logits_BK, 1).cpu()))
        return Word(map_logits_BG, np.stack(anomalous), np.stack(classes))

    def _windows(self, batch: Sequence[int], number: int) -> tuple[Tensor | None, Tensor]:
        """Return the copies' windows, zeros where there is none, and where there is one."""
        sensor = self.checkpoint.spec.sensor
        if sensor is None:
            return None, torch.ones(len(batch))
        windows = [self.copies.window(index, number) for index in batch]
        absent = np.zeros((len(sensor.channels), sensor.samples), np.float32)
        stacked = np.stack([absent if window is None else window for window in windows])
        return torch.from_numpy(stacked), torch.tensor([float(w is not None) for w in windows])


@dataclass(frozen=True)
class TrainedRuns:
    """Runs that judge together: the mean of their probabilities, of the map of their log odds."""

    runs: tuple[TrainedRun, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Say of each which weights taught."""
        return tuple(
            f"taught by a run of '{run.checkpoint.spec.name}', weights {run.checkpoint.digest[:12]}"
            for run in self.runs
        )

    def word(
        self, batch: Sequence[int], number: int, grid: tuple[int, int], seen: Sequence[Picture]
    ) -> Word:
        """Judge the copies of the parts in `batch`; `seen` are they at the learner's size."""
        words = [run.word(batch, number, grid, seen) for run in self.runs]
        return Word(
            torch.stack([word.map_logits_BG for word in words]).mean(0),
            np.mean([word.anomalous_VB for word in words], 0),
            np.mean([word.classes_VBK for word in words], 0),
        )


def weights_digests(folders: Sequence[str]) -> tuple[str, ...]:
    """Name the weights of runs by their digests. Raises InputError."""
    return tuple(read_record(Path(folder)).weights_digest for folder in folders)


def trained_runs(
    folders: Sequence[str], parts: TrainingParts, recipe: Recipe
) -> TrainedRuns | None:
    """Open the runs that teach; None where there are none. Raises InputError for one that cannot.

    A run fits where it knows the same classes and takes the same window as the student.
    """
    runs: list[TrainedRun] = []
    for folder in folders:
        checkpoint = checkpoint_from_run(Path(folder))
        _refuse_misfit(folder, checkpoint.spec, parts.spec)
        for weight in checkpoint.student.parameters():
            weight.requires_grad_(False)
        theirs = replace(parts, spec=checkpoint.spec)
        if any(run.checkpoint.digest == checkpoint.digest for run in runs):
            raise InputError(
                where=f"the run {folder}, as a teacher",
                expected="each run once",
                found="the weights of one that was named before",
                do="Leave it out: named twice it would count twice.",
            )
        # Its word and the student's mask are joined cell by cell: both must mean the same defect.
        runs.append(TrainedRun(checkpoint, Copies(theirs, recipe, painted=parts)))
    return TrainedRuns(tuple(runs)) if runs else None


def _refuse_misfit(folder: str, theirs: ModelSpec, ours: ModelSpec) -> None:
    for what, expected, found in (
        ("classes", ", ".join(ours.classes), ", ".join(theirs.classes)),
        ("sensor window", _window_text(ours.sensor), _window_text(theirs.sensor)),
    ):
        if expected != found:
            raise InputError(
                where=f"the run {folder}, as a teacher",
                expected=f"the student's {what}: {expected}",
                found=found,
                do="Distil the teacher on a recording of the same classes and sensors, or leave "
                "it out.",
            )


def _window_text(sensor: SensorInput | None) -> str:
    if sensor is None:
        return "none"
    return f"{channels_text(sensor.channels)}, {sensor.samples} readings"


def _on_grid(map_logits_Bhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the map's log odds [B, G] on the student's cells."""
    if map_logits_Bhw.shape[1:] != grid:
        map_logits_Bhw = F.interpolate(
            map_logits_Bhw[:, None], grid, mode="bilinear", align_corners=False, antialias=True
        )[:, 0]
    return map_logits_Bhw.flatten(1)


def _where(known_B: Tensor, values: Tensor) -> NDArray[np.float32]:
    shape = (-1,) + (1,) * (values.dim() - 1)
    return np.asarray(torch.where(known_B.view(shape), values, torch.nan).numpy(), np.float32)
