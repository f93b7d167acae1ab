"""The loop on bad days: sources, engine, disk and threads that fail, a pace that is not held."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import count, pairwise
from pathlib import Path
from threading import Event

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_station import (
    BAD,
    CHANNELS,
    GOOD,
    READINGS,
    SIZE,
    edge,
    spec_of,
    write_bundle,
    write_model,
    write_squares,
    write_station,
)

from device_agents.engine.on_onnxruntime import engine_from_onnx
from device_agents.inspector import watch
from device_agents.inspector.judge import Judge
from device_agents.inspector.loop import Inspector, run_inspector
from device_agents.inspector.pulse import IDLE_S
from device_agents.inspector.recorder import Record, RecordQueue
from device_agents.inspector.watch import Patience, RateRule
from device_agents.outbox.kept import KeptPictures, KeptReader
from device_agents.outbox.reader import OutboxReader
from device_agents.outbox.writer import Outbox
from device_agents.parts import Reading, Shot
from device_agents.station import Broker, Loop, Model, Pictures, StationFile, station_from_toml
from device_agents.status import read_status, status_path_of
from edge.errors import MachineError
from edge.messages import Inspection, InspectorHealth, decode
from edge.sample import Frame, Window
from edge.scorer import Scores
from edge.topics import StationId

QUICK = Patience(sources_s=0.5, disk_s=0.5, engine_failures=3, stuck_s=1.0)


class Brightness:
    """A scorer of a few lines: the score is the frame's mean grey level."""

    def __init__(self, spec=None, slow_s: float = 0.0) -> None:
        self.spec = spec or spec_of()
        self._slow_s = slow_s

    def score(self, inputs) -> Scores:
        time.sleep(self._slow_s)
        score = float(inputs["image"].mean() / 255)
        zeros = np.zeros((4, 4), np.float32)
        return Scores(np.array([1 - score, score, 0], np.float32), score, zeros, zeros[0, :2])


class Parts:
    """A source of grey squares: `levels` at a rate; an exception among them is raised."""

    silent_after_s = 10.0

    def __init__(self, levels, *, name="main", rate=None, asked=None, triggered=True) -> None:
        self.name = name
        self.parts_per_second = asked or rate
        self.tolerance_ms = 5.0
        self._levels = iter(levels)
        self._rate = rate
        self._draw = np.random.default_rng(0)
        self._triggered = triggered

    def parts(self, stop):
        for number, level in zip(count(), self._levels, strict=False):
            if self._rate and stop.wait(1 / self._rate):
                return
            if isinstance(level, Exception):
                raise level
            now_ns = time.time_ns()
            frame = Frame(np.full((SIZE, SIZE, 3), level, np.uint8), now_ns)
            # Never the same twice, nor still: that would be seen as a broken sensor.
            readings = self._draw.normal(size=(2, READINGS)).astype(np.float32) * 1e-6
            window = Window(readings, CHANNELS, now_ns)
            name = f"{self.name}{number:04d}"
            shot = Shot(name, name, None, frame, "", 0.0, self.name, self._triggered)
            yield shot, Reading(window)
            if stop.is_set():
                return


def unplugged() -> MachineError:
    return MachineError(where="/dev/video0", expected="frames", found="nothing", do="Plug it in.")


class Line:
    """An inspector in this process, on an outbox of its own."""

    def __init__(self, folder: Path, *sources, scorer=None, queue=8, patience=QUICK, pictures=None):
        self.path = folder / "outbox.sqlite"
        self.stop = Event()
        self.outbox = Outbox.open(self.path, max_rows=10_000, max_bytes=1 << 24)
        station = StationFile(
            station=StationId("north", "milling", "l1", "s1"),
            model=Model(bundle="none"),
            broker=Broker(host="none"),
            loop=Loop(queue=queue),
        )
        judge = Judge(scorer or Brightness(), engine_name="test", bundle_digest="d")
        self.inspector = Inspector(
            *(station, sources, judge, self.outbox, self.stop), pictures=pictures, patience=patience
        )

    def run(self) -> dict[str, int]:
        try:
            self.inspector.run()
            return dict(self.outbox.counters)
        finally:
            self.outbox.close()

    def health(self) -> InspectorHealth:
        return read_status(self.path, InspectorHealth, fresh_s=60)

    def inspections(self) -> list[Inspection]:
        reader = OutboxReader.open(self.path)
        records = reader.records_after(0, 10_000)
        reader.close()
        return [decode(payload, Inspection) for _, payload in records]

    def stop_when(self, is_enough, within_s: float = 15.0) -> list[InspectorHealth]:
        """Stop the loop once `is_enough(seen)`; `seen` fills with every status that differs."""
        seen: list[InspectorHealth] = []

        def look() -> None:
            deadline = time.monotonic() + within_s
            while time.monotonic() < deadline and not self.stop.is_set():
                status = self.health()
                if status is not None and (not seen or seen[-1] != status):
                    seen.append(status)
                if is_enough(seen):
                    break
                time.sleep(0.03)
            self.stop.set()

        threading.Thread(target=look, daemon=True).start()
        return seen


def test_source_that_fails_is_named_and_retried_while_the_other_goes_on(tmp_path):
    left = Parts([GOOD, unplugged(), unplugged(), *[BAD] * 10_000], name="left", rate=50)
    right = Parts([GOOD] * 10_000, name="right", rate=50)
    line = Line(tmp_path, left, right)

    def came_back(seen) -> bool:
        return [s.state for s in seen[-2:]] == ["degraded", "ready"]

    seen = line.stop_when(came_back)
    counters = line.run()
    assert came_back(seen)
    assert "source left: /dev/video0: expected frames, found nothing" in seen[-2].reason
    assert seen[-2].sources["right"] == "playing"
    assert seen[-1].sources == {"left": "playing", "right": "playing"}
    assert counters["source_failures"] == 2
    found = line.inspections()
    assert [i.sequence for i in found] == list(range(1, len(found) + 1))
    assert {i.source for i in found} == {"left", "right"}
    assert {i.decision for i in found if i.source == "left"} == {"pass", "fail"}


def test_every_source_down_for_long_ends_the_loop_as_failed(tmp_path):
    sources = [Parts([GOOD] + [unplugged()] * 100, name=name) for name in ("left", "right")]
    line = Line(tmp_path, *sources)
    with pytest.raises(MachineError, match=r"left: /dev/video0.*; right: /dev/video0"):
        line.run()
    assert line.health().state == "failed"
    assert "right: /dev/video0" in line.health().reason
    assert len(line.inspections()) == 2, "what was taken before is recorded"


def test_driver_error_of_any_kind_is_the_source_failing_not_the_loop(tmp_path):
    broken = Parts([GOOD, ZeroDivisionError("in a driver"), GOOD], name="odd")
    line = Line(tmp_path, broken, Parts([GOOD] * 60, rate=50))
    assert line.run()["inspected"] == 62
    assert {i.source for i in line.inspections()} == {"odd", "main"}


def test_source_that_gives_nothing_more_is_named_silent(tmp_path):
    class Frozen(Parts):
        silent_after_s = 0.3

        def parts(self, stop):
            yield next(super().parts(stop))
            stop.wait(60)

    line = Line(tmp_path, Frozen([GOOD], name="left", asked=50))
    with pytest.raises(MachineError, match="left: gave nothing for"):
        line.run()
    assert "left: gave nothing for" in line.health().reason


def test_source_that_does_not_see_the_stop_keeps_the_loop_from_its_end_for_seconds_only(tmp_path):
    never = Event()

    class Deaf(Parts):
        def parts(self, stop):
            yield next(super().parts(stop))
            never.wait(60)

    line = Line(tmp_path, Deaf([GOOD]))
    threading.Timer(0.3, line.stop.set).start()
    began = time.monotonic()
    assert line.run()["inspected"] == 1
    assert time.monotonic() - began < 30
    never.set()


def failing_on_bright(folder: Path):
    """A real ONNX model that onnxruntime fails to run on a bright frame: an index out of range."""
    spec = spec_of()
    write_model(folder / "model.onnx", spec)
    model = onnx.load(folder / "model.onnx")
    nodes = model.graph.node
    place = next(i for i, node in enumerate(nodes) if "raw" in node.output)
    nodes[place].output[0] = "raw_before"
    for node in reversed(
        [
            helper.make_node("Cast", ["image_mean"], ["grey"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "grey"], ["nothing"]),
            helper.make_node("Add", ["raw_before", "nothing"], ["raw"]),
        ]
    ):
        nodes.insert(place + 1, node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(128, np.float32), "table"))
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    return engine_from_onnx(folder / "model.onnx", spec, threads=1)


def test_part_on_which_the_engine_fails_is_invalid_and_the_next_is_judged(tmp_path):
    with failing_on_bright(tmp_path) as engine:
        line = Line(tmp_path, Parts([GOOD, 200, 210, GOOD, 200, GOOD], rate=100), scorer=engine)
        counters = line.run()
    assert [i.decision for i in line.inspections()] == [
        *("pass", "invalid", "invalid", "pass", "invalid", "pass")
    ]
    assert "the engine failed: " in line.inspections()[1].reason
    assert (counters["invalid_engine"], counters["inspected"]) == (3, 6)
    assert line.health().state == "stopped"


def test_engine_that_fails_part_after_part_ends_the_loop_as_failed(tmp_path):
    with failing_on_bright(tmp_path) as engine:
        line = Line(tmp_path, Parts([GOOD] + [200] * 1_000, rate=100), scorer=engine)
        with pytest.raises(MachineError, match="3 failures in a row"):
            line.run()
    assert line.health().state == "failed"
    assert [i.decision for i in line.inspections()][:4] == ["pass", *["invalid"] * 3]


def test_engine_that_hangs_is_noticed_and_named(tmp_path):
    line = Line(tmp_path, Parts([GOOD] * 100, rate=50), scorer=Brightness(slow_s=60))
    with pytest.raises(MachineError, match="inference not moving for 1 s"):
        line.run()
    assert "inference not moving" in line.health().reason


def test_disk_that_takes_nothing_for_long_ends_the_loop_as_failed(tmp_path):
    line = Line(tmp_path, Parts([GOOD] * 10_000, rate=50))
    pages = line.outbox._db.execute("PRAGMA page_count").fetchone()[0]
    line.outbox._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as a full disk
    with pytest.raises(MachineError, match="expected a disk that takes records"):
        line.run()
    assert line.outbox.counters["lost_disk"] >= 10


def test_loop_that_is_behind_answers_every_trigger_and_counts_each(tmp_path):
    line = Line(tmp_path, Parts([GOOD] * 60, rate=200), scorer=Brightness(slow_s=0.02), queue=4)
    counters = line.run()
    found = line.inspections()
    assert {i.sample_id for i in found} == {f"main{n:04d}" for n in range(60)}
    assert len(found) == 60
    late = [i for i in found if i.decision == "invalid"]
    assert counters["invalid_behind"] == len(late) > 10
    assert all("the loop is behind" in i.reason for i in late)
    assert all(i.anomaly_score is None and i.modalities == () for i in late)


def test_free_running_frames_give_way_to_triggered_parts(tmp_path):
    free = Parts([GOOD] * 100, name="free", rate=400, triggered=False)
    asked = Parts([GOOD] * 10, name="asked", rate=20)
    line = Line(tmp_path, free, asked, scorer=Brightness(slow_s=0.01), queue=3)
    counters = line.run()
    found = line.inspections()
    assert counters["dropped_free_running"] == 110 - len(found) > 10
    assert [i.decision for i in found if i.triggered] == ["pass"] * 10
    assert "invalid_behind" not in counters


def test_station_asked_for_more_than_it_can_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LEAST_PERIOD_S", 3)
    line = Line(tmp_path, Parts([GOOD] * 5_000, rate=100), scorer=Brightness(slow_s=0.02), queue=4)
    seen = line.stop_when(lambda seen: seen and seen[-1].state == "degraded", within_s=25)
    line.run()
    assert seen[-1].reason.startswith("asked for 100 parts/s, inspects ")
    assert seen[-1].asked_parts_per_second == 100
    assert 0 < seen[-1].parts_per_second < 60
    assert (seen[-1].queue_depth, seen[-1].queue_room) <= (4, 4)


def rate_said(asked: float, inspected_each_s: list[float]) -> list[str]:
    """What the rule says at the end of each second."""
    rule = RateRule()
    return [
        rule.see(asked, lambda period, n=now: sum(inspected_each_s[max(0, n - period) : n]), now)
        for now in range(1, len(inspected_each_s) + 1)
    ]


def test_short_stall_is_no_lack_of_pace_and_a_long_one_is():
    short = rate_said(100, [100] * 20 + [60] + [140] + [100] * 20)
    assert set(short) == {""}
    long = rate_said(100, [100] * 20 + [62] * 20 + [100] * 20)
    assert long[19] == ""
    assert long[39] == "asked for 100 parts/s, inspects 62"
    assert long[-1] == ""


def test_pace_around_the_limit_does_not_flicker():
    said = rate_said(100, [100] * 12 + [90] * 15 + [95, 97, 96, 97, 95, 96] * 10)
    changes = sum(bool(a) != bool(b) for a, b in pairwise(said))
    assert changes == 1


def test_slow_line_is_not_behind_for_one_part_more_or_less():
    assert set(rate_said(0.25, [1, 0, 0, 0] * 40)) == {""}
    assert rate_said(0.5, [0] * 60)[-1].startswith("asked for 0.5 parts/s, inspects 0")
    assert RateRule().see(None, lambda _: 0, 100.0) == ""


def test_systemd_is_told_which_sources_have_given_nothing_yet(tmp_path, monkeypatch):
    """`ready` does not wait for a camera: a person who looks sees what is still awaited."""
    said: list[str] = []
    monkeypatch.setattr(watch.notify, "status", said.append)
    late = Parts([GOOD] * 1_000, name="late", rate=0.4)
    line = Line(tmp_path, Parts([GOOD] * 1_000, name="early", rate=100), late)
    line.stop_when(lambda _: bool(said) and "waiting" not in said[-1])
    line.run()
    assert said[0] == "ready; 0 parts/s; waiting for the first frame of early, late"
    assert any(text.endswith("; waiting for the first frame of late") for text in said)
    assert "waiting" not in said[-2]


def test_status_tells_the_loop_second_by_second_and_that_it_stopped(tmp_path):
    line = Line(tmp_path, Parts([GOOD] * 1_000, rate=100))
    seen = line.stop_when(lambda seen: seen and seen[-1].parts_per_second > 0)
    line.run()
    told, last = seen[-1], line.health()
    assert (told.state, told.reason, told.engine) == ("ready", "", "test")
    assert told.sources == {"main": "playing"}
    assert 0 < told.latency.p50_ms <= told.durable.p50_ms <= told.durable.max_ms
    assert told.last_inspection_at is not None
    assert last.state == "stopped"


@pytest.mark.parametrize("jump_s", [-86_400, 86_400, -2_000_000_000])
def test_clock_that_jumps_changes_neither_pace_nor_order_nor_latency(tmp_path, monkeypatch, jump_s):
    """Forward and back a day, and back to about 1963: before any time that a boot gives."""
    true_ns, calls = time.time_ns, count()
    monkeypatch.setattr(
        time, "time_ns", lambda: true_ns() + (jump_s * 10**9 if next(calls) > 30 else 0)
    )
    write_squares(tmp_path / "rec", [GOOD, BAD] * 30, rate=100)
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path, source="[loop]\nqueue = 64")
    began = time.monotonic()
    counters = run_inspector(station_from_toml(tmp_path / "station.toml"), Event())
    assert time.monotonic() - began < 15
    reader = OutboxReader.open(tmp_path / "outbox.sqlite")
    found = [decode(payload, Inspection) for _, payload in reader.records_after(0, 100)]
    reader.close()
    assert [i.sequence for i in found] == list(range(1, 61))
    assert [i.decision for i in found] == ["pass", "fail"] * 30
    assert counters["inspected"] == 60
    stamps = [i.inspected_at for i in found]
    assert (stamps != sorted(stamps)) == (jump_s < 0), "the stamps jumped, and nothing else"
    assert all(0 <= i.timings.wait_ms < 5_000 and 0 < i.timings.total_ms < 5_000 for i in found)


def test_record_queue_is_bounded_and_its_feeder_says_that_it_lives():
    record = Record(draft=None, in_memory_s=0.0, counted=())
    queue, beats = RecordQueue(room=2), []
    queue.put([record, record], lambda: None)
    feeder = threading.Thread(target=queue.put, args=([record], lambda: beats.append(1)))
    feeder.start()
    time.sleep(3 * IDLE_S)
    assert feeder.is_alive()
    assert len(queue.take(1)) == 1
    feeder.join(5)
    assert not feeder.is_alive()
    assert beats
    queue.close()
    assert (len(queue.take(9)), queue.take(9)) == (2, None)


class SlowPictures(KeptPictures):
    """Pictures on a slow disk."""

    def keep(self, part) -> bool:
        time.sleep(0.1)
        return super().keep(part)


def test_pictures_that_find_no_room_are_skipped_and_counted_and_no_record_with_them(tmp_path):
    pictures = SlowPictures.open(tmp_path / "outbox.sqlite", Pictures())
    line = Line(tmp_path, Parts([BAD] * 60, rate=200), pictures=pictures, queue=64)
    counters = line.run()
    assert counters["inspected"] == 60
    assert counters["pictures_skipped"] + counters["pictures_kept"] == 60
    assert 4 <= counters["pictures_kept"] < 60
    numbers = {i.inspection_id for i in line.inspections()}
    reader = KeptReader(tmp_path / "outbox.sqlite")
    kept = [reader.read(number) for number in numbers]
    kept = [part for part in kept if part is not None]
    assert len(kept) == counters["pictures_kept"]
    for part in kept:
        assert part.inspection in line.inspections(), "as it was numbered and published"
        assert part.pixels.shape == (SIZE, SIZE, 3)
        assert part.heat_map.shape == (4, 4)
        assert part.window.values.shape == (2, READINGS)


def test_pictures_on_a_disk_that_takes_none_cost_a_count_and_no_record(tmp_path):
    (tmp_path / "outbox.sqlite.pictures").write_text("no folder")
    pictures = KeptPictures.open(tmp_path / "outbox.sqlite", Pictures())
    line = Line(tmp_path, Parts([BAD] * 3, rate=20), pictures=pictures)
    counters = line.run()
    assert (counters["inspected"], counters["pictures_lost"]) == (3, 3)


def test_pictures_are_kept_by_the_rule_of_the_station_file(tmp_path):
    near = 128  # score 0.502, threshold 0.5
    write_squares(tmp_path / "rec", [GOOD, near, GOOD, BAD], rate=20)
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path, source="[pictures]\nshare_of_passes = 0.0")
    counters = run_inspector(station_from_toml(tmp_path / "station.toml"), Event())
    assert counters["pictures_kept"] == 2
    names = sorted(path.name for path in (tmp_path / "outbox.sqlite.pictures").iterdir())
    assert [name.split(".")[0] for name in names] == ["fail", "near"]


def test_sources_are_judged_together_and_each_answer_is_its_own(tmp_path):
    sizes = []

    class Batches(Brightness):
        def score_batch(self, several):
            sizes.append(len(several))
            return [self.score(inputs) for inputs in several]

    spec = msgspec.structs.replace(spec_of(), batch=4)
    levels = {"a": 10, "b": 80, "c": 160, "d": 240}
    sources = [Parts([grey] * 30, name=name, rate=50) for name, grey in levels.items()]
    line = Line(tmp_path, *sources, scorer=Batches(spec), queue=32)
    assert line.run()["inspected"] == 120
    for inspection in line.inspections():
        grey = levels[inspection.source]
        assert inspection.anomaly_score == pytest.approx(grey / 255)
    assert max(sizes) > 1
    assert max(sizes) <= 4


def test_agent_tells_systemd_that_it_is_ready_lives_and_stops(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 4)
    write_bundle(tmp_path / "bundle")
    station = write_station(tmp_path, source="repeat = true")
    name = str(tmp_path / "notify")
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(20)
        os.environ.update(NOTIFY_SOCKET=name, WATCHDOG_USEC="1200000")
        try:
            agent = edge("agent", "inspector", "--station", station, stderr=-1)
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
        while heard.count("WATCHDOG=1") < 2:
            heard.append(systemd.recv(4096).decode())
        agent.terminate()
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(4096).decode())
        said = agent.communicate(timeout=10)[1].decode()
    assert agent.returncode == 0, said
    words = [word for word in heard if not word.startswith("STATUS=")]
    assert words[0] == "READY=1"
    assert any(word.startswith("STATUS=ready; ") for word in heard)
    assert status_path_of(tmp_path / "outbox.sqlite", InspectorHealth).exists()


def test_thread_that_hangs_starves_the_watchdog(tmp_path, monkeypatch):
    name = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    patience = Patience(stuck_s=2.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        scorer = Brightness(slow_s=60)
        line = Line(tmp_path, Parts([GOOD] * 100, rate=50), scorer=scorer, patience=patience)
        with pytest.raises(MachineError, match="inference not moving"):
            line.run()
        systemd.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(systemd.recv(4096))
    assert b"READY=1" in heard
    assert heard.count(b"WATCHDOG=1") <= 1, "four times, had it been fed"


HANGING_DISK = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_device_agents_inspector_threads import GOOD, QUICK, Line, Parts
line = Line(Path(sys.argv[1]), Parts([GOOD] * 1_000, rate=50))
line.outbox.append_all = lambda inspections: time.sleep(60)
line.run()
"""


def test_disk_that_hangs_in_a_write_cannot_keep_the_process(tmp_path):
    here = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", HANGING_DISK, tmp_path, here], timeout=40, stderr=subprocess.PIPE
    )
    assert process.returncode == 3, process.stderr.decode()
    status = read_status(tmp_path / "outbox.sqlite", InspectorHealth, fresh_s=60)
    assert status.state == "failed"
    assert "recorder not moving for 1 s" in status.reason
