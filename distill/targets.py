"""What the teacher says of every training part and every copy of it: computed once, kept on disk.

    TARGETS/index.json        what it belongs to, and how many rounds are done
    TARGETS/stem.npy          [R, N, G, S] float16: the student's frozen stem, so that an epoch
                              costs only what learns
    TARGETS/features.npy      [R, N, G, F] float16: the teacher's dense features
    TARGETS/map.npy           [R, N, G] float16: probability that a cell is anomalous
    TARGETS/scores.npy        [R, N, 2] float32: probability that the image, the sensor is anomalous
    TARGETS/soft_labels.npy   [V, N, K] float32: class probabilities by heads that never saw the
                              part: from all of it, from its image alone, from its sensor alone

The arrays are memory-mapped, so their size is the disk's matter, not the memory's. A round is one
copy of every part (round 0: the originals), and a killed computation goes on with the next round.

Shapes: R rounds, N parts, G grid cells, S stem features, F teacher features, K classes,
V views (all, and where there is a sensor: image alone, sensor alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.augment import (
    BROKEN_IMAGE,
    BROKEN_SENSOR,
    Picture,
    broken_picture,
    broken_window,
    generator_for,
    varied_picture,
    varied_window,
)
from distill.dataset import STRIDE, Progress, TrainingParts
from distill.recipe import Recipe
from distill.students.student import Student
from distill.teachers.backbone import Backbone, backbone_named
from distill.teachers.label_head import held_out_probabilities
from distill.teachers.teacher import BATCH_IMAGES, Teacher, fit_teacher, image_batch
from edge.artefact import digest_of_bytes, new_file
from edge.errors import InputError

INDEX_FILE = "index.json"
_VERSION = 2  # of what the arrays mean: older targets are computed again
_ARRAYS = ("stem", "features", "map", "scores", "soft_labels")
_IMAGE, _SENSOR, _JITTER = 0, 1, 2  # streams of random numbers


class TargetsIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder of targets belongs to, and how far it is."""

    digest: str
    rounds: int
    rounds_done: int
    complete: bool = False


@dataclass(frozen=True)
class Targets:
    """Targets opened for training."""

    stem: NDArray[np.float16]
    features: NDArray[np.float16]
    map: NDArray[np.float16]
    scores: NDArray[np.float32]
    soft_labels: NDArray[np.float32]

    @property
    def rounds(self) -> int:
        """Original plus copies."""
        return int(self.map.shape[0])


@dataclass(frozen=True)
class Copies:
    """Every training part in every round, made again whenever it is asked for."""

    parts: TrainingParts
    recipe: Recipe

    def broken(self, index: int, round_number: int) -> int:
        """Return which modalities of this copy carry a made defect (flags).

        Only where no defect is labelled: real ones teach better than made ones.
        """
        if round_number == 0 or self.parts.has_defects:
            return 0
        random = self._random(index, round_number, _JITTER)
        if random.random() >= self.recipe.targets.broken_share:
            return 0
        if self.parts.spec.sensor is None or self.parts.rows[index].sensor is None:
            return BROKEN_IMAGE
        return int(random.choice([BROKEN_IMAGE, BROKEN_SENSOR, BROKEN_IMAGE | BROKEN_SENSOR]))

    def picture(self, index: int, round_number: int) -> Picture:
        """Return image and mask of one copy."""
        picture = Picture(self.parts.image(index), self.parts.mask(index))
        if round_number == 0:
            return picture
        random = self._random(index, round_number, _IMAGE)
        if self.broken(index, round_number) & BROKEN_IMAGE:
            picture = broken_picture(picture, random)
        return varied_picture(picture, self.recipe.augment, random)

    def window(
        self, index: int, round_number: int, epoch: int | None = None
    ) -> NDArray[np.float32] | None:
        """Return the window of one copy; with `epoch`, varied a little more for that epoch."""
        window = self.parts.window(index)
        if window is None:
            return None
        if self.broken(index, round_number) & BROKEN_SENSOR:
            window = broken_window(window, self._random(index, round_number, _SENSOR))
        if epoch is not None:
            random = self._random(index, round_number, _JITTER + 1 + epoch)
            window = varied_window(window, self.recipe.augment, random)
        return window

    def _random(self, index: int, *numbers: int) -> np.random.Generator:
        return generator_for(self.recipe.seed, self.parts.rows[index].sample_id, *numbers)


def targets_digest(parts: TrainingParts, recipe: Recipe, backbone: Backbone) -> str:
    """Name everything that the targets depend on (64 hexadecimal digits)."""
    recipe_parts = (recipe.sensor, recipe.teacher, recipe.targets, recipe.augment)
    belongs_to = (
        _VERSION,
        parts.recording.digest(),
        parts.spec.image,
        recipe.seed,
        recipe_parts,
        recipe.student.stem,
        backbone.digest,
    )
    return digest_of_bytes(msgspec.json.encode(belongs_to))


def targets_in(
    folder: Path, parts: TrainingParts, recipe: Recipe, student: Student, progress: Progress
) -> Targets:
    """Open the targets in `folder`; compute first what is missing of them. InputError."""
    backbone = backbone_named(recipe.teacher.backbone)
    digest = targets_digest(parts, recipe, backbone)
    index = _index_in(folder, digest, rounds=recipe.targets.copies + 1)
    if not index.complete:
        teacher = fit_teacher(parts, recipe, backbone, progress)
        _compute(_Work(folder, teacher, student, Copies(parts, recipe)), index, progress)
    return Targets(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS})


@dataclass(frozen=True)
class _Work:
    """Who computes the targets, and where they go."""

    folder: Path
    teacher: Teacher
    student: Student
    copies: Copies


def _compute(work: _Work, index: TargetsIndex, progress: Progress) -> None:
    """Fill the folder's arrays, from the first round that is not done."""
    parts = len(work.copies.parts)
    for number in range(index.rounds_done, index.rounds):
        walk = progress(f"teacher's targets, round {number + 1} of {index.rounds}")
        for start in walk(range(0, parts, BATCH_IMAGES)):
            batch = range(start, min(start + BATCH_IMAGES, parts))
            _fill(work, number, batch, index.rounds)
        index = msgspec.structs.replace(index, rounds_done=number + 1)
        _write_index(work.folder, index)
    _fill_soft_labels(work)
    _write_index(work.folder, msgspec.structs.replace(index, complete=True))


def _index_in(folder: Path, digest: str, rounds: int) -> TargetsIndex:
    """Read the folder's index, or begin one; refuse targets of anything else."""
    path = folder / INDEX_FILE
    if not path.exists():
        if folder.exists() and not _is_vacant(folder):
            raise _foreign(folder, "something else there")
        folder.mkdir(parents=True, exist_ok=True)
        index = TargetsIndex(digest, rounds, 0)
        _write_index(folder, index)
        return index
    try:
        index = msgspec.json.decode(path.read_bytes(), type=TargetsIndex)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise _foreign(folder, str(error)) from None
    if index.digest != digest:
        raise _foreign(folder, f"targets with the digest {index.digest[:12]}")
    return index


def _is_vacant(folder: Path) -> bool:
    """Tell whether nothing but what a killed run left half written stands in `folder`."""
    return folder.is_dir() and all(path.suffix == ".partial" for path in folder.iterdir())


def _write_index(folder: Path, index: TargetsIndex) -> None:
    with new_file(folder / INDEX_FILE, force=True) as partial:
        partial.write_bytes(msgspec.json.encode(index))


@torch.inference_mode()
def _fill(work: _Work, number: int, batch: range, rounds: int) -> None:
    """Compute one batch of one round and write it into the arrays."""
    teacher, copies = work.teacher, work.copies
    pictures = [copies.picture(i, number) for i in batch]
    images = image_batch([picture.pixels for picture in pictures])
    features_BGF = teacher.image.features(images)
    stem_BGS = work.student.stem_features(images)
    maps, scores = [], []
    for index, picture, features_GF in zip(batch, pictures, features_BGF, strict=True):
        map_logits_G = teacher.image.map_logits(features_GF, teacher.fold_of.get(index))
        maps.append(_map_target(torch.sigmoid(map_logits_G).numpy(), picture.mask, copies, index))
        scores.append(_score_targets(teacher, copies, index, number, map_logits_G))
    columns = slice(batch.start, batch.stop)
    for name, values in (
        ("stem", stem_BGS.numpy()),
        ("features", features_BGF.numpy()),
        ("map", np.stack(maps)),
        ("scores", np.array(scores)),
    ):
        array = _array(work.folder, name, (rounds, len(copies.parts), *values.shape[1:]))
        array[number, columns] = values
        if batch.stop == len(copies.parts):
            array.flush()


def _map_target(
    teacher_map_G: NDArray[np.float32],
    mask_HW: NDArray[np.uint8] | None,
    copies: Copies,
    index: int,
) -> NDArray[np.float32]:
    """Join what the teacher says of each cell with what a person, or a made defect, says.

    A mask says where the defect is, and a part labelled normal among labelled defects has none.
    Where a defect has no mask (nobody drew one, or it does not show), the teacher's word stands.
    """
    said = None if mask_HW is None else _cells_of(mask_HW)
    if not copies.parts.has_defects:
        return teacher_map_G if said is None else np.maximum(teacher_map_G, said)
    if said is None and copies.parts.rows[index].label == copies.parts.recording.normal_class:
        said = np.zeros_like(teacher_map_G)
    if said is None:
        return teacher_map_G
    share = copies.recipe.targets.teacher_share
    return np.asarray(share * teacher_map_G + (1.0 - share) * said, dtype=np.float32)


def _cells_of(mask_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return [G]: 1 where any pixel of the cell is defect."""
    mask = torch.tensor(mask_HW)[None, None].float() / 255.0
    return np.asarray(F.max_pool2d(mask, STRIDE).flatten().numpy())


def _score_targets(
    teacher: Teacher, copies: Copies, index: int, number: int, map_logits_G: torch.Tensor
) -> tuple[float, float]:
    """Return how likely image and sensor are anomalous; a made defect is one for certain."""
    broken = copies.broken(index, number)
    image = teacher.image.part_probability(map_logits_G)
    window = copies.window(index, number)
    sensor = 0.0
    if teacher.sensor is not None and window is not None:
        features = teacher.sensor.features(window)
        sensor = teacher.sensor.part_probability(features, teacher.fold_of.get(index))
    return (
        1.0 if broken & BROKEN_IMAGE else image,
        1.0 if broken & BROKEN_SENSOR else sensor,
    )


def _fill_soft_labels(work: _Work) -> None:
    """Fit the label heads on the originals and write each part's held-out word."""
    parts = work.copies.parts
    groups = [row.part_id for row in parts.rows]
    soft_VNK = np.stack(
        [
            held_out_probabilities(view_NF, parts.labels_N, groups, len(parts.spec.classes))
            for view_NF in _views(work)
        ]
    )
    array = _array(work.folder, "soft_labels", soft_VNK.shape)
    array[:] = soft_VNK
    array.flush()


def _views(work: _Work) -> list[NDArray[np.float32]]:
    """Return what each view's head sees of every part [N, F]: all, image alone, sensor alone."""
    features = np.load(work.folder / "features.npy", mmap_mode="r")[0].astype(np.float32)
    scores_N2 = _logit(np.load(work.folder / "scores.npy", mmap_mode="r")[0])
    image_NF = np.concatenate([features.mean(1), features.std(1), scores_N2[:, :1]], 1)
    if work.teacher.sensor is None:
        return [image_NF] * (1 if work.copies.parts.spec.sensor is None else 3)
    sensor_NF = np.concatenate([_window_summary(work.teacher, work.copies), scores_N2[:, 1:]], 1)
    return [np.concatenate([image_NF, sensor_NF], 1), image_NF, sensor_NF]


def _window_summary(teacher: Teacher, copies: Copies) -> NDArray[np.float32]:
    assert teacher.sensor is not None
    vectors: list[NDArray[np.float32] | None] = []
    for index in range(len(copies.parts)):
        window = copies.window(index, 0)
        vectors.append(None if window is None else teacher.sensor.features(window).numpy())
    size = next(len(vector) for vector in vectors if vector is not None)
    return np.stack([np.zeros(size, np.float32) if v is None else v for v in vectors])


def _logit(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    clipped = np.clip(probability, 1e-4, 1.0 - 1e-4)
    return np.asarray(np.log(clipped / (1.0 - clipped)), dtype=np.float32)


def _array(folder: Path, name: str, shape: Sequence[int]) -> np.memmap[Any, np.dtype[Any]]:
    """Open one array for writing, or make it; the index decides which rounds in it count."""
    path = folder / f"{name}.npy"
    kind = np.float32 if name in ("scores", "soft_labels") else np.float16
    if path.is_file():
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape == tuple(shape):
            return array
    # A rename, so that a kill never leaves a file whose header was cut short.
    partial = path.with_suffix(".partial")
    np.lib.format.open_memmap(partial, mode="w+", dtype=kind, shape=tuple(shape)).flush()
    partial.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")


def _foreign(folder: Path, found: str) -> InputError:
    return InputError(
        where=folder,
        expected="targets of this recording, teacher and recipe",
        found=found,
        do="Name another --targets folder; one that is new or empty is filled.",
    )
