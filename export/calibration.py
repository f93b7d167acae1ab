"""The calibration set: real samples of the training split that show INT8 its ranges.

Rows are drawn by label in equal shares as far as they reach, seeded, and read one at a time, so
that memory does not grow with the number of samples. There is no default data: a recording that is
empty, of another line, or too small is refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from distill.recipe import TRAIN_SPLIT
from edge.artefact import digest_of_bytes
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text, model_inputs
from edge.recording.format import Recording, SampleRow
from edge.scorer import ModelInputs

# Ranges are maxima: fewer samples than this, and the first unusual part on the line is clipped.
MINIMUM_SAMPLES = 32
SPARE_SAMPLES = 32
MORE_PARTS = (
    "a recording with more samples of the line: more kinds of parts and more of each make INT8 "
    "ranges truer. Until there is one, --precision fp16 ships the run without any ranges"
)
_WITHHELD_EVERY = 4


@dataclass(frozen=True)
class CalibrationSet:
    """The rows that were drawn, and how to read one.

    `spare_rows` are more of the same split, on which choices are measured; they are the last of
    `rows` again where the split has no more.
    """

    recording: Recording
    spec: ModelSpec
    rows: tuple[SampleRow, ...]
    spare_rows: tuple[SampleRow, ...] = ()

    def inputs_from(self, rows: Iterable[SampleRow]) -> Iterator[ModelInputs]:
        """Yield the model's inputs, batch of 1. Raises InputError naming an unfit sample.

        Every fourth sample comes a second time with its sensor withheld: the device judges by the
        image alone where a reading is missing, and INT8 must have seen those ranges too.
        """
        for number, row in enumerate(rows):
            sample = self.recording.read_sample(row)
            yield model_inputs(sample, self.spec)
            if self.spec.sensor is not None and number % _WITHHELD_EVERY == 0:
                yield model_inputs(sample, self.spec, withhold="sensor")

    def digest(self) -> str:
        """Return the SHA-256 (64 hex) of what was drawn: the samples' own digests, in order."""
        drawn = [(row.sample_id, row.image_digest, row.sensor_digest) for row in self.rows]
        return digest_of_bytes(msgspec.json.encode(drawn))


def calibration_set(  # noqa: PLR0913 (what to draw from, how much, and what to say of too few)
    recording: Recording,
    spec: ModelSpec,
    *,
    samples: int,
    seed: int = 0,
    fewest: int = MINIMUM_SAMPLES,
    too_few: str = f"Calibrate on {MORE_PARTS}.",
) -> CalibrationSet:
    """Draw `samples` training rows, all labels in turn. Raises InputError when it is no base.

    Fewer than `fewest` are none: a form whose ranges nobody sets is content with less than INT8.
    `too_few` is what to do then, by the command that asks.
    """
    split = TRAIN_SPLIT
    rows = recording.rows_in(
        split,
        do=f"Give --calibration a recording with parts in split '{split}', such as the one that "
        "the run was trained on.",
    )
    _refuse_another_line(recording, spec)
    if len(rows) < fewest:
        raise InputError(
            where=recording.folder,
            expected=f"at least {fewest} calibration samples",
            found=f"too few (split '{split}' has {len(rows)})",
            do=too_few,
        )
    if samples < fewest:
        raise InputError(
            where="--samples",
            expected=f"at least {fewest} calibration samples",
            found=str(samples),
            do=f"Ask for {fewest} or more, or leave --samples out (split '{split}' has "
            f"{len(rows)}).",
        )
    drawn = _drawn(rows, samples + SPARE_SAMPLES, seed)
    return CalibrationSet(recording, spec, drawn[:samples], drawn[-SPARE_SAMPLES:])


def _refuse_another_line(recording: Recording, spec: ModelSpec) -> None:
    """Refuse other sensors than the model's, and parts as normal that are none to it.

    Labels beside these are no matter: ranges are of inputs, a run may have been adapted to parts
    with labels that it does not know, and another line is told by its parts (`export.likeness`).
    """
    channels, normal = recording.header.channels, recording.normal_class
    if spec.sensor is not None and channels != spec.sensor.channels:
        raise _other(
            recording.folder,
            "channels " + channels_text(spec.sensor.channels),
            channels_text(channels),
        )
    if normal in spec.classes[1:]:
        raise _other(
            recording.folder,
            f"normal parts (the model's are called '{spec.classes[0]}')",
            f"'{normal}' as the normal class, which is a defect to the model",
        )


def _drawn(rows: tuple[SampleRow, ...], samples: int, seed: int) -> tuple[SampleRow, ...]:
    """Take rows of all labels in turn until there are `samples` or none is left."""
    piles: dict[str, list[SampleRow]] = {}
    for row in rows:
        piles.setdefault(row.label, []).append(row)
    chance = random.Random(seed)  # noqa: S311 - a draw to be repeated, no secret
    for label in sorted(piles):
        chance.shuffle(piles[label])
    drawn: list[SampleRow] = []
    while len(drawn) < samples and any(piles.values()):
        drawn += [piles[label].pop() for label in sorted(piles) if piles[label]]
    return tuple(drawn[:samples])


def _other(folder: Path, expected: str, found: str) -> InputError:
    return InputError(
        where=folder,
        expected=expected,
        found=found,
        do="Calibrate on a recording of the line that the run was trained on.",
    )
