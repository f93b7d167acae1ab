"""Splits made where none are given: by part, seeded, as evenly over the labels as parts allow.

Samples that share a part, or an image with the same bytes, form one group and stay in one split:
else a model would be measured on what it was trained on. Sensor files do not join samples, for a
dead sensor gives the same bytes everywhere; `oddities` reports them.

A group that holds an unlabelled sample goes to `train` whole: nothing can be measured on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from edge.artefact import digest_of_bytes
from edge.recording.format import UNLABELLED, UNLABELLED_SPLIT

SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}


@dataclass(frozen=True)
class Grouped:
    """What decides where a sample goes: its label (empty: none), its part, its image's digest."""

    label: str
    part_id: str
    image_digest: str


def splits_of(samples: Sequence[Grouped], normal: str, *, seed: int = 0) -> list[str]:
    """Return a split name for each sample, about 60/15/25 over train, val and test.

    Depends on the samples' parts and labels and on the seed, not on their order. Every split gets
    normal samples as long as three groups hold some; with fewer, `val` and then `test` may be
    without.
    """
    groups = _groups_of(samples)
    counts = {
        name: Counter(samples[index].label for index in members) for name, members in groups.items()
    }
    chosen = _filled(counts, seed)
    _give_normals(chosen, counts, normal, seed)
    splits = [""] * len(samples)
    for name, members in groups.items():
        for index in members:
            splits[index] = chosen[name]
    return splits


def seeded_order(names: Sequence[str], seed: int) -> list[str]:
    """Sort names by a hash of seed and name: random to the eye, the same on every machine."""
    return sorted(names, key=lambda name: digest_of_bytes(f"{seed}:{name}".encode()))


def _filled(counts: dict[str, Counter[str]], seed: int) -> dict[str, str]:
    """Give each group, large ones first, to the split that lacks most of its labels."""
    totals = sum(counts.values(), Counter[str]())
    have = {split: Counter[str]() for split in SHARES}
    chosen: dict[str, str] = {}
    order = seeded_order(list(counts), seed)
    # Unlabelled groups first: they have no choice, and the others make up for what they bring.
    order.sort(key=lambda name: (not counts[name][UNLABELLED], -sum(counts[name].values())))
    for name in order:
        lacking = {
            split: sum(
                number * (share - have[split][label] / totals[label])
                for label, number in sorted(counts[name].items())
            )
            for split, share in SHARES.items()
        }
        split = max(lacking, key=lambda split: lacking[split])
        if counts[name][UNLABELLED]:
            split = UNLABELLED_SPLIT
        have[split].update(counts[name])
        chosen[name] = split
    return chosen


def _give_normals(
    chosen: dict[str, str], counts: dict[str, Counter[str]], normal: str, seed: int
) -> None:
    """Move small groups with normal samples to splits that were left with none."""
    for split in ("train", "test", "val"):
        holders: dict[str, list[str]] = {other: [] for other in SHARES}
        for name in seeded_order(list(chosen), seed):
            if counts[name][normal]:
                holders[chosen[name]].append(name)
        richest = max(holders.values(), key=len)
        movable = [name for name in richest if not counts[name][UNLABELLED]]
        if not holders[split] and len(richest) > 1 and movable:
            chosen[min(movable, key=lambda name: sum(counts[name].values()))] = split


def _groups_of(samples: Sequence[Grouped]) -> dict[str, list[int]]:
    """Join samples that share a part or a digest; name each group by its first part."""
    leader = list(range(len(samples)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    seen: dict[Hashable, int] = {}
    for index, sample in enumerate(samples):
        for key in (("part", sample.part_id), ("image", sample.image_digest)):
            leader[find(index)] = find(seen.setdefault(key, index))
    joined: dict[int, list[int]] = {}
    for index in range(len(samples)):
        joined.setdefault(find(index), []).append(index)
    return {min(samples[i].part_id for i in members): members for members in joined.values()}
