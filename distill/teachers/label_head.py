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

    Where the rest of the parts knows one class only, no head can be fitted and the label stands.
    """
    soft_NK = np.eye(classes, dtype=np.float32)[labels_N]
    folds = folds_by_group(groups, min(_FOLDS, max(2, len(set(groups)))))
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        if len(np.unique(labels_N[rest])) < 2:
            continue
        head = make_pipeline(
            StandardScaler(), LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=300)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            head.fit(features_NF[rest], labels_N[rest])
        soft_NK[held] = 0.0
        soft_NK[np.ix_(held, head.classes_)] = head.predict_proba(features_NF[held])
    return soft_NK
