"""What every scorer gives: the trained student on the host and each engine on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.model_spec import ModelSpec
from edge.verdict import Verdict, verdict_of

ModelInputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Scores:
    """One sample's scores."""

    class_scores: NDArray[np.float32]  # [K], softmax over the spec's classes
    anomaly_score: float  # 0..1, the number that the decision rule judges
    anomaly_map: NDArray[np.float32]  # [h, w], 0..1
    embedding: NDArray[np.float32]  # [D]


@dataclass(frozen=True)
class Split:
    """Where one run's time went, from inputs in host memory to scores in host memory."""

    copy_ms: float  # inputs to where the engine reads them, outputs back from where it wrote
    compute_ms: float  # the model itself
    wait_ms: float | None  # launching and synchronising; None: it is part of compute_ms


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


class Engine(Scorer, Protocol):
    """A scorer of the device: it takes batches, has a name, and knows where its time goes."""

    @property
    def name(self) -> str:
        """What an inspection reports, such as "tensorrt 10.3.0 int8"."""
        ...

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]:
        """Score up to `spec.batch` samples in one run. One caller at a time."""
        ...

    def split(self, several: Sequence[ModelInputs]) -> Split:
        """Run once more and say where the time went. Slower than `score_batch`: it looks."""
        ...

    def __enter__(self) -> Engine: ...


def scores_from_outputs(outputs: Mapping[str, NDArray[Any]], row: int = 0) -> Scores:
    """Copy one sample out of the model's named output tensors (see `ModelSpec.outputs`)."""
    return Scores(
        class_scores=np.array(outputs["class_scores"][row], dtype=np.float32),
        anomaly_score=float(outputs["anomaly_score"][row]),
        anomaly_map=np.array(outputs["anomaly_map"][row], dtype=np.float32),
        embedding=np.array(outputs["embedding"][row], dtype=np.float32),
    )


def verdict_from(scores: Scores, inputs: ModelInputs, spec: ModelSpec) -> Verdict:
    """Judge scores by the spec's rule; `inputs` tell whether the sensor was there."""
    assert spec.rule is not None
    return verdict_of(
        scores.anomaly_score,
        [float(score) for score in scores.class_scores],
        spec.classes,
        spec.rule,
        sensor_present="present" in inputs and bool(inputs["present"][0, 1]),
    )
