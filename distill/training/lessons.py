"""What each part of a batch is asked for, by what is known of it and what is shown of it.

With labelled defects the labels lead; else the teachers' word on what is shown. A label is of the
whole part: its defect may not show in the one modality that is left. Insisting on it would teach
the student to remember parts, so where something is withheld the teachers say instead what can be
known from the rest. An unlabelled part learns from the teachers alone. Where no teacher is asked
at all, the labels stand for every view, for there is nobody else.

Shapes: B batch, b piece of it, G cells, F teacher features, K classes, N parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.augment.copies import BROKEN_IMAGE, BROKEN_SENSOR, Copies
from distill.dataset import UNKNOWN
from distill.recipe import Recipe, Stage
from distill.targets.asked import labels_alone
from distill.targets.opened import StoredPixels, Targets
from distill.training.drawn import Drawn
from distill.training.losses import Lesson

_ALL, _IMAGE_ALONE, _SENSOR_ALONE = range(3)

Floats = NDArray[np.float32]


class _Known(NamedTuple):
    """What is asked of a whole batch, and the weights, as shares of it; large targets apart."""

    label_B: NDArray[np.int64]
    label_weight_B: Floats
    soft_BK: Floats
    soft_weight_B: Floats
    score_B: Floats
    score_weight_B: Floats
    map_weight_B: Floats
    seen_weight_B: Floats
    window_weight_B: Floats


@dataclass(frozen=True)
class Lessons:
    """The lessons of a stage's parts."""

    copies: Copies
    targets: Targets
    recipe: Recipe
    stage: Stage

    def of(self, drawn: Drawn, mine: slice, factor: float) -> Lesson:
        """Return the lesson of the parts `mine` of a batch, the weights times `factor`."""
        known = self._known_of(*drawn)
        rounds_b, parts_b, shown_b2 = (
            drawn.rounds_B[mine],
            drawn.parts_B[mine],
            drawn.shown_B2[mine],
        )
        spec, targets = self.copies.parts.spec, self.targets
        map_bG = np.nan_to_num(np.asarray(targets.map[rounds_b, parts_b], np.float32))
        return Lesson(
            label_B=torch.from_numpy(known.label_B[mine]),
            label_weight_B=_weights(known.label_weight_B[mine], factor),
            soft_BK=torch.from_numpy(known.soft_BK[mine]),
            soft_weight_B=_weights(known.soft_weight_B[mine], factor),
            score_B=torch.from_numpy(known.score_B[mine]),
            score_weight_B=_weights(known.score_weight_B[mine], factor),
            map_Bhw=torch.from_numpy(map_bG).reshape(-1, spec.map_height, spec.map_width),
            map_weight_B=_weights(known.map_weight_B[mine], factor),
            features=self._by_teachers(targets.features, rounds_b, parts_b, map_bG.shape[1]),
            summaries=self._by_teachers(targets.summaries, rounds_b, parts_b),
            seen_weight_B=_weights(known.seen_weight_B[mine], factor),
            window_BF=None
            if targets.window is None
            else rows_of(targets.window, rounds_b, parts_b).nan_to_num(),
            window_weight_B=_weights(known.window_weight_B[mine], factor),
            present_B2=torch.from_numpy(shown_b2.copy()),
        )

    def parts_with_one(self) -> NDArray[np.int64]:
        """Return the parts that the stage's losses can teach from, shown as they were taken."""
        parts = self.copies.parts
        all_N = np.arange(len(parts))
        shown_N2 = np.stack([np.ones(len(parts)), parts.windows_N], 1).astype(np.float32)
        known = self._known_of(all_N, np.zeros_like(all_N), shown_N2)
        loss = self.stage.loss
        weights = (
            loss.labels * known.label_weight_B,
            loss.soft_labels * known.soft_weight_B,
            loss.score * known.score_weight_B,
            loss.map * known.map_weight_B,
            max(loss.features, loss.summary) * known.seen_weight_B,
            loss.window * known.window_weight_B,
        )
        return np.flatnonzero(np.sum(weights, 0) > 0.0)

    def _by_teachers(
        self,
        arrays: tuple[NDArray[np.float16], ...],
        rounds_b: NDArray[np.int64],
        parts_b: NDArray[np.int64],
        *cells: int,
    ) -> tuple[Tensor, ...]:
        """Return each teacher's values; zeros that take no memory where no loss asks for them."""
        if arrays:
            return tuple(rows_of(array, rounds_b, parts_b) for array in arrays)
        shape = (len(parts_b), *cells, self.recipe.teacher.feature_size)
        return tuple(torch.zeros(()).expand(shape) for _ in self.stage.backbones)

    def _known_of(
        self, parts_B: NDArray[np.int64], rounds_B: NDArray[np.int64], shown_B2: Floats
    ) -> _Known:
        parts, loss = self.copies.parts, self.stage.loss
        broken_B = self._broken(parts_B, rounds_B, shown_B2)
        view_B = _view_of(shown_B2) if parts.spec.sensor else np.zeros(len(parts_B), np.int64)
        soft = self.targets.soft_labels  # of each copy, or of the originals alone
        soft_BK = np.asarray(soft[view_B, np.minimum(rounds_B, soft.shape[1] - 1), parts_B])
        has_soft_B = np.isfinite(soft_BK).all(1) & ~broken_B
        label_B = np.where(broken_B, UNKNOWN, parts.labels_N[parts_B])
        whole_B = (shown_B2[:, 0] > 0) & ((shown_B2[:, 1] > 0) | ~parts.sensed_N[parts_B])
        class_share_B = self._class_share(whole_B, has_soft_B, label_B)
        label_weight_B = np.where(label_B == UNKNOWN, 0.0, 1.0 - class_share_B)
        soft_weight_B = np.where(has_soft_B, class_share_B, 0.0)
        asked_B = bool(loss.labels) * label_weight_B + bool(loss.soft_labels) * soft_weight_B > 0
        each = 1.0 / max(1, int(asked_B.sum()))
        scored_B = _normal_by_scores(shown_B2, np.asarray(self.targets.scores[rounds_B, parts_B]))
        # Heads know what is wrong, memories only what is strange; a run knows both.
        by_heads_B = has_soft_B & (not self.stage.runs)
        taught_B = np.where(by_heads_B, soft_BK[:, 0], scored_B)
        score_B, score_known_B = self._score(parts_B, whole_B, taught_B, broken_B)
        map_known_B = ~np.isnan(self.targets.map[rounds_B, parts_B, 0])
        window = self.targets.window
        window_known_B = False if window is None else ~np.isnan(window[rounds_B, parts_B, 0])
        taught = 0.0 if labels_alone(self.recipe, self.stage) else 1.0
        return _Known(
            label_B=label_B,
            label_weight_B=np.asarray(label_weight_B * each, np.float32),
            soft_BK=np.nan_to_num(soft_BK),
            soft_weight_B=np.asarray(soft_weight_B * each, np.float32),
            score_B=score_B,
            score_weight_B=_shares(score_known_B),
            map_weight_B=_shares(shown_B2[:, 0] * map_known_B),
            seen_weight_B=_shares(shown_B2[:, 0] * taught),
            window_weight_B=_shares(shown_B2[:, 1] * window_known_B),
        )

    def _class_share(
        self,
        whole_B: NDArray[np.bool_],
        has_soft_B: NDArray[np.bool_],
        label_B: NDArray[np.int64],
    ) -> Floats:
        """Return the teachers' share [B] of what is asked about classes."""
        if labels_alone(self.recipe, self.stage) or not self.copies.parts.has_defects:
            return np.zeros(len(whole_B), np.float32)
        share = np.where(has_soft_B, self.recipe.targets.teacher_share, 0.0)
        share_B = np.where(whole_B, share, 1.0)
        return np.asarray(np.where(label_B == UNKNOWN, 1.0, share_B), np.float32)

    def _score(
        self,
        parts_B: NDArray[np.int64],
        whole_B: NDArray[np.bool_],
        taught_B: Floats,
        broken_B: NDArray[np.bool_],
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the probability [B] that the part is not normal, and where it is known.

        What a person says and what the teachers say (`taught_B`: that it is normal) are mixed as
        the classes are. Where only one of the two has a word, it stands; but nobody insists on a
        person's word for a part of which something is withheld.
        """
        parts, alone = self.copies.parts, labels_alone(self.recipe, self.stage)
        person_B = np.where(broken_B, 0.0, parts.normal_N[parts_B]).astype(np.float32)
        share_B = np.full(len(parts_B), 0.0 if alone else 1.0, np.float32)
        if parts.has_defects and not alone:
            share_B[whole_B] = self.recipe.targets.teacher_share
        share_B[broken_B | (np.isnan(taught_B) & (share_B < 1.0))] = 0.0
        share_B[np.isnan(person_B)] = 0.0 if alone else 1.0
        said_B = (np.float32(1.0) - share_B) * np.nan_to_num(person_B)
        normal_B = said_B + share_B * np.nan_to_num(taught_B)
        known_B = np.where(share_B > 0.0, ~np.isnan(taught_B), ~np.isnan(person_B))
        return np.clip(1.0 - normal_B, 0.0, 1.0).astype(np.float32), known_B

    def _broken(
        self, parts_B: NDArray[np.int64], rounds_B: NDArray[np.int64], shown_B2: Floats
    ) -> NDArray[np.bool_]:
        """Tell of which parts a made defect is shown."""
        flags_B = np.array(
            [
                self.copies.broken(int(part), int(number))
                for part, number in zip(parts_B, rounds_B, strict=True)
            ],
            dtype=np.int64,
        )
        image_B = (flags_B & BROKEN_IMAGE > 0) & (shown_B2[:, 0] > 0)
        sensor_B = (flags_B & BROKEN_SENSOR > 0) & (shown_B2[:, 1] > 0)
        return np.asarray(image_B | sensor_B)


def rows_of(
    array: NDArray[Any] | StoredPixels, rounds_b: NDArray[np.int64], parts_b: NDArray[np.int64]
) -> Tensor:
    """Read rows [b, ...] of a mapped array as float32, in the order in which they lie."""
    first = array[rounds_b[0], parts_b[0]]
    rows = np.empty((len(parts_b), *first.shape), first.dtype)
    for place in np.lexsort((parts_b, rounds_b)):
        rows[place] = array[rounds_b[place], parts_b[place]]
    return torch.from_numpy(rows).float()  # torch turns half into single 40 times as fast as numpy


def _normal_by_scores(shown_B2: Floats, scores_B3: Floats) -> Floats:
    """Return the probability [B] that all that is shown, and judged, is normal; nan if none is.

    Where nobody judged the two together, they count as independent of each other.
    """
    scores_B2, both_B = scores_B3[:, :2], scores_B3[:, 2]
    judged_B2 = (shown_B2 > 0.0) & np.isfinite(scores_B2)
    normal_B2 = np.where(judged_B2, np.float32(1.0) - scores_B2, np.float32(1.0))
    joined_B = np.where(judged_B2.any(1), normal_B2[:, 0] * normal_B2[:, 1], np.nan)
    together_B = (shown_B2 > 0.0).all(1) & np.isfinite(both_B)
    return np.asarray(np.where(together_B, 1.0 - both_B, joined_B), np.float32)


def _view_of(shown_B2: Floats) -> NDArray[np.int64]:
    """Return which of the teachers' views [B] fits what is shown (see `targets`)."""
    image_B, sensor_B = shown_B2[:, 0] > 0, shown_B2[:, 1] > 0
    return np.where(image_B & sensor_B, _ALL, np.where(image_B, _IMAGE_ALONE, _SENSOR_ALONE))


def _shares(asked_B: NDArray[Any]) -> Floats:
    """Return each part's share of those that are asked."""
    weight_B = np.asarray(asked_B, np.float32)
    return np.asarray(weight_B / max(1.0, float(weight_B.sum())), np.float32)


def _weights(share_b: Floats, factor: float) -> Tensor:
    return torch.from_numpy(share_b * np.float32(factor))
