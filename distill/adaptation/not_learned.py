"""What an adaptation could not learn from its parts, and what would mend it, in words.

Counted in parts (`part_id`): samples of one part are more alike than parts are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distill.adaptation.order import AdaptOrder
from distill.checkpoint import HeldOut
from distill.dataset import UNKNOWN
from distill.recipe import TRAIN_SPLIT
from distill.students.relation import LEAST_PARTS
from edge.recording.format import UNLABELLED

FEWEST_TO_JUDGE = 5  # parts of a class, from which one can begin to tell its looks from chance
FEWEST_HELD_OUT = 10  # samples of either kind, from which a gain begins to differ from chance


def not_learned(order: AdaptOrder, *, relates: bool) -> tuple[str, ...]:
    """Say what the parts were too few, or not of a kind, to teach.

    `relates`: whether the student still expects something of a window by its image.
    """
    return (
        *_about_classes(order),
        *_about_unknown_labels(order),
        *_about_defects(order),
        *_about_the_sensor(order, relates=relates),
    )


def held_out_remarks(
    before: HeldOut | None, after: HeldOut | None, split: str, run: str
) -> tuple[str, ...]:
    """Say what the adaptation did to parts that it never saw."""
    if before is None or after is None:
        return (
            f"no labelled part is held out in '{split}', so nobody knows whether it helped: hold "
            "some out, or compare both runs with `edge evaluate` on parts of this line",
        )
    remarks = [f"held out in '{split}': {comparison(before, after)}"]
    if min(before.normals, before.others) < FEWEST_HELD_OUT:
        remarks.append(
            f"{before.normals} normal and {before.others} other held-out parts are too few to tell "
            f"a gain from chance (at least {FEWEST_HELD_OUT} of each are needed)"
        )
    if not improved(before, after):
        remarks.append(
            f"the held-out result did NOT improve: keep {run} unless `edge evaluate` on other "
            "parts of this line says otherwise; record more parts, above all of what is missing "
            "above, or distil on this line anew"
        )
    return tuple(remarks)


def improved(before: HeldOut, after: HeldOut) -> bool:
    """Tell whether the order of the scores is better, or else as good and the scores are nearer."""
    if before.auroc is not None and after.auroc is not None and before.auroc != after.auroc:
        return after.auroc > before.auroc
    return after.score_loss < before.score_loss


def comparison(before: HeldOut, after: HeldOut) -> str:
    """Write both results beside each other."""
    area = "no AUROC (one kind of parts only)"
    if before.auroc is not None and after.auroc is not None:
        area = f"AUROC {before.auroc:.4f} before, {after.auroc:.4f} after"
    return (
        f"{area}; mean score loss {before.score_loss:.3f} before, {after.score_loss:.3f} after; "
        f"n = {before.normals} normal, {before.others} others"
    )


def _about_classes(order: AdaptOrder) -> Iterator[str]:
    parts = order.parts
    counts = {
        name: _part_count(order, parts.labels_N == number)
        for number, name in enumerate(parts.spec.classes)
    }
    few = {name: count for name, count in counts.items() if 0 < count < FEWEST_TO_JUDGE}
    for name, count in few.items():
        yield f"class '{name}': {count} parts are too few to judge (want {FEWEST_TO_JUDGE} or more)"
    for name in order.unseen_classes:
        yield f"class '{name}': not seen at all"
    if order.unseen_classes and len(counts) > 1:
        yield (
            "which class a defect is of: that is as the run knew it, for taught only some of its "
            "classes it would unlearn the others"
        )


def _about_unknown_labels(order: AdaptOrder) -> Iterator[str]:
    parts = order.parts
    unknown_N = (parts.labels_N == UNKNOWN) & (parts.normal_N == 0.0)
    names = {row.label for row, unknown in zip(parts.rows, unknown_N, strict=True) if unknown}
    for name in sorted(names):
        count = _part_count(order, np.array([row.label == name for row in parts.rows]))
        yield (
            f"label '{name}' ({count} parts): the run has no such class; these parts taught that "
            "they are not normal, and no class. Distil anew to have it"
        )
    unlabelled = _part_count(order, np.array([row.label == UNLABELLED for row in parts.rows]))
    if unlabelled:
        yield f"{unlabelled} parts have no label: for these the teachers' word stood"


def _about_defects(order: AdaptOrder) -> Iterator[str]:
    parts = order.parts
    if not parts.has_defects:
        yield "this line's own defects: no part has one, so only made defects were shown"
    elif all(row.mask is None for row in parts.rows):
        yield "where this line's defects lie: no part has a mask, so the teachers alone said"


def _about_the_sensor(order: AdaptOrder, *, relates: bool) -> Iterator[str]:
    parts = order.parts
    if parts.spec.sensor is None:
        return
    if not parts.windows_N.any():
        yield "the sensor: no part has a window, so only what the image shows was learned"
        return
    known = int((parts.windows_N & (parts.normal_N == 1.0)).sum())
    if known < LEAST_PARTS:
        what = (
            "the other line's relation stays, which these parts do not contradict"
            if relates
            else "the other line's relation, if there was one, does not hold here and is switched "
            "off: parts that are odd only as image and window together will pass"
        )
        yield (
            f"which window belongs to which image: {known} normal parts of split '{TRAIN_SPLIT}' "
            f"have one, and it takes {LEAST_PARTS}; {what}"
        )


def _part_count(order: AdaptOrder, chosen_N: NDArray[np.bool_]) -> int:
    rows = order.parts.rows
    return len({rows[index].part_id for index in np.flatnonzero(chosen_N)})
