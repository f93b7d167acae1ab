"""The watch: once a second it says how the loop is doing, and it says when the loop cannot go on.

ready      every source plays, the pace is held, the disk takes what it is given
degraded   the loop works, but not as it was asked to; the reason says what is missing
failed     it cannot work: the process ends with status 3, and systemd starts it again
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Thread

from device_agents import notify
from device_agents.inspector.capture import Capture
from device_agents.inspector.counts import Counts
from device_agents.inspector.frame_queue import FrameQueue
from device_agents.inspector.judge import Judge
from device_agents.inspector.latency import LastMinute
from device_agents.inspector.pulse import Pulse
from device_agents.inspector.recorder import THREAD as RECORDER
from device_agents.inspector.recorder import Recorder
from device_agents.outbox.writer import Outbox
from device_agents.status import write_status
from edge.errors import MachineError
from edge.messages import InspectorHealth

LEAST_PERIOD_S = 10  # over which the pace is looked at
_TICK_S = 0.25
_STATUS_EVERY_S = 1.0
_REPORT_EVERY_S = 10.0
_STOP_GRACE_S = 2.0  # for a source that does not see that it shall stop

log = logging.getLogger("inspector")


@dataclass(frozen=True)
class Patience:
    """How long each thing may be wrong before the loop gives up."""

    sources_s: float = 10.0  # every source down
    disk_s: float = 60.0  # the disk takes no record
    engine_failures: int = 5  # in a row
    stuck_s: float = 30.0  # a thread does not move


PATIENCE = Patience()


class RateRule:
    """Whether the asked rate is held, with hysteresis over a stated period.

    The period is 10 s, or as long as 20 parts take, at most 59 s. Behind: more than 5 % of the
    asked parts were not inspected in it. Held again: less than 2 %. One part more or less never
    counts, so that a slow line does not flicker.
    """

    def __init__(self) -> None:
        self._asked: float | None = None
        self._since_s = 0.0
        self._behind = False

    def see(self, asked: float | None, parts_in: Callable[[int], int], now_s: float) -> str:
        """Return in words that the rate is not held, or ""."""
        if asked != self._asked:
            self._asked, self._since_s, self._behind = asked, now_s, False
        if not asked:
            return ""
        period_s = min(59, max(LEAST_PERIOD_S, math.ceil(20 / asked)))
        if now_s - self._since_s < period_s + 1:
            return ""
        inspected, wanted = parts_in(period_s), asked * period_s
        missing = wanted - inspected - 1
        self._behind = missing > wanted * (0.02 if self._behind else 0.05)
        rate = inspected / period_s
        return f"asked for {asked:.4g} parts/s, inspects {rate:.3g}" if self._behind else ""


@dataclass(frozen=True)
class Loop:
    """What the loop is made of, for who looks at it."""

    captures: Sequence[Capture]
    queue: FrameQueue
    judge: Judge
    verdicts: LastMinute  # frame in memory to verdict, of the parts that were judged
    recorder: Recorder
    outbox: Outbox
    counts: Counts
    pulse: Pulse


class Watch:
    """Looks at everything, owns nothing; `run` is the thread's whole life."""

    def __init__(self, loop: Loop, patience: Patience) -> None:
        self._loop = loop
        self._captures = loop.captures
        self._pulse = loop.pulse
        self._patience = patience
        self._rate_rule = RateRule()
        self._ready_s = time.monotonic()
        self._sources_down_s: float | None = None
        self._stopped_s: float | None = None
        self._watchdog_every_s = notify.watchdog_every_s()
        self._said = ""

    def run(self, ended: Event) -> None:
        """Watch until `ended`."""
        status_s = report_s = fed_s = time.monotonic()
        while not ended.wait(_TICK_S):
            now_s = time.monotonic()
            self._look_for_the_end(now_s)
            if self._watchdog_every_s and now_s - fed_s >= self._watchdog_every_s:
                # Each thread must have moved since the last time: one that hangs starves it.
                if not self._pulse.still(fed_s):
                    notify.watchdog()
                fed_s = now_s
            if now_s - status_s >= _STATUS_EVERY_S:
                status_s = now_s
                self.tell(self.health(now_s))
            if now_s - report_s >= _REPORT_EVERY_S:
                report_s = now_s
                log.info("%s", counters_text(self._loop.outbox))

    def health(self, now_s: float) -> InspectorHealth:
        """Compose how the loop is doing."""
        reasons = self._reasons(now_s)
        fatal = self._pulse.fatal
        state = "failed" if fatal else "degraded" if reasons else "ready"
        whole_s = max(1, min(59, int(now_s) - int(self._ready_s)))
        return InspectorHealth(
            state=state,  # type: ignore[arg-type]
            reason=str(fatal) if fatal else "; ".join(reasons),
            sources={c.source.name: c.state(now_s) for c in self._captures},
            engine=self._loop.judge.engine_name,
            bundle_digest=self._loop.judge.bundle_digest,
            asked_parts_per_second=self._asked(now_s),
            parts_per_second=round(self._loop.verdicts.parts_in(whole_s) / whole_s, 2),
            latency=self._loop.verdicts.percentiles(),
            durable=self._loop.recorder.durable.percentiles(),
            queue_depth=self._loop.queue.depth,
            queue_room=self._loop.queue.room,
            drift=self._loop.judge.drift,
            last_inspection_at=self._loop.recorder.last_inspection_at,
        )

    def tell(self, health: InspectorHealth) -> None:
        """Write the status file, tell systemd, and log a change of state."""
        said = f"{health.state}: {health.reason}" if health.reason else health.state
        notify.status(f"{said}; {health.parts_per_second:g} parts/s{self._awaited()}")
        # The figures in a reason change all the time: the state and its kind make the line.
        kind = "".join(sign for sign in said if not sign.isdigit() and sign != ".")
        if kind != self._said:
            self._said = kind
            calm = health.state in ("ready", "stopped")
            log.log(logging.INFO if calm else logging.WARNING, "%s", said)
        try:
            write_status(self._loop.outbox.path, health)
        except OSError:
            self._loop.counts.count("status_not_written")

    def _awaited(self) -> str:
        """Name the sources that play but gave nothing yet: `ready` does not wait for a camera."""
        names = [c.source.name for c in self._captures if not (c.begun or c.fault or c.ended)]
        return f"; waiting for the first frame of {', '.join(names)}" if names else ""

    def _reasons(self, now_s: float) -> list[str]:
        reasons = [
            f"source {c.source.name}: {c.state(now_s)}"
            for c in self._captures
            if not c.is_well(now_s)
        ]
        if slow := self._rate_rule.see(self._asked(now_s), self._loop.verdicts.parts_in, now_s):
            reasons.append(slow)
        if self._loop.judge.engine_failures:
            reasons.append(self._loop.judge.engine_fault)
        refused_s = self._loop.recorder.refused_since_s
        if refused_s is not None:
            refused = f"the disk takes no record for {now_s - refused_s:.0f} s"
            reasons.append(f"{refused}: {self._loop.outbox.fault}")
        return reasons

    def _asked(self, now_s: float) -> float | None:
        rates = [
            c.source.parts_per_second
            for c in self._captures
            if not c.ended and c.source.parts_per_second and c.is_well(now_s)
        ]
        return sum(rates) if rates else None

    def _look_for_the_end(self, now_s: float) -> None:
        """Give up where something was wrong for longer than there is patience."""
        patience, pulse = self._patience, self._pulse
        if pulse.stop.is_set():
            self._stopped_s = self._stopped_s or now_s
            if now_s - self._stopped_s > _STOP_GRACE_S:
                self._loop.queue.close()  # a source that hangs must not keep the loop from its end
        alive = [c for c in self._captures if not c.ended]
        down = bool(alive) and not any(c.is_well(now_s) for c in alive)
        self._sources_down_s = (self._sources_down_s or now_s) if down else None
        if self._sources_down_s and now_s - self._sources_down_s > patience.sources_s:
            wrong = "; ".join(f"{c.source.name}: {c.state(now_s)}" for c in alive)
            self._give_up("sources", "a source that gives frames", wrong)
        refused_s = self._loop.recorder.refused_since_s
        if refused_s is not None and now_s - refused_s > patience.disk_s:
            fault = self._loop.outbox.fault
            found = f"none taken for {now_s - refused_s:.0f} s: {fault}"
            self._give_up(str(self._loop.outbox.path), "a disk that takes records", found)
        if stuck := pulse.still(now_s - patience.stuck_s):
            found = f"{', '.join(stuck)} not moving for {patience.stuck_s:g} s"
            self._give_up("the loop", "threads that move", found)
            if RECORDER in stuck:
                self._leave_at_once(now_s)

    def _give_up(self, where: str, expected: str, found: str) -> None:
        if self._pulse.fatal is None:
            self._pulse.give_up(
                MachineError(
                    where=where,
                    expected=expected,
                    found=found,
                    do="`edge doctor` checks each part of the station; systemd tries again.",
                )
            )
            log.error("failed: %s", self._pulse.fatal)

    def _leave_at_once(self, now_s: float) -> None:
        """End the process from here: the thread that should end it hangs in the disk."""
        # The status lies on the same disk, so writing it may hang as well.
        last_word = Thread(target=self.tell, args=(self.health(now_s),), daemon=True)
        last_word.start()
        last_word.join(1.0)
        os._exit(MachineError.exit_status)


def counters_text(outbox: Outbox) -> str:
    """Write the outbox's counters as one line for the log."""
    counters = ", ".join(f"{name} {value}" for name, value in sorted(dict(outbox.counters).items()))
    return f"{counters or 'nothing inspected'}; {outbox.depth} in the outbox"
