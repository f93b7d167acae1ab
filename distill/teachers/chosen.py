"""Which parts the teachers are fitted on, and which fold each of them lies in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.dataset import TrainingParts, evenly, folds_by_group
from distill.recipe import JUDGED, Recipe, Stage
from edge.errors import InputError

_FOLDS = 2


class Chosen(NamedTuple):
    """Indices of parts in random order, so that the first ones are a sample of all."""

    indices: list[int]
    fold_of: dict[int, int]  # empty where no memory of normal parts is made


def chosen_parts(parts: TrainingParts, recipe: Recipe, stage: Stage) -> Chosen:
    """Choose normal parts, or any parts where no memory of normal ones has to speak.

    Raises InputError where normal parts are needed and none is labelled so.
    """
    wanted = any(getattr(stage.loss, name) for name in JUDGED) and not stage.runs
    known = np.flatnonzero(parts.normal_N == 1.0) if wanted else np.arange(len(parts))
    if not len(known):
        raise InputError(
            where=f"stage '{stage.name}'",
            expected="parts labelled normal, which the teachers' memory is made from",
            found="none",
            do="Add some, or set the stage's losses " + ", ".join(JUDGED) + " to 0.",
        )
    some = known[evenly(len(known), recipe.teacher.fit_parts)]
    indices: list[int] = np.random.default_rng(recipe.seed).permutation(some).tolist()
    if not wanted:
        return Chosen(indices, {})
    folds = folds_by_group([parts.rows[i].part_id for i in indices], _FOLDS).tolist()
    return Chosen(indices, dict(zip(indices, folds, strict=True)))
