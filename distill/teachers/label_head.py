"""What the teacher says of each labelled part, by a head that never saw that part.

Logistic regression on the teacher's summary of image and sensor, fitted on other parts: honest
soft labels. Shapes: N parts, F features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distill.dataset import folds_by_group

_FOLDS = 5
_INVERSE_REGULARISATION = 0.05  # features are many and correlated, parts are few


def held_out_probabilities(
    features_NF: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    groups: Sequence[str],
    classes: int,
) -> NDArray[np.float32]:
    """Return [N, K]: each part's class probabilities by a head fitted without its group.

    The label stands where the rest of the parts knows one class only, so that no head can be
    fitted, and where it does not know the part's own class, of which it could only say no.
    """
    soft_NK = np.eye(classes, dtype=np.float32)[labels_N]
    folds = folds_by_group(groups, min(_FOLDS, max(2, len(set(groups)))))
    for fold in np.unique(folds):
        rest = folds != fold
        known = np.unique(labels_N[rest])
        held = (folds == fold) & np.isin(labels_N, known)
        if len(known) < 2 or not held.any():
            continue
        soft_NK[held] = _probabilities(
            features_NF[held], features_NF[rest], labels_N[rest], classes
        )
    return soft_NK


def probabilities_by_labelled(
    features_NF: NDArray[np.float32],
    labelled_NF: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    classes: int,
) -> NDArray[np.float32]:
    """Return [N, K] for unlabelled parts, by one head fitted on all labelled ones.

    nan where the labelled ones are of one class only.
    """
    if len(np.unique(labels_N)) < 2 or not len(features_NF):
        return np.full((len(features_NF), classes), np.nan, np.float32)
    return _probabilities(features_NF, labelled_NF, labels_N, classes)


def _probabilities(
    features_NF: NDArray[np.float32],
    labelled_NF: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    classes: int,
) -> NDArray[np.float32]:
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=300)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(labelled_NF, labels_N)
    soft_NK = np.zeros((len(features_NF), classes), np.float32)
    soft_NK[:, head.classes_] = head.predict_proba(features_NF)
    return soft_NK
