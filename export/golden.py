"""Golden samples: inputs that travel in the bundle together with the scores they must give.

They prove on any machine that the model there says what it said here. Scores are those of the form
that ships, on onnxruntime's CPU. Another processor or runtime rounds single int8 steps differently,
and such steps add up over the layers: the same INT8 file with onnxruntime's fusions off, so in
other kernels altogether, moved a score by at most 0.011, and its log odds by 0.09, over 478 real
samples (ballscrew, recipe tiny). `SCORE_TOLERANCE` and the distance from the threshold at which
samples are chosen are about three times that; decisions are compared exactly.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle, GoldenSample
from edge.errors import AnswerIsNo, EdgeError
from edge.model_spec import ModelSpec
from edge.prepare import model_inputs
from edge.recording.format import Recording, SampleRow
from edge.scorer import Scorer, verdict_from
from export.judge import Judged

GOLDEN_FOLDER = "golden"
GOLDEN_SAMPLES = 8
SCORE_TOLERANCE = 0.03
_PIXEL_BYTES = 32 << 20  # of all golden frames: a bundle must not become a recording
_CLEAR_LOG_ODDS = 0.25
_HEADER_BYTES = 1024  # of one array in an .npz; numpy's is 128


def write_golden(
    folder: Path,
    recording: Recording,
    rows: Sequence[SampleRow],
    shipped: Scorer,
    judged: Sequence[Judged],
) -> tuple[GoldenSample, ...]:
    """Write golden samples under `folder/golden` and return their manifest entries.

    Of large frames there are fewer, but one of each decision at least. `judged` is what `shipped`
    made of `rows`, in the same order.
    """
    (folder / GOLDEN_FOLDER).mkdir()
    golden = []
    for number, index in enumerate(_chosen(judged, _each(shipped.spec)), start=1):
        inputs = model_inputs(recording.read_sample(rows[index]), shipped.spec)
        scores = shipped.score(inputs)
        file = f"{GOLDEN_FOLDER}/{number:02d}.npz"
        arrays: dict[str, Any] = dict(inputs)
        np.savez_compressed(folder / file, **arrays)
        golden.append(
            GoldenSample(
                sample_id=rows[index].sample_id,
                file=file,
                decision=verdict_from(scores, inputs, shipped.spec).decision,
                anomaly_score=scores.anomaly_score,
                class_scores=tuple(float(score) for score in scores.class_scores),
            )
        )
    return tuple(golden)


def golden_problems(bundle: Bundle, scorer: Scorer) -> list[str]:
    """Score the bundle's golden samples again; one sentence per one that comes out otherwise."""
    problems = []
    for golden in bundle.manifest.golden:
        try:
            problem = _difference(bundle, golden, scorer)
        except EdgeError as error:
            problem = error.found
        if problem is not None:
            problems.append(f"{golden.file} ({golden.sample_id}): {problem}")
    return problems


def _each(spec: ModelSpec) -> int:
    """Return how many golden samples of each decision there may be."""
    frame_bytes = spec.takes.height * spec.takes.width * 3
    return max(1, min(GOLDEN_SAMPLES, _PIXEL_BYTES // frame_bytes) // 2)


def _chosen(judged: Sequence[Judged], each: int) -> list[int]:
    """Choose up to `each` of each decision, labels in turn, clear cases first."""
    chosen: list[int] = []
    for decision in ("pass", "fail"):
        turns: dict[str, int] = {}
        ranked = []
        for index, one in enumerate(judged):
            if one.verdict.decision == decision:
                distance = abs(_log_odds(one.score) - _log_odds(one.verdict.threshold))
                turn = turns.get(one.verdict.label, 0)
                turns[one.verdict.label] = turn + 1
                ranked.append((distance < _CLEAR_LOG_ODDS, turn, index))
        chosen += [index for _, _, index in sorted(ranked)[:each]]
    return sorted(chosen)


def _log_odds(score: float) -> float:
    """Return the log odds of a score, which stays comparable where thresholds are near 0."""
    inside = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def _difference(bundle: Bundle, golden: GoldenSample, scorer: Scorer) -> str | None:
    inputs = _inputs_from(bundle.path_of(golden.file), scorer.spec)
    scores = scorer.score(inputs)
    decision = verdict_from(scores, inputs, scorer.spec).decision
    if decision != golden.decision:
        return f"decided '{decision}' where the manifest says '{golden.decision}'"
    known = (golden.anomaly_score, *golden.class_scores)
    found = (scores.anomaly_score, *(float(score) for score in scores.class_scores))
    if len(known) != len(found):
        return f"{len(found) - 1} class scores where the manifest says {len(known) - 1}"
    distance = max(abs(k - f) for k, f in zip(known, found, strict=True))
    if not distance <= SCORE_TOLERANCE:
        return f"a score differs by {distance:.4f}, where {SCORE_TOLERANCE:g} may"
    return None


def _inputs_from(path: Path, spec: ModelSpec) -> Mapping[str, NDArray[Any]]:
    """Read an .npz of one sample's input tensors, no larger than the spec says they are."""
    wanted = {tensor.name: tensor for tensor in msgspec.structs.replace(spec, batch=1).inputs()}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
        for name, tensor in wanted.items():
            expected_bytes = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
            if sizes.get(f"{name}.npy", 0) > expected_bytes + _HEADER_BYTES:
                raise _unreadable(path, f"'{name}' is larger than the model's input")
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, str(error)) from None
    for name, tensor in wanted.items():
        if inputs[name].shape != tensor.shape or inputs[name].dtype.name != tensor.dtype:
            raise _unreadable(path, f"'{name}' is {inputs[name].dtype} {inputs[name].shape}")
    return inputs


def _unreadable(path: Path, found: str) -> AnswerIsNo:
    return AnswerIsNo(
        where=path,
        expected="a golden sample's input tensors",
        found=found,
        do="Export the bundle again.",
    )
