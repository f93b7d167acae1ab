"""`edge replay`: walk a recording through the device's own path and print the inspections."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.numbers import at_least_one, threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.messages import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge replay`."""
    parser.add_argument("recording", type=Path, metavar="REC")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--split", help="only this split of the recording")
    parser.add_argument("--form", help="default: the one that `edge export` chose")
    parser.add_argument(
        "--provider", default="cpu", help="cpu (the default), cuda, tensorrt, tensorrt_rtx"
    )
    parser.add_argument("--plan", type=Path, help="the plan that a provider of TensorRT runs")
    parser.add_argument(
        "--threads", type=threads, help="of onnxruntime (default: one core is left free)"
    )
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="stop after N parts")
    parser.add_argument("--realtime", action="store_true", help="at the recording's own pace")
    parser.add_argument("--jsonl", action="store_true", help="one inspection a line, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print one line per part to stdout, and the counts at the end to stderr."""
    import uuid
    from itertools import islice
    from threading import Event

    from device_agents.engine.load import engine_from_bundle
    from device_agents.inspector.frame_queue import Part
    from device_agents.inspector.judge import Identity, inspection_of, judge_of
    from device_agents.sources.playback import Playback
    from device_agents.station import Source
    from edge.bundle import Bundle
    from edge.messages import encode
    from edge.prepare import resized_text
    from edge.topics import StationId

    bundle = Bundle.open(arguments.bundle)
    source = Source(recording=str(arguments.recording), split=arguments.split)
    playback = Playback(source, bundle.manifest.spec, paced=arguments.realtime)
    desk, epoch = StationId("desk", "replay", "replay", "replay"), str(uuid.uuid4())
    tally = Tally()
    with engine_from_bundle(
        *(bundle, arguments.provider),
        form=arguments.form,
        threads=arguments.threads,
        plan=arguments.plan,
    ) as engine:
        judge = judge_of(bundle, engine)
        pace = f"{playback.parts_per_second:g} parts/s" if arguments.realtime else "full speed"
        print(f"{len(playback)} parts at {pace} through {engine.name}", file=sys.stderr)
        parts = islice(playback.parts(Event()), arguments.limit)
        for sequence, (shot, reading) in enumerate(parts, start=1):
            who = Identity(desk, epoch, sequence)
            part = Part(shot, reading, playback.tolerance_ms, playback.period_ms)
            judgement = judge.judge([part])[0]
            inspection = inspection_of(shot, judgement, judge, who)
            tally.take(inspection, resized=judgement.resized)
            print(encode(inspection).decode() if arguments.jsonl else line_of(inspection))
    print(tally.text(), file=sys.stderr)
    if tally.resized:
        frames = sum(tally.decisions.values())
        print(f"note: {resized_text(tally.resized, frames, judge.spec)}", file=sys.stderr)
    return 0


@dataclass
class Tally:
    """Counts by decision, and the milliseconds of each judged part."""

    decisions: Counter[str] = field(default_factory=Counter)
    infer_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    resized: int = 0

    def take(self, inspection: Inspection, *, resized: bool = False) -> None:
        """Count one inspection; an invalid one took no inference and has no latency."""
        self.resized += resized
        self.decisions[inspection.decision] += 1
        if inspection.decision != "invalid":
            self.infer_ms.append(inspection.timings.infer_ms)
            self.total_ms.append(inspection.timings.total_ms)

    def text(self) -> str:
        """Write both as one line."""
        counts = ", ".join(f"{self.decisions[name]} {name}" for name in ("pass", "fail", "invalid"))
        if not self.total_ms:
            return f"{counts}; nothing was judged"
        return (
            f"{counts}; total p50 {percentile(self.total_ms, 50):.2f} ms, "
            f"p99 {percentile(self.total_ms, 99):.2f} ms; "
            f"inference p50 {percentile(self.infer_ms, 50):.2f} ms, "
            f"p99 {percentile(self.infer_ms, 99):.2f} ms"
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed."""
    import math

    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def line_of(inspection: Inspection) -> str:
    """Write one inspection for people: decision, sample, score against threshold, label, time."""
    score = "-" if inspection.anomaly_score is None else f"{inspection.anomaly_score:.4f}"
    remark = f"  ({inspection.reason})" if inspection.reason else ""
    return (
        f"{inspection.decision.upper():7} {inspection.sample_id:32} "
        f"score {score:>6} / {inspection.threshold:.4f}  {inspection.label:16} "
        f"{inspection.timings.total_ms:7.2f} ms{remark}"
    )
