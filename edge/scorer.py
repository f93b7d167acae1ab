"""What every scorer gives: the trained student on the host and each engine on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.model_spec import ModelSpec

ModelInputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Scores:
    """One sample's scores."""

    class_scores: NDArray[np.float32]  # [K], softmax over the spec's classes
    anomaly_score: float  # 0..1, the number that the decision rule judges
    anomaly_map: NDArray[np.float32]  # [h, w], 0..1
    embedding: NDArray[np.float32]  # [D]


class Scorer(Protocol):
    """Something that scores samples. Use it as a context manager: leaving it frees the engine."""

    @property
    def spec(self) -> ModelSpec:
        """The contract of the model behind this scorer."""
        ...

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample; `inputs` comes from `edge.prepare.model_inputs` (batch of 1)."""
        ...

    def __enter__(self) -> Scorer: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def scores_from_outputs(outputs: Mapping[str, NDArray[Any]], row: int = 0) -> Scores:
    """Take one sample of the model's named output tensors (see `ModelSpec.outputs`)."""
    return Scores(
        class_scores=np.asarray(outputs["class_scores"][row], dtype=np.float32),
        anomaly_score=float(outputs["anomaly_score"][row]),
        anomaly_map=np.asarray(outputs["anomaly_map"][row], dtype=np.float32),
        embedding=np.asarray(outputs["embedding"][row], dtype=np.float32),
    )
