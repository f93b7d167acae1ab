"""Which labels a run keeps: all of them, or a share, to learn what labels are worth.

The parts whose labels are left out stay, as unlabelled ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge.recording.format import UNLABELLED, SampleRow
from edge.recording.splits import seeded_order

_ROUNDING = 1e-9  # 0.1 * 30 is a little more than 3


def with_labels_of(
    share: float, rows: Sequence[SampleRow], normal: str, seed: int
) -> tuple[SampleRow, ...]:
    """Return the rows with the labels of `share` of each class kept, the others unlabelled.

    Whole parts (`part_id`) keep or lose their label, in an order that the seed decides, until at
    least that share of the class's samples has kept it: so a class never loses all of its labels,
    unless the share is 0, and then one normal part still keeps its own. What is kept at a small
    share is kept at every larger one.
    """
    if share >= 1.0:
        return tuple(rows)
    kept: set[int] = set()
    for label in sorted({row.label for row in rows} - {UNLABELLED}):
        kept |= _kept_of_class(label, share, rows, seed, at_least_one=label == normal)
    return tuple(
        row if index in kept else msgspec.structs.replace(row, label=UNLABELLED, mask=None)
        for index, row in enumerate(rows)
    )


def _kept_of_class(
    label: str, share: float, rows: Sequence[SampleRow], seed: int, *, at_least_one: bool
) -> set[int]:
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.label == label:
            members.setdefault(row.part_id, []).append(index)
    wanted = max(share * sum(map(len, members.values())), 1.0 if at_least_one else 0.0)
    kept: set[int] = set()
    for part_id in seeded_order(list(members), seed):
        if len(kept) >= wanted - _ROUNDING:
            break
        kept.update(members[part_id])
    return kept
