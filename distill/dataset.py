"""The training side of recordings: their parts, what is known of them, and what follows from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.features.spectral import MIN_READINGS
from distill.label_share import with_labels_of
from distill.recipe import TRAIN_SPLIT, Recipe, Stage
from edge.errors import InputError
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.prepare import image_tensor, sensor_tensor
from edge.recording.format import UNLABELLED, Recording, SampleRow, read_pixels, read_readings
from edge.sample import Channel, Window

Progress = Callable[[str], Callable[[Sequence[int]], Iterable[int]]]
"""`progress("what")(range(n))` yields the numbers and shows how far it is."""

STRIDE = 16  # pixels of the image per token and per cell of the anomaly map, each way
UNKNOWN = -1
"""The class number of a part that nobody labelled, or with a label that the model has not."""
_GRAIN = 32  # image sizes are multiples of this,
_COARSE_GRAIN = 128  # or of this, where the image is so large that attention goes by windows:
_LARGE_PIXELS = 1 << 17  # the map's grid must then be cut evenly
_LARGEST_SIDE = 4096
_SIZES_LOOKED_AT = 32
_SKIPPED_NAMED = 50
_SHAPE_WEIGHT = 2.0  # a distorted part is worse than one seen a little smaller


@dataclass(frozen=True)
class Source:
    """Rows of one recording."""

    recording: Recording
    rows: tuple[SampleRow, ...]


@dataclass(frozen=True)
class TrainingParts:
    """Rows of one recording or several, read as a model of `spec` meets them."""

    sources: tuple[Source, ...]
    spec: ModelSpec
    readings: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    """All windows [N, C, T], where they were read already; None: each is read from its file."""
    few: bool = False
    """So few that made defects must stand beside the labelled ones."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def recording(self) -> Recording:
        """The recording, where there is but one."""
        assert len(self.sources) == 1
        return self.sources[0].recording

    @cached_property
    def rows(self) -> tuple[SampleRow, ...]:
        """All rows. Of several recordings, ids say which, for the same may stand in two."""
        if len(self.sources) == 1:
            return self.sources[0].rows
        return tuple(
            msgspec.structs.replace(
                row, sample_id=f"{number}:{row.sample_id}", part_id=f"{number}:{row.part_id}"
            )
            for number, source in enumerate(self.sources)
            for row in source.rows
        )

    @cached_property
    def labels_N(self) -> NDArray[np.int64]:  # noqa: N802 (shape suffix)
        """Class numbers after `spec.classes`; 0 is the normal class, whatever it is called."""
        numbers = {name: number for number, name in enumerate(self.spec.classes)}
        known = [
            0
            if row.label == recording.normal_class
            else numbers.get(row.label, UNKNOWN) or UNKNOWN  # another recording's word for normal
            for recording, row in zip(self._recordings, self.rows, strict=True)
        ]
        return np.array(known, dtype=np.int64)

    @cached_property
    def normal_N(self) -> NDArray[np.float64]:  # noqa: N802 (shape suffix)
        """1 where a person called the part normal, 0 where anything else, nan where nothing."""
        said = [
            np.nan if row.label == UNLABELLED else float(row.label == recording.normal_class)
            for recording, row in zip(self._recordings, self.rows, strict=True)
        ]
        return np.array(said, dtype=np.float64)

    @cached_property
    def sensed_N(self) -> NDArray[np.bool_]:  # noqa: N802 (shape suffix)
        """Whether each part's recording has the spec's channels."""
        has = [self._channels_in(source.recording) is not None for source in self.sources]
        rows = [len(source.rows) for source in self.sources]
        return np.repeat(np.array(has, dtype=np.bool_), rows)

    @cached_property
    def windows_N(self) -> NDArray[np.bool_]:  # noqa: N802 (shape suffix)
        """Whether each part has a window of the spec's channels."""
        paired = np.array([row.sensor is not None for row in self.rows], dtype=np.bool_)
        return np.asarray(paired & self.sensed_N)

    @cached_property
    def has_defects(self) -> bool:
        """Tell whether labelled defects are among the parts."""
        return bool((self.normal_N == 0.0).any())

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read one image, uint8 [H, W, 3]. Raises InputError."""
        pixels = read_pixels(self._recordings[index].path_of(self.rows[index].image))
        image: NDArray[np.uint8] = image_tensor(pixels, self.spec.image)[0]
        return image

    def window(self, index: int) -> NDArray[np.float32] | None:
        """Read one sensor window, float32 [C, T]; None where there is none. InputError.

        There is none where none was paired, and where the part's recording has not the channels.
        """
        if not self.windows_N[index]:
            return None
        if self.readings is not None:
            return np.array(self.readings[index])
        row, recording = self.rows[index], self._recordings[index]
        chosen = self._channels_in(recording)
        assert self.spec.sensor is not None
        assert row.sensor is not None
        readings = read_readings(recording.path_of(row.sensor), recording.header.channels)
        window = Window(readings[chosen], self.spec.sensor.channels, captured_at_ns=0)
        values: NDArray[np.float32] = sensor_tensor(window, self.spec.sensor, row.sample_id)[0]
        return values

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read one defect mask at the image's size, uint8 [H, W] (0 or 255), or None.

        A mask is a label too: that of an unlabelled part is not used.
        """
        if self.rows[index].label == UNLABELLED:
            return None
        mask = self._recordings[index].read_mask(self.rows[index])
        if mask is None:
            return None
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        size = (self.spec.image.width, self.spec.image.height)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))

    @cached_property
    def _recordings(self) -> tuple[Recording, ...]:
        """Each row's recording."""
        return tuple(source.recording for source in self.sources for _ in source.rows)

    def _channels_in(self, recording: Recording) -> list[int] | None:
        """Return the places of the spec's channels among a recording's, None where one lacks."""
        has: tuple[Channel, ...] = recording.header.channels
        wanted = self.spec.sensor.channels if self.spec.sensor else ()
        if not wanted or not set(wanted) <= set(has):
            return None
        return [has.index(channel) for channel in wanted]


def training_parts(recording: Recording, recipe: Recipe) -> TrainingParts:
    """Return the command's own training split as the recipe's student meets it. InputError."""
    spec = spec_for(recording, recipe)
    return TrainingParts((_source_in(recording, recipe),), spec)


def parts_of_stage(
    stage: Stage,
    own: TrainingParts,
    recipe: Recipe,
    opened: Mapping[Path, Recording] | None = None,
) -> TrainingParts:
    """Return the parts that a stage learns from; `own` are those of the last one. InputError.

    A recording that is among `opened`, by its folder, is taken as it is there.
    """
    if not stage.recordings:
        return own
    known = opened or {}
    recordings = [known.get(folder) or Recording.open(folder) for folder in stage.recordings]
    return TrainingParts(tuple(_source_in(r, recipe) for r in recordings), own.spec)


def _source_in(recording: Recording, recipe: Recipe) -> Source:
    rows = recording.rows_in(TRAIN_SPLIT)
    share = recipe.targets.label_share
    return Source(recording, with_labels_of(share, rows, recording.normal_class, recipe.seed))


def spec_for(recording: Recording, recipe: Recipe) -> ModelSpec:
    """Derive the model's contract from the recording's training split and the recipe.

    Raises InputError when the split is missing or holds no normal part.
    """
    rows = recording.rows_in(TRAIN_SPLIT)
    require_normal_parts(recording, TRAIN_SPLIT)
    found = {row.label for row in rows}
    image = image_input_for(_image_shapes(recording, rows), recipe.image.pixel_budget)
    return ModelSpec(
        name=recipe.name,
        image=image,
        sensor=_sensor_input(recording, rows),
        classes=tuple(name for name in recording.header.classes if name in found),
        map_height=image.height // STRIDE,
        map_width=image.width // STRIDE,
        embedding_size=recipe.student.width,
    )


def require_normal_parts(recording: Recording, split: str) -> tuple[SampleRow, ...]:
    """Return the normal parts of a split. Raises InputError when there is none."""
    rows = recording.rows_in(split)
    normal = tuple(row for row in rows if row.label == recording.normal_class)
    if not normal:
        raise InputError(
            where=f"{recording.folder}, split '{split}'",
            expected=f"normal parts (label '{recording.normal_class}'), which the teacher's memory "
            "and the threshold come from",
            found="only " + ", ".join(sorted({row.label or "unlabelled" for row in rows})),
            do="Add normal parts to that split, or import with --ok LABEL if they are called "
            "otherwise.",
        )
    return normal


def check_readable(
    recording: Recording, rows: Sequence[SampleRow], spec: ModelSpec, progress: Progress
) -> None:
    """Read every file once, so that a bad one is named now and not after minutes of work.

    Raises InputError for the first that cannot be read or does not fit `spec`.
    """
    check_parts_readable(TrainingParts((Source(recording, tuple(rows)),), spec), progress)


def check_parts_readable(parts: TrainingParts, progress: Progress) -> None:
    """Do the same for the parts of a stage."""
    for index in progress("checking the files")(range(len(parts))):
        parts.image(index)
        parts.window(index)
        parts.mask(index)


def without_unreadable(recording: Recording, progress: Progress) -> tuple[Recording, str]:
    """Leave out the samples whose files cannot be read; say how many and which, or nothing.

    Only where a person asked for it: a training set that shrinks by itself is nobody's friend.
    """
    kept, skipped = [], []
    for number in progress("looking for files that cannot be read")(range(len(recording.rows))):
        row = recording.rows[number]
        try:
            recording.read_sample(row)
            recording.read_mask(row)
        except InputError as error:
            skipped.append(f"{row.sample_id} ({error.found})")
        else:
            kept.append(row)
    if not skipped:
        return recording, ""
    named = "; ".join(skipped[:_SKIPPED_NAMED])
    rest = f"; and {len(skipped) - _SKIPPED_NAMED} more" * (len(skipped) > _SKIPPED_NAMED)
    told = f"skipped {len(skipped)} of {len(recording.rows)} samples of {recording.folder} that "
    told += "cannot be read: "
    return Recording(recording.folder, recording.header, tuple(kept)), f"{told}{named}{rest}"


def image_input_for(shapes_HW: Sequence[tuple[int, int]], pixel_budget: int) -> ImageInput:
    """Choose a size, in multiples of 32 (large ones: 128), near the images' shape and the budget.

    Images are not blown up: where they hold fewer pixels than the budget, theirs is the budget.
    """
    aspect = float(np.median([width / height for height, width in shapes_HW]))
    own_pixels = float(np.median([height * width for height, width in shapes_HW]))
    budget = min(pixel_budget, max(own_pixels, _GRAIN * _GRAIN))

    grain = _COARSE_GRAIN if budget >= _LARGE_PIXELS else _GRAIN

    def misfit(height: int) -> tuple[float, ImageInput]:
        width = max(grain, round(height * aspect / grain) * grain)
        shape = abs(math.log(width / height / aspect))
        return _SHAPE_WEIGHT * shape + abs(math.log(height * width / budget)), ImageInput(
            height, width
        )

    sizes = [misfit(height) for height in range(grain, _LARGEST_SIDE + 1, grain)]
    return min(sizes, key=lambda pair: pair[0])[1]


def folds_by_group(groups: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Deal whole groups (parts) out to folds of about equal size; return each item's fold.

    Where there are fewer groups than folds, single items are dealt out instead.
    """
    names, counts = np.unique(np.array(groups, dtype=object).astype(str), return_counts=True)
    if len(names) < folds:
        return np.arange(len(groups)) % folds
    loads = np.zeros(folds)
    fold_of: dict[str, int] = {}
    for index in np.argsort(-counts, kind="stable"):
        lightest = int(np.argmin(loads))
        fold_of[str(names[index])] = lightest
        loads[lightest] += counts[index]
    return np.array([fold_of[str(group)] for group in groups], dtype=np.int64)


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices 0..count-1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _image_shapes(recording: Recording, rows: Sequence[SampleRow]) -> list[tuple[int, int]]:
    chosen = evenly(len(rows), _SIZES_LOOKED_AT)
    shapes = [read_pixels(recording.path_of(rows[i].image)).shape for i in chosen]
    return [(shape[0], shape[1]) for shape in shapes]


def _sensor_input(recording: Recording, rows: Sequence[SampleRow]) -> SensorInput | None:
    """Take the commonest length of window; one of another length is refused when it is read."""
    channels = recording.header.channels
    paths = [recording.path_of(row.sensor) for row in rows if row.sensor is not None]
    if not channels or not paths:
        return None
    chosen = [paths[i] for i in evenly(len(paths), _SIZES_LOOKED_AT)]
    lengths = {path: read_readings(path, channels).shape[1] for path in chosen}
    samples, _ = Counter(lengths.values()).most_common(1)[0]
    if samples < MIN_READINGS:
        path = next(path for path, length in lengths.items() if length == samples)
        raise InputError(
            where=path,
            expected=f"at least {MIN_READINGS} readings per channel",
            found=str(samples),
            do="Record longer windows, or import without this sensor.",
        )
    return SensorInput(channels, samples)
