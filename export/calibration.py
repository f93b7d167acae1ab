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

from edge.artefact import digest_of_bytes
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text, model_inputs
from edge.recording.format import UNLABELLED, Recording, SampleRow
from edge.scorer import ModelInputs

# Ranges are maxima: fewer samples than this, and the first unusual part on the line is clipped.
MINIMUM_SAMPLES = 32
SPARE_SAMPLES = 32
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


def calibration_set(
    recording: Recording, spec: ModelSpec, *, samples: int, split: str = "train", seed: int = 0
) -> CalibrationSet:
    """Draw `samples` rows of `split`, all labels in turn. Raises InputError when it is no base."""
    rows = recording.rows_in(
        split,
        do=f"Give --calibration a recording with parts in split '{split}', such as the one that "
        "the run was trained on.",
    )
    _refuse_another_line(recording, rows, spec)
    if len(rows) < MINIMUM_SAMPLES:
        raise InputError(
            where=recording.folder,
            expected=f"at least {MINIMUM_SAMPLES} calibration samples",
            found=f"too few (split '{split}' has {len(rows)})",
            do="Calibrate on a recording with more samples of the line; more kinds of parts and "
            "more of each make INT8 ranges truer.",
        )
    if samples < MINIMUM_SAMPLES:
        raise InputError(
            where="--samples",
            expected=f"at least {MINIMUM_SAMPLES} calibration samples",
            found=str(samples),
            do=f"Ask for {MINIMUM_SAMPLES} or more, or leave --samples out (split '{split}' has "
            f"{len(rows)}).",
        )
    drawn = _drawn(rows, samples + SPARE_SAMPLES, seed)
    return CalibrationSet(
        recording, spec, drawn[:samples], drawn[samples:] or drawn[-SPARE_SAMPLES:]
    )


def _refuse_another_line(
    recording: Recording, rows: tuple[SampleRow, ...], spec: ModelSpec
) -> None:
    """Refuse rows whose channels or classes are not those the model was trained on.

    Only `rows` are asked: held-out splits may hold defects that training never met.
    """
    channels = recording.header.channels
    if spec.sensor is not None and channels != spec.sensor.channels:
        raise _other(
            recording.folder,
            "channels " + channels_text(spec.sensor.channels),
            channels_text(channels),
        )
    if recording.normal_class != spec.classes[0]:
        raise _other(
            recording.folder,
            f"the normal class '{spec.classes[0]}'",
            f"'{recording.normal_class}'",
        )
    unknown = sorted({row.label for row in rows} - {*spec.classes, UNLABELLED})
    if unknown and len(spec.classes) > 1:
        raise _other(
            recording.folder,
            "labels known to the model (" + ", ".join(spec.classes) + ")",
            "also " + ", ".join(f"'{label}'" for label in unknown),
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
