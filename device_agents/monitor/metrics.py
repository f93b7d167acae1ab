"""The station's figures in Prometheus' form: names, units and help texts stand here once.

All names begin with `orin_inspect_`, units are base units (seconds, bytes, hertz, ratios of 1), and
each series carries the station's place: site, area, line, station. A `_total` counts within one
`station_epoch`: a new epoch starts it at 0, which `rate()` and `increase()` take for a restart.
What is not known has no series; it is never shown as 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from device_agents.counters import DECISIONS, EVENTS, INVALID, LOSSES, PEAKS_MS
from device_agents.station import StationFile
from edge.messages import Health, InspectorHealth, MachineHealth, Percentiles, PublisherHealth

INSPECTOR_STATES = ("starting", "ready", "degraded", "failed", "stopped", "gone")
PUBLISHER_STATES = ("connected", "away", "stopped", "gone")
SOURCE_STATES = ("playing", "ended", "failed")
_PLACE = ("site", "area", "line", "station")
_MOST_SERIES = 64  # of one name, whatever a status file says
_LONGEST_LABEL = 120


@dataclass(frozen=True)
class Watched:
    """What the monitor knows at one moment."""

    station: StationFile
    health: Health
    read_at_s: float  # Unix
    reading_took_s: float
    oldest_waiting_at_s: float | None = None  # Unix; when the oldest unsent record was inspected
    false_alarm_budget: float | None = None  # of the bundle's threshold
    faults: Mapping[str, int] | None = None  # the monitor's own, by kind


Labelled = Iterable[tuple[tuple[str, ...], float | None]]


def families_of(watched: Watched) -> Iterator[Metric]:
    """Yield every metric of the moment."""
    series = _Series(watched.station)
    yield from _monitor(series, watched)
    yield from _outbox(series, watched)
    yield from _counters(series, watched.health)
    yield from _inspector(series, watched.health.inspector)
    yield from _publisher(series, watched.health.publisher)
    if watched.health.machine is not None:
        yield from _machine(series, watched.health.machine)


class _Series:
    """Makes metrics that carry the station's place."""

    def __init__(self, station: StationFile) -> None:
        place = station.station
        self._place = (place.site, place.area, place.line, place.station)

    def gauge(self, name: str, about: str, value: float | None) -> Iterator[Metric]:
        return self.gauges(name, about, (), [((), value)])

    def gauges(
        self, name: str, about: str, labels: tuple[str, ...], found: Labelled
    ) -> Iterator[Metric]:
        family = GaugeMetricFamily(f"orin_inspect_{name}", about, labels=(*_PLACE, *labels))
        return self._filled(family, found)

    def counters(
        self, name: str, about: str, labels: tuple[str, ...], found: Labelled
    ) -> Iterator[Metric]:
        family = CounterMetricFamily(f"orin_inspect_{name}", about, labels=(*_PLACE, *labels))
        return self._filled(family, found)

    def states(self, name: str, about: str, states: tuple[str, ...], now: str) -> Iterator[Metric]:
        """One series per state, 1 for the present one: so that each can be alerted on."""
        found = [((state,), float(state == now)) for state in states]
        return self.gauges(name, about, ("state",), found)

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, found: Labelled
    ) -> Iterator[Metric]:
        for number, (labels, value) in enumerate(found):
            if value is not None and number < _MOST_SERIES:
                cut = (label[:_LONGEST_LABEL] for label in labels)
                family.add_metric((*self._place, *cut), value)
        if family.samples:
            yield family


def _monitor(series: _Series, watched: Watched) -> Iterator[Metric]:
    yield from series.gauge(
        "monitor_last_reading_timestamp_seconds", "When the figures were read", watched.read_at_s
    )
    yield from series.gauge(
        "monitor_reading_seconds", "How long reading them took", watched.reading_took_s
    )
    yield from series.counters(
        "monitor_faults",
        "What went wrong in the monitor itself since it started",
        ("kind",),
        [((kind,), count) for kind, count in (watched.faults or {}).items()],
    )
    yield from series.gauge(
        "budget_seconds",
        "Longest allowed time from frame in memory to record on disk (loop.budget_ms)",
        watched.station.loop.budget_ms / 1e3,
    )
    yield from series.gauge(
        "false_alarm_budget_ratio",
        "Share of good parts that the bundle's threshold may fail",
        watched.false_alarm_budget,
    )


def _outbox(series: _Series, watched: Watched) -> Iterator[Metric]:
    health = watched.health
    readable = bool(health.station_epoch)
    yield from series.gauge(
        "outbox_readable", "1 where the outbox is there and can be read", float(readable)
    )
    if not readable:
        return
    yield from series.gauge(
        "outbox_records", "Records that the broker has not acknowledged", health.outbox_depth
    )
    yield from series.gauge(
        "outbox_room_records",
        "Records that the outbox may hold (outbox.max_rows)",
        watched.station.outbox.max_rows,
    )
    yield from series.gauge(
        "outbox_oldest_timestamp_seconds",
        "When the oldest record that the broker has not acknowledged was inspected",
        watched.oldest_waiting_at_s,
    )
    yield from series.gauges(
        "outbox_info",
        "Which life of the outbox this is",
        ("epoch",),
        [((health.station_epoch,), 1)],
    )


def _counters(series: _Series, health: Health) -> Iterator[Metric]:
    """Every counter that has a name, from 0 on: what first appears at 1 would be no increase."""
    if not health.station_epoch:
        return
    counts = health.counters
    grouped = {*DECISIONS, *LOSSES, *INVALID, *EVENTS, *PEAKS_MS}
    events = [*EVENTS, *sorted(counts.keys() - grouped)]

    def of(names: Iterable[str], prefix: str = "") -> Labelled:
        return [((name.removeprefix(prefix),), counts.get(name, 0)) for name in names]

    yield from series.counters("inspections", "Parts by decision", ("decision",), of(DECISIONS))
    yield from series.counters(
        "losses", "Parts and records that the plant does not get, by kind", ("kind",), of(LOSSES)
    )
    yield from series.counters(
        "invalid",
        "Parts that could not be judged, by reason",
        ("reason",),
        of(INVALID, "invalid_"),
    )
    yield from series.counters("events", "What else was counted", ("kind",), of(events))
    for name, about in PEAKS_MS.items():
        yield from series.gauge(
            f"{name.removesuffix('_ms')}_seconds",
            f"{about[0].upper()}{about[1:]}, the longest of this epoch",
            counts.get(name, 0) / 1e3,
        )


def _inspector(series: _Series, inspector: InspectorHealth | None) -> Iterator[Metric]:
    yield from series.states(
        "inspector_state",
        "The state of the loop; gone: its status is old or not there",
        INSPECTOR_STATES,
        "gone" if inspector is None else inspector.state,
    )
    if inspector is None:
        return
    yield from series.gauges(
        "engine_info",
        "Which engine runs which bundle",
        ("engine", "bundle_digest"),
        [((inspector.engine, inspector.bundle_digest), 1)],
    )
    yield from series.gauges(
        "source_state",
        "The state of each source of frames; what is wrong with it stands in Health",
        ("source", "state"),
        [
            ((source, state), float(state == _source_state(words)))
            for source, words in inspector.sources.items()
            for state in SOURCE_STATES
        ],
    )
    yield from series.gauge(
        "asked_parts_per_second", "The rate that is asked for", inspector.asked_parts_per_second
    )
    yield from series.gauge(
        "parts_per_second", "Parts inspected, over the last minute", inspector.parts_per_second
    )
    yield from series.gauges(
        "latency_seconds",
        "From frame in memory until verdict or durable record: so long, at most, for this share",
        ("until", "share"),
        [*_shares("verdict", inspector.latency), *_shares("durable", inspector.durable)],
    )
    yield from series.gauge("queue_frames", "Frames that wait", inspector.queue_depth)
    yield from series.gauge("queue_room_frames", "Frames that may wait", inspector.queue_room)
    yield from series.gauge("drift_flags", "How many drift flags stand", len(inspector.drift))
    yield from series.gauges(
        "drift_flag",
        "1 for what is unlike the bundle's reference",
        ("flag",),
        [((flag,), 1) for flag in dict.fromkeys(inspector.drift)],
    )
    yield from series.gauge(
        "last_inspection_timestamp_seconds",
        "When the last part was inspected",
        unix_s_of(inspector.last_inspection_at),
    )


def _publisher(series: _Series, publisher: PublisherHealth | None) -> Iterator[Metric]:
    yield from series.states(
        "publisher_state",
        "The state of the way to the broker; gone: its status is old or not there",
        PUBLISHER_STATES,
        "gone" if publisher is None else publisher.state,
    )
    if publisher is not None:
        yield from series.gauge(
            "acknowledged_sequence",
            "Sequence number up to which the broker has everything",
            publisher.acknowledged,
        )


def _machine(series: _Series, machine: MachineHealth) -> Iterator[Metric]:
    identity = (machine.read_from, machine.module or "", machine.power_mode or "")
    yield from series.gauges(
        "machine_info",
        "Which module this is, in which power mode, and what says so",
        ("read_from", "module", "power_mode"),
        [(identity, 1)],
    )
    for name, about, label, found, scale in (
        ("temperature_celsius", "Thermal zones", "zone", machine.temperatures_celsius, 1.0),
        ("power_watts", "Power rails", "rail", machine.power_watts, 1.0),
        ("clock_hertz", "Clocks as they run now", "clock", machine.clocks_mhz, 1e6),
    ):
        values: Labelled = [((key,), value * scale) for key, value in found.items()]
        yield from series.gauges(name, about, (label,), values)
    for name, about, value in (
        ("gpu_load_ratio", "Load of the GPU", _ratio(machine.gpu_load_percent)),
        ("cpu_load_ratio", "Load of all CPU cores", _ratio(machine.cpu_load_percent)),
        ("memory_used_bytes", "Memory in use, the GPU's too", machine.memory_used_bytes),
        ("memory_total_bytes", "Memory of the module", machine.memory_total_bytes),
        ("disk_free_bytes", "Room left on the outbox's disk", machine.disk_free_bytes),
        ("disk_total_bytes", "Size of the outbox's disk", machine.disk_total_bytes),
        ("uptime_seconds", "Time since boot", machine.uptime_s),
    ):
        yield from series.gauge(name, about, value)
    yield from series.gauge(
        "throttled",
        "1 where heat or power holds the clocks down",
        None if machine.throttled is None else float(machine.throttled),
    )
    yield from series.gauges(
        "throttled_by",
        "1 for what holds the clocks down",
        ("cause",),
        [((cause,), 1) for cause in dict.fromkeys(machine.throttled_by)],
    )
    yield from series.counters(
        "network_bytes",
        "Bytes over all interfaces but loopback since boot",
        ("direction",),
        [
            (("sent",), machine.network_sent_bytes),
            (("received",), machine.network_received_bytes),
        ],
    )


def unix_s_of(moment: str | None) -> float | None:
    """Read ISO 8601 as Unix seconds; None where there is none or it is not readable."""
    try:
        return datetime.fromisoformat((moment or "").replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _shares(until: str, found: Percentiles | None) -> Labelled:
    if found is None:
        return []
    shares = (
        ("0.5", found.p50_ms),
        ("0.9", found.p90_ms),
        ("0.99", found.p99_ms),
        ("1", found.max_ms),
    )
    return [((until, share), ms / 1e3) for share, ms in shares]


def _source_state(words: str) -> str:
    return words if words in SOURCE_STATES else "failed"


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
