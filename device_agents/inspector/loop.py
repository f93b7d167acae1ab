r"""The inspector: from a shot to a durable record. It knows no network and waits for none.

    capture, a thread per source -> FrameQueue -> inference -> Recorder -> outbox
                                                                  \-> Keeping -> pictures

Capture, inference, recording and the keeping of pictures overlap; each queue between them has a
size and says what happens when it is full. A part that may not be judged becomes an inspection
too: decision `invalid`, with its reason, counted, never a pass; and the loop goes on.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

import msgspec

from device_agents import notify
from device_agents.engine.load import engine_from_bundle
from device_agents.inspector.capture import Capture
from device_agents.inspector.counts import Counts
from device_agents.inspector.frame_queue import FrameQueue, Part
from device_agents.inspector.judge import Identity, Judge, Judgement, inspection_of, judge_of
from device_agents.inspector.keeping import Keeping
from device_agents.inspector.latency import LastMinute
from device_agents.inspector.pulse import IDLE_S, Pulse
from device_agents.inspector.recorder import Record, Recorder
from device_agents.inspector.watch import PATIENCE, Loop, Patience, Watch, counters_text
from device_agents.outbox.kept import KeptPictures, why_keep
from device_agents.outbox.kept_part import KeptPart
from device_agents.outbox.writer import Outbox
from device_agents.parts import PartSource
from device_agents.sources.choice import source_from
from device_agents.station import StationFile
from device_agents.status import write_status
from edge.bundle import Bundle
from edge.errors import EdgeError, MachineError
from edge.messages import Inspection, InspectorHealth

_INFERENCE = "inference"
_JOIN_S, _JOIN_STUCK_S = 2.0, 0.5

log = logging.getLogger("inspector")


def run_inspector(
    station: StationFile, stop: Event, patience: Patience = PATIENCE
) -> dict[str, int]:
    """Inspect until the sources end or `stop` is set; return the outbox's counters.

    Raises MachineError when it cannot work: every source down, the engine failing, the disk
    taking nothing, a thread that hangs.
    """
    model, limits = station.model, station.outbox
    path = Path(limits.path)
    with Outbox.open(path, max_rows=limits.max_rows, max_bytes=limits.max_bytes) as outbox:
        with _failure_told(path):
            _write_state(path, InspectorHealth(state="starting"))
            bundle = Bundle.open(Path(model.bundle))
            sources = [
                source_from(name, source, bundle.manifest.spec, paced=True)
                for name, source in station.all_sources().items()
            ]
            engine = engine_from_bundle(
                *(bundle, model.provider),
                form=model.form,
                threads=model.threads,
                plan=model.plan,
                cuda_graph=model.cuda_graph,
            )
            judge = judge_of(bundle, engine)
            if bundle.manifest.reference is None:
                log.warning("the bundle has no reference: drift is not seen; export it again")
        with engine:
            pictures = KeptPictures.open(path, station.pictures)
            Inspector(
                *(station, sources, judge, outbox, stop), pictures=pictures, patience=patience
            ).run()
        log.info("stopped: %s", counters_text(outbox))
        return dict(outbox.counters)


class Inspector:
    """The loop's threads and what lies between them. `run` is its whole life."""

    def __init__(  # noqa: PLR0913  what is of the outside is given: tests and benchmarks choose
        self,
        station: StationFile,
        sources: Sequence[PartSource],
        judge: Judge,
        outbox: Outbox,
        stop: Event,
        *,
        pictures: KeptPictures | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._station = station
        self._judge = judge
        self._patience = patience
        self._outbox = outbox
        self._pulse = Pulse(stop)
        self._counts = Counts()
        self._queue = FrameQueue(station.loop.queue, self._counts)
        self._captures = [Capture(s, self._queue, self._counts, self._pulse) for s in sources]
        self._verdicts = LastMinute()  # frame in memory to verdict
        self.recorder = Recorder(outbox, self._counts, self._pulse, station.loop.budget_ms)
        self._keeping = Keeping(pictures, self._counts, self._pulse)
        self._nobody = Identity(station.station, "", 0)  # the recorder numbers
        loop = Loop(
            self._captures,
            self._queue,
            judge,
            self._verdicts,
            self.recorder,
            outbox,
            self._counts,
            self._pulse,
        )
        self.watch = Watch(loop, patience)

    def run(self) -> None:
        """Inspect until the sources end or stop; the calling thread is the recorder."""
        settle()
        ended = Event()
        capturing = [_thread(f"capture {c.source.name}", self._capture, c) for c in self._captures]
        inferring = _thread(_INFERENCE, self._infer)
        keeping = _thread("pictures", self._guarded, self._keeping.run)
        watching = _thread("watch", self._guarded, self.watch.run, ended)
        log.info(
            "outbox %s, epoch %s, next %d",
            *(self._outbox.path, self._outbox.epoch, self._outbox.next_sequence),
        )
        self.watch.tell(self.watch.health(time.monotonic()))
        for thread in (inferring, keeping, watching, *capturing):
            thread.start()
        log.info("ready: %s, %s", self._judge.engine_name, _pace_of(self._captures))
        notify.ready()
        self._guarded(self.recorder.run)
        notify.stopping()
        self._pulse.stop.set()
        self._keeping.close()
        for thread in (*capturing, inferring, keeping):
            thread.join(_JOIN_S if self._pulse.fatal is None else _JOIN_STUCK_S)
        self._counts.count("dropped_at_stop", self._queue.depth)
        self.recorder.take_counts()
        ended.set()
        watching.join(_JOIN_S)
        last = self.watch.health(time.monotonic())
        if self._pulse.fatal is not None:
            self.watch.tell(last)
            raise self._pulse.fatal
        self.watch.tell(msgspec.structs.replace(last, state="stopped", reason=""))

    def _capture(self, capture: Capture) -> None:
        self._guarded(capture.run)
        if all(other.ended for other in self._captures):
            self._queue.close()

    def _infer(self) -> None:
        self._guarded(self._judge_parts)
        self._pulse.end(_INFERENCE)
        self.recorder.queue.close()

    def _judge_parts(self) -> None:
        """The inference thread: what waits is judged, what is judged goes to the recorder."""
        judge, batch = self._judge, self._judge.spec.batch
        deadline_s = self._station.loop.deadline_ms / 1e3

        def beat() -> None:
            self._pulse.beat(_INFERENCE)

        while True:
            beat()
            # No batch waits for more parts than there are sources that could send one.
            fill = min(batch, sum(not capture.ended for capture in self._captures))
            taken = self._queue.take(batch, fill, deadline_s, IDLE_S)
            if taken is None:
                return
            records = [self._record_of(p, judge.too_late_for(p)) for p in taken.overdue]
            judged = judge.judge(taken.parts) if taken.parts else []
            records += [self._judged(*each) for each in zip(taken.parts, judged, strict=True)]
            if records:
                self.recorder.queue.put(records, beat)
            if judge.engine_failures >= self._patience.engine_failures:
                self._pulse.give_up(_engine_failed(judge))

    def _judged(self, part: Part, judgement: Judgement) -> Record:
        self._verdicts.take((time.monotonic() - part.shot.in_memory_s) * 1e3)
        return self._record_of(part, judgement)

    def _record_of(self, part: Part, judgement: Judgement) -> Record:
        if part.shot.late_ms > 0:
            self._counts.raise_to("late_max_ms", math.ceil(part.shot.late_ms))
        draft = inspection_of(part.shot, judgement, self._judge, self._nobody)
        return Record(
            *(draft, part.shot.in_memory_s, _counted(part, judgement)),
            after=self._picture_of(part, judgement, draft),
        )

    def _picture_of(
        self, part: Part, judgement: Judgement, draft: Inspection
    ) -> Callable[[Inspection, bool], None] | None:
        """Take a place for the part's picture, where it is worth keeping and there is room."""
        frame = part.shot.frame
        why = why_keep(draft, self._station.pictures, random.random())  # noqa: S311  no secret
        if frame is None or not self._keeping.has_room_for(why):
            return None
        heat_map, window = judgement.heat_map, part.reading.window

        def after(inspection: Inspection, is_kept: bool) -> None:
            if is_kept:
                self._keeping.put(KeptPart(inspection, frame.pixels, heat_map, window, why))
            else:
                self._keeping.give_back()  # a picture without its record tells nobody anything

        return after

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """Run a thread's work; what it did not expect ends the loop, and is raised by `run`."""
        try:
            work(*arguments)
        except BaseException as error:
            self._pulse.give_up(error)


def settle() -> None:
    """Prepare this process for a steady loop, once everything is loaded and warm."""
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection walks it again


def _counted(part: Part, judgement: Judgement) -> tuple[str, ...]:
    """The counters that go up with this part's record."""
    names = ["inspected", judgement.verdict.decision]
    if judgement.kind:
        names.append(judgement.kind)
    elif judgement.missing:
        names += ["image_only", judgement.missing]
    if judgement.resized:
        names.append("frames_resized")
    if part.period_ms is not None and part.shot.late_ms > part.period_ms:
        names.append("late_frames")
    return tuple(names)


def _pace_of(captures: Sequence[Capture]) -> str:
    rates = [c.source.parts_per_second for c in captures]
    return ", ".join(
        f"{c.source.name} at {'its own pace' if rate is None else f'{rate:g} parts/s'}"
        for c, rate in zip(captures, rates, strict=True)
    )


def _engine_failed(judge: Judge) -> MachineError:
    return MachineError(
        where=judge.engine_name,
        expected="an engine that scores",
        found=f"{judge.engine_failures} failures in a row, the last: {judge.engine_fault}",
        do="`edge doctor` tries the engine; `edge verify` tells whether the bundle is whole.",
    )


def _thread(name: str, work: Callable[..., None], *arguments: object) -> Thread:
    # A daemon: a thread that hangs in a driver must not keep the process from its end.
    return Thread(target=work, args=arguments, name=name, daemon=True)


@contextlib.contextmanager
def _failure_told(path: Path) -> Iterator[None]:
    """Write into the status file why the inspector could not start."""
    try:
        yield
    except EdgeError as error:
        _write_state(path, InspectorHealth(state="failed", reason=str(error)))
        raise


def _write_state(path: Path, health: InspectorHealth) -> None:
    try:
        write_status(path, health)
    except OSError as error:
        log.warning("the status file beside %s was not written: %s", path, error)
