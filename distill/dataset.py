"""The training side of a recording: its parts, their tensors, and the sizes that follow from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.features.spectral import MIN_READINGS
from distill.recipe import Recipe
from edge.errors import InputError
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.prepare import image_tensor, sensor_tensor
from edge.recording.format import Recording, SampleRow, read_pixels, read_readings
from edge.sample import Window

Progress = Callable[[str], Callable[[Sequence[int]], Iterable[int]]]
"""`progress("what")(range(n))` yields the numbers and shows how far it is."""

STRIDE = 16  # pixels of the image per token and per cell of the anomaly map, each way
TRAIN_SPLIT = "train"
_GRAIN = 32  # image sizes are multiples of this,
_COARSE_GRAIN = 128  # or of this, where the image is so large that attention goes by windows:
_LARGE_PIXELS = 1 << 17  # the map's grid must then be cut evenly
_LARGEST_SIDE = 4096
_SIZES_LOOKED_AT = 32
_SHAPE_WEIGHT = 2.0  # a distorted part is worse than one seen a little smaller


@dataclass(frozen=True)
class TrainingParts:
    """Rows of one split, read as a model of `spec` meets them."""

    recording: Recording
    rows: tuple[SampleRow, ...]
    spec: ModelSpec

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels_N(self) -> NDArray[np.int64]:  # noqa: N802 (shape suffix)
        """Class numbers after `spec.classes`; 0 is the normal class."""
        return np.array([self.spec.classes.index(row.label) for row in self.rows], dtype=np.int64)

    @property
    def has_defects(self) -> bool:
        """Tell whether labelled defects are among the parts."""
        return len(self.spec.classes) > 1

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read one image, uint8 [H, W, 3]. Raises InputError."""
        pixels = read_pixels(self.recording.path_of(self.rows[index].image))
        image: NDArray[np.uint8] = image_tensor(pixels, self.spec.image)[0]
        return image

    def window(self, index: int) -> NDArray[np.float32] | None:
        """Read one sensor window, float32 [C, T]; None where none was paired. InputError."""
        row = self.rows[index]
        if self.spec.sensor is None or row.sensor is None:
            return None
        path = self.recording.path_of(row.sensor)
        readings = read_readings(path, self.recording.header.channels)
        window = Window(readings, self.recording.header.channels, captured_at_ns=0)
        values: NDArray[np.float32] = sensor_tensor(window, self.spec.sensor, row.sample_id)[0]
        return values

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read one defect mask at the image's size, uint8 [H, W] (0 or 255), or None."""
        mask = self.recording.read_mask(self.rows[index])
        if mask is None:
            return None
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        size = (self.spec.image.width, self.spec.image.height)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


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
            found="only " + ", ".join(sorted({row.label for row in rows})),
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
    parts = TrainingParts(recording, tuple(rows), spec)
    for index in progress("checking the files")(range(len(parts))):
        parts.image(index)
        parts.window(index)
        parts.mask(index)


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
