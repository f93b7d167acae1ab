"""The targets of a stage: opened, or first computed as far as they are missing.

The files are allocated before anything is computed (see `folder`), so a disk that is too small is
seen at the door. How far the work is stands in the index, written every few seconds and when it is
stopped: a killed computation fits its teachers again, which is a matter of `teacher.fit_parts`
images, and goes on where it was.

Shapes: H W image, G grid cells, F teacher features, N parts, K classes, V views.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distill.augment.copies import Copies
from distill.dataset import UNKNOWN, Progress, TrainingParts
from distill.recipe import Recipe, Stage
from distill.students.student import Student
from distill.targets.asked import (
    asks_normal_parts,
    backbones_asked,
    labels_alone,
    refuse_unanswerable,
)
from distill.targets.folder import (
    INDEX_FILE,
    Layout,
    TargetsIndex,
    allocate,
    array_paths,
    checksums_of,
    index_in,
    mapped,
    only_writer,
    refuse_changed,
    refuse_full_disks,
    write_index,
)
from distill.targets.joined import map_target, score_targets, with_made_defects
from distill.targets.opened import Targets, layouts_of, opened, stored_stem
from distill.targets.soft_labels import soft_labels_by
from distill.teachers.backbone import Backbone, Seen
from distill.teachers.image_teacher import BATCH_IMAGES, image_batch
from distill.teachers.named_backbone import backbone_named
from distill.teachers.teacher import Teachers, fit_teachers, refuse_unfit
from distill.teachers.trained_runs import Word, trained_runs, weights_digests
from edge.artefact import digest_of_bytes

_VERSION = 5  # of what the arrays mean: older targets are computed again
_SAVE_EVERY_S = 10.0
_NO_TEACHERS = Teachers((), None, {}, None, ())


def targets_in(  # noqa: PLR0913, PLR0917 (what targets depend on, where they go, and who watches)
    folder: Path,
    parts: TrainingParts,
    recipe: Recipe,
    stage: Stage,
    student: Student,
    progress: Progress,
) -> Targets:
    """Open the targets in `folder`; compute first what is missing of them.

    Raises InputError for targets of anything else and for parts that cannot teach what the stage
    asks, MachineError where the disk has not the room.
    """
    refuse_unanswerable(parts, recipe, stage)
    names = backbones_asked(recipe, stage)
    backbones = tuple(backbone_named(name) for name in names)
    layouts = layouts_of(parts, student, recipe, stage)
    belongs_to = what_they_belong_to(parts, recipe, stage, backbones)
    index = index_in(folder, belongs_to)
    if index.complete:
        targets = opened(folder, layouts, index.remarks)  # lengths first: they say more
        refuse_changed(folder, layouts, index, progress)
        return targets
    with only_writer(folder):
        index = index_in(folder, belongs_to)  # who wrote before may have gone further
        fresh = index.rounds_done == index.parts_done == 0
        allocate(folder, layouts, fresh=fresh)
        teachers = _NO_TEACHERS
        if not labels_alone(recipe, stage):
            teachers = fit_teachers(parts, recipe, stage, backbones, progress)
        work = _Work(folder, layouts, teachers, student, Copies(parts, recipe), stage)
        index = msgspec.structs.replace(index, remarks=teachers.remarks)
        _compute(work, index, progress)
    return opened(folder, layouts, index.remarks)


def look_over(
    planned: Sequence[tuple[Path, TrainingParts, Stage]], recipe: Recipe, student: Student
) -> None:
    """Refuse what the targets of all stages would fail at, before the first is computed.

    Raises InputError where a stage's parts cannot teach what it asks or a backbone is none that
    fits, MachineError where the disks have not the room for all of them together. The backbones of
    the first stage are opened in a moment anyway; those of later ones would be after hours.
    """
    layouts = {}
    opened_before: set[str] = set()
    for number, (folder, parts, stage) in enumerate(planned):
        refuse_unanswerable(parts, recipe, stage)
        layouts[folder] = layouts_of(parts, student, recipe, stage)
        trained_runs(stage.runs, parts, recipe)
        names = backbones_asked(recipe, stage)
        for name in names:
            if number and name not in opened_before:
                refuse_unfit(backbone_named(name), parts)
        opened_before.update(names)
    refuse_full_disks(layouts)


def what_they_belong_to(
    parts: TrainingParts, recipe: Recipe, stage: Stage, backbones: Sequence[Backbone]
) -> dict[str, str]:
    """Name everything that the targets depend on, in a person's words, with a digest each."""
    loss = stage.loss
    asked = (loss.features > 0, loss.summary > 0, loss.window > 0)
    memories = msgspec.structs.replace(recipe.teacher, runs=())  # known by weights, not by path
    recipe_parts = (recipe.sensor, memories, recipe.targets, recipe.augment)
    heads = (asks_normal_parts(recipe, stage), labels_alone(recipe, stage), parts.few)
    return {
        "kind of targets": str(_VERSION),
        "recording": _digest([source.recording.digest() for source in parts.sources]),
        "input of the model": _digest((parts.spec.image, parts.spec.sensor, parts.spec.classes)),
        "teacher": _digest([*(one.digest for one in backbones), *weights_digests(stage.runs)]),
        "recipe": _digest((recipe.seed, recipe_parts, recipe.student.stem)),
        "stage": _digest((stage.name, asked, heads)),
    }


@dataclass(frozen=True)
class _Work:
    """Who computes the targets, and where they go."""

    folder: Path
    layouts: dict[str, Layout]
    teachers: Teachers
    student: Student
    copies: Copies
    stage: Stage


def _compute(work: _Work, index: TargetsIndex, progress: Progress) -> None:
    """Fill the folder's arrays, from the first part that is not done."""
    paths = array_paths(work.folder, work.layouts)
    arrays: dict[str, Any] = {n: mapped(p, work.layouts[n], "r+") for n, p in paths.items()}
    parts, rounds = len(work.copies.parts), arrays["map"].shape[0]
    noted = _Noted(work.folder, arrays, index)
    with noted.when_stopped():
        for number in range(index.rounds_done, rounds):
            walk = progress(f"targets of '{work.stage.name}', round {number + 1} of {rounds}")
            for start in walk(range(noted.index.parts_done, parts, BATCH_IMAGES)):
                batch = range(start, min(start + BATCH_IMAGES, parts))
                _fill(work, arrays, number, batch)
                noted.reached(number, batch.stop, parts)
    _fill_soft_labels(work, arrays)
    noted.complete(work.layouts, progress)


@dataclass
class _Noted:
    """Notes in the index how far the work is, after the arrays themselves are on the disk."""

    folder: Path
    arrays: dict[str, Any]
    index: TargetsIndex

    def __post_init__(self) -> None:
        self._saved_s = time.monotonic()

    def reached(self, number: int, parts_done: int, parts: int) -> None:
        done = (number + 1, 0) if parts_done == parts else (number, parts_done)
        self.index = msgspec.structs.replace(self.index, rounds_done=done[0], parts_done=done[1])
        if time.monotonic() - self._saved_s >= _SAVE_EVERY_S:
            self._save()
            self._saved_s = time.monotonic()

    @contextlib.contextmanager
    def when_stopped(self) -> Iterator[None]:
        """Save how far it is also where Ctrl-C or an error ends it."""
        try:
            yield
        except BaseException:
            if (self.folder / INDEX_FILE).exists():
                self._save()
            raise
        self._save()

    def complete(self, layouts: dict[str, Layout], progress: Progress) -> None:
        self._save()
        checksums = checksums_of(self.folder, layouts, progress)
        self.index = msgspec.structs.replace(self.index, complete=True, checksums=checksums)
        write_index(self.folder, self.index)

    def _save(self) -> None:
        for array in self.arrays.values():
            array.flush()
        write_index(self.folder, self.index)


@torch.inference_mode()
def _fill(work: _Work, arrays: dict[str, Any], number: int, batch: range) -> None:
    """Compute one batch of one round and write it into the arrays."""
    copies = work.copies
    pictures = [copies.picture(index, number) for index in batch]
    images = image_batch([picture.pixels for picture in pictures])
    seen = [teacher.see(images) for teacher in work.teachers.images]
    runs = work.teachers.runs
    word = None if runs is None else runs.word(batch, number, work.student.grid, pictures)
    maps, scores, windows = [], [], []
    for place, (index, picture) in enumerate(zip(batch, pictures, strict=True)):
        window = _sensor_vector(work, index, number)
        if word is None:
            logits_G = _map_logits(work, [one.dense_BND[place] for one in seen], index)
            said = score_targets(work.teachers, copies, (index, number), logits_G, window)
        else:
            logits_G = word.map_logits_BG[place]
            said = with_made_defects(word.scores(place), copies.broken(index, number))
        maps.append(map_target(copies, index, picture.mask, logits_G))
        scores.append(said)
        windows.append(window)
        if number == 0 and "readings" in arrays:
            readings = copies.parts.window(index)
            arrays["readings"][index] = np.nan if readings is None else readings
    columns = slice(batch.start, batch.stop)
    arrays["stem"][number, columns] = stored_stem(
        work.student.stem_features(images), arrays["stem"].dtype
    )
    arrays["map"][number, columns] = np.stack(maps)
    arrays["scores"][number, columns] = np.array(scores, np.float32)
    if word is not None:
        arrays["soft_labels"][:, number, columns] = _class_words(word, work)
    _keep_seen(arrays, number, columns, seen)
    if "window" in arrays:
        arrays["window"][number, columns] = _stacked(windows, arrays["window"].shape[-1], np.nan)


def _keep_seen(arrays: dict[str, Any], number: int, columns: slice, seen: Sequence[Seen]) -> None:
    for place, (dense_BGF, summary_BF) in enumerate(seen):
        if f"features_{place}" in arrays:
            arrays[f"features_{place}"][number, columns] = dense_BGF.numpy()
        if f"summaries_{place}" in arrays:
            arrays[f"summaries_{place}"][number, columns] = summary_BF.numpy()
    if "seen" in arrays and number == 0:
        kept = [one.dense_BND.half().float().numpy() for one in seen]
        moments = [m for dense_BGF in kept for m in (dense_BGF.mean(1), dense_BGF.std(1))]
        arrays["seen"][columns] = np.concatenate(moments, 1)


def _class_words(word: Word, work: _Work) -> NDArray[np.float32]:
    """Return [V, B, K]; nan where there is but one class, of which nothing can be said."""
    if len(work.copies.parts.spec.classes) < 2:
        return np.full_like(word.classes_VBK, np.nan)
    return word.classes_VBK


def _map_logits(work: _Work, dense: list[torch.Tensor], index: int) -> torch.Tensor | None:
    if not work.teachers.has_map:
        return None
    return work.teachers.map_logits(dense, work.teachers.fold_of.get(index))


def _sensor_vector(work: _Work, index: int, number: int) -> torch.Tensor | None:
    """Return what the sensor teacher makes of a copy's window; None without one of the two."""
    if work.teachers.sensor is None or not work.copies.parts.windows_N[index]:
        return None
    window = work.copies.window(index, number)
    return None if window is None else work.teachers.sensor.vector(window)


def _stacked(
    vectors: Iterable[torch.Tensor | None], size: int, absent: float
) -> NDArray[np.float32]:
    """Return [B, size]; `absent` stands where there is no vector."""
    return np.stack(
        [np.full(size, absent, np.float32) if v is None else v.numpy() for v in vectors]
    )


def _fill_soft_labels(work: _Work, arrays: dict[str, Any]) -> None:
    """Write each original part's word by heads that never saw it; nan where there are none."""
    parts = work.copies.parts
    if work.teachers.runs is not None:
        return  # they spoke of every copy
    asked = asks_normal_parts(work.copies.recipe, work.stage)
    if not asked or not parts.has_defects or (parts.labels_N == UNKNOWN).all():
        arrays["soft_labels"][:] = np.nan
        return
    scores_N2 = np.asarray(arrays["scores"][0, :, :2])
    image_NE = np.asarray(arrays["seen"]) if "seen" in arrays else None
    vectors = [_sensor_vector(work, index, 0) for index in range(len(parts))]
    sizes = {len(vector) for vector in vectors if vector is not None}
    sensor_NE = _stacked(vectors, sizes.pop(), 0.0) if sizes else None
    arrays["soft_labels"][:, 0] = soft_labels_by(parts, image_NE, sensor_NE, scores_N2)


def _digest(content: object) -> str:
    return digest_of_bytes(msgspec.json.encode(content))
