"""The doctor: a good station is well, and each thing that may be wrong is seen with its step."""

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from certificates import Authority, needs_openssl
from live_pipelines import needs_gstreamer
from orin_sysfs import write, write_orin
from small_station import (
    BAD,
    CHANNELS,
    GOOD,
    READINGS,
    SIZE,
    needs_mosquitto,
    spec_of,
    write_bundle,
    write_squares,
    write_station,
)
from test_device_agents_engine_on_onnxruntime import write_batch_model

from device_agents.broker import MOSQUITTO_CONFIG, free_port, running_broker
from device_agents.doctor import gpu as doctor_gpu
from device_agents.doctor import machine as doctor_machine
from device_agents.doctor.broker import look_at_broker
from device_agents.doctor.checks import CHECKS
from device_agents.doctor.diagnosis import Check, Finding, Patient, findings_of
from device_agents.doctor.gpu import look_at_gpu, nvidia_gpu_in
from device_agents.doctor.machine import (
    holder_of,
    look_at_agents,
    look_at_clock,
    look_at_disk,
    look_at_outbox,
    look_at_port,
    look_at_rights,
)
from device_agents.doctor.model import look_at_bundle, look_at_engine, look_at_sources
from device_agents.engine.load import engine_from_bundle
from device_agents.lock import hold
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from device_agents.outbox.writer import Outbox
from device_agents.station import station_from_toml
from device_agents.status import write_status
from edge.bundle import FP32_FILE, INT8_FILE, Bundle, GoldenSample, entries_of, write_manifest
from edge.cli import main as cli
from edge.messages import InspectorHealth, PublisherHealth
from edge.model_spec import ImageInput
from export.golden import golden_problems

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing: not shown here")


def add_golden(bundle, *, off=0.0):
    """Put one golden sample into the bundle, its score `off` by so much."""
    spec = bundle.manifest.spec
    inputs = {t.name: np.ones(t.shape, t.dtype) for t in spec.inputs()}
    (bundle.folder / "golden").mkdir()
    np.savez_compressed(bundle.folder / "golden" / "01.npz", **inputs)
    with engine_from_bundle(bundle) as engine:
        scores = engine.score(inputs)
    score = float(scores.anomaly_score) + off
    classes = tuple(float(score) for score in scores.class_scores)
    golden = GoldenSample("p0", "golden/01.npz", "pass", score, classes)
    manifest = msgspec.structs.replace(
        bundle.manifest, golden=(golden,), files=entries_of(bundle.folder)
    )
    write_manifest(bundle.folder, manifest)


def write_good(folder, port=1883, **station):
    """A station with nothing wrong: bundle, recording with live sensors, station file."""
    add_golden(write_bundle(folder / "bundle"))
    recording = write_squares(folder / "rec", [GOOD, BAD] * 3)
    shake = np.random.default_rng(7).normal(0, 1, (len(CHANNELS), READINGS))
    np.save(recording.path_of("still.npy"), shake.astype(np.float32))
    return write_station(folder, port, **station)


def patient_of(path):
    return Patient(station_from_toml(path), golden_problems)


@pytest.fixture
def patient(tmp_path):
    return patient_of(write_good(tmp_path))


def changed(patient, table, **fields):
    """The same patient with other values in one table of its station file."""
    part = msgspec.structs.replace(getattr(patient.station, table), **fields)
    patient.station = msgspec.structs.replace(patient.station, **{table: part})
    return patient


def source_of(patient, **fields):
    main = msgspec.structs.replace(patient.station.sources["main"], **fields)
    patient.station = msgspec.structs.replace(patient.station, sources={"main": main})
    return patient


def outcomes(look, patient):
    return [finding.outcome for finding in look(patient)]


def the_failure(look, patient):
    """The one finding that is not ok, as text."""
    [wrong] = [finding for finding in findings_of(patient, [Check("x", look)]) if
               finding.outcome != "ok"]  # fmt: skip
    assert wrong.do, wrong
    return f"{wrong.outcome}: {wrong.said} -> {wrong.do}"


@pytest.fixture
def with_bundle(patient):
    patient.bundle = Bundle.open(Path(patient.station.model.bundle))
    return patient


# The whole.


@needs_mosquitto
def test_good_station_is_well_and_nothing_is_left_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor_machine, "clock_is_synchronised", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor_gpu, "nvidia_gpu_in", lambda: None)
    with running_broker(tmp_path / "broker") as broker:
        port = free_port()
        path = write_good(tmp_path / "s", broker.port)
        path.write_text(path.read_text() + f"[monitor]\nport = {port}\n")
        before = sorted(path.parent.rglob("*"))
        assert cli.main(["doctor", "--station", str(path)]) == 0
        said = capsys.readouterr().out
        assert sorted(path.parent.rglob("*")) == before
        assert cli.main(["doctor", "--json", "--station", str(path)]) == 0
        findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # The small bundle has no reference, and the doctor says what that costs.
    assert {f["check"] for f in findings if f["outcome"] != "ok"} == {"drift"}, said
    seen = {finding["check"].split()[0] for finding in findings}
    assert {check.name.split()[0].rstrip("s") for check in CHECKS} <= {s.rstrip("s") for s in seen}
    assert said.splitlines()[-1] == "Nothing failed."
    assert "1 golden samples answered as recorded" in said
    assert "a sensor window 0.00 ms from the frame: drive_end" in said


def test_wrong_station_file_is_the_first_finding_and_the_rest_is_skipped(tmp_path, capsys):
    path = write_good(tmp_path, source="parts_per_secnd = 5")
    assert cli.main(["doctor", "--station", str(path)]) == 1
    said = capsys.readouterr().out
    assert "source.parts_per_secnd" in said
    assert "-> Did you mean 'parts_per_second'?" in said
    assert "skipped disk, outbox" in said


def test_failure_is_exit_1_with_its_next_step(tmp_path, capsys):
    path = write_good(tmp_path, free_port())
    assert cli.main(["doctor", "--station", str(path)]) == 1
    said = capsys.readouterr().out
    assert "fail    broker: no TCP to 127.0.0.1" in said
    assert "1 of the checks failed." in said


def test_check_that_raises_or_hangs_does_not_stop_the_doctor(patient):
    def breaks(_):
        yield Finding("breaks", "ok", "half")
        raise ZeroDivisionError("oops")

    def hangs(patient):
        patient.stop.wait(20)
        yield Finding("hangs", "ok", "late")

    def denied(_):
        raise PermissionError(13, "Permission denied", "/x")
        yield

    def works(_):
        yield Finding("works", "ok", "fine")

    started_s = time.monotonic()
    looks = (breaks, hangs, denied, works)
    checks = [Check(look.__name__, look, within_s=0.3) for look in looks]
    findings = list(findings_of(patient, checks))
    assert time.monotonic() - started_s < 5
    assert [(f.check, f.outcome) for f in findings] == [
        ("breaks", "ok"),
        ("breaks", "fail"),
        ("hangs", "fail"),
        ("denied", "fail"),
        ("works", "ok"),
    ]
    assert "ZeroDivisionError: oops" in findings[1].said
    assert "no answer within 0.3 s" in findings[2].said


# Disk and outbox.


def test_disk_is_measured_where_the_outbox_will_be(patient, tmp_path):
    patient = changed(patient, "outbox", path=str(tmp_path / "not" / "yet" / "o.sqlite"))
    findings = list(look_at_disk(patient))
    assert {f.outcome for f in findings} <= {"ok", "warn"}
    assert "fsync" in findings[1].said
    assert not (tmp_path / "not").exists()


@not_root
def test_folder_without_rights_is_a_failure(patient, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    patient = changed(patient, "outbox", path=str(locked / "o.sqlite"))
    assert "Permission denied -> Give the folder" in the_failure(look_at_disk, patient)


def test_folder_that_cannot_be_written_is_a_failure(patient):
    patient = changed(patient, "outbox", path="/proc/o.sqlite")
    assert "/proc cannot be written" in the_failure(look_at_disk, patient)


def test_full_and_too_small_disk_are_seen(patient, monkeypatch):
    sizes = SimpleNamespace(f_bavail=1, f_frsize=10 << 20)
    monkeypatch.setattr(os, "statvfs", lambda _: sizes)
    assert "fail: " in the_failure(look_at_disk, patient)
    sizes.f_bavail = 20
    assert "the station's limits allow" in the_failure(look_at_disk, patient)


def test_slow_disk_is_a_warning(patient, monkeypatch):
    monkeypatch.setattr(doctor_machine, "_fsync_ms", lambda _: 45.0)
    assert "warn: a record is durable after 45.0 ms" in the_failure(look_at_disk, patient)


def test_outbox_at_work_is_sound_and_its_depth_told(patient):
    with Outbox.open(patient.outbox, max_rows=10, max_bytes=1 << 20) as outbox:
        [finding] = look_at_outbox(patient)
        assert outbox.epoch[:8] in finding.said
    assert finding.outcome == "ok"
    assert "0 records wait" in finding.said


def test_idle_outbox_is_read_without_a_trace(patient, tmp_path):
    with Outbox.open(patient.outbox, max_rows=10, max_bytes=1 << 20):
        pass
    before = sorted(tmp_path.iterdir())
    assert outcomes(look_at_outbox, patient) == ["ok"]
    assert sorted(tmp_path.iterdir()) == before


def test_corrupt_outbox_is_a_failure_and_stays_as_it_is(patient):
    with Outbox.open(patient.outbox, max_rows=10, max_bytes=1 << 20):
        pass
    content = bytearray(patient.outbox.read_bytes())
    content[4096:8192] = bytes(4096)
    patient.outbox.write_bytes(content)
    assert "set it aside" in the_failure(look_at_outbox, patient)
    assert patient.outbox.read_bytes() == content


def test_foreign_file_and_foreign_database_are_failures(patient):
    patient.outbox.write_text("a letter to somebody")
    assert "another file" in the_failure(look_at_outbox, patient)
    patient.outbox.unlink()
    with contextlib.closing(sqlite3.connect(patient.outbox)) as db:
        db.execute("CREATE TABLE photos (x)")
    assert "not an outbox" in the_failure(look_at_outbox, patient)


# Clock, rights, port, agents.


def test_clock_of_1970_is_a_failure(patient, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 4_000.0)
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 1, 6, 40, 3, 1, 0)))
    assert "1970-01-01T01:06:40Z is before this software was made" in the_failure(
        look_at_clock, patient
    )


@pytest.mark.parametrize(("answer", "outcome"), [(True, "ok"), (False, "warn"), (None, "warn")])
def test_clock_that_nobody_keeps_is_a_warning(patient, monkeypatch, answer, outcome):
    monkeypatch.setattr(doctor_machine, "clock_is_synchronised", lambda: answer)
    assert outcomes(look_at_clock, patient) == [outcome]


def test_synchronisation_is_asked_of_systemd_and_else_of_the_kernel(tmp_path, monkeypatch):
    said = tmp_path / "timedatectl"
    for answer, expected in (("yes", True), ("no", False)):
        said.write_text(f"#!/bin/sh\necho {answer}\n")
        said.chmod(0o755)
        monkeypatch.setattr(doctor_machine, "which", lambda _: str(said))
        assert doctor_machine.clock_is_synchronised() is expected
    monkeypatch.setattr(doctor_machine, "which", lambda _: None)
    assert doctor_machine.clock_is_synchronised() in (True, False)


def test_secret_that_everybody_can_read_is_a_failure(patient, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    patient = changed(patient, "broker", username="s1", password_file=str(secret))
    said = the_failure(look_at_rights, patient)
    assert f"can be read by every user of this machine -> chmod 600 {secret}" in said
    assert "hunter2" not in said
    secret.chmod(0o600)
    assert outcomes(look_at_rights, patient) == ["ok"]


def test_missing_certificate_is_a_failure_and_root_a_warning(patient, monkeypatch):
    patient = changed(patient, "broker", ca_file="/nowhere/ca.pem")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "broker.ca_file /nowhere/ca.pem: No such file" in the_failure(look_at_rights, patient)
    patient = changed(patient, "broker", ca_file=None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "warn: run as root" in the_failure(look_at_rights, patient)


def test_port_that_another_program_has_is_a_failure(patient):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        patient = changed(patient, "monitor", port=port)
        assert "Address already in use" in the_failure(look_at_port, patient)
        lock = hold(patient.outbox.with_name(patient.outbox.name + ".monitor.lock"), "monitor")
        assert outcomes(look_at_port, patient) == ["ok"], "the monitor itself serves it"
        os.close(lock)
    patient = changed(patient, "monitor", port=None)
    assert outcomes(look_at_port, patient) == ["skipped"]
    patient = changed(patient, "monitor", port=9109, address="192.0.2.1")
    assert "192.0.2.1:9109" in the_failure(look_at_port, patient)


def test_agents_at_work_are_named_and_their_locks_untouched(patient):
    assert "at work: none" in next(look_at_agents(patient)).said
    lock = hold(patient.outbox.with_name(patient.outbox.name + ".lock"), "inspector")
    assert holder_of(patient.outbox, "inspector") == os.getpid()
    assert f"at work: inspector (process {os.getpid()})" in next(look_at_agents(patient)).said
    os.close(lock)
    assert holder_of(patient.outbox, "inspector") is None, "the file stays, the lock is gone"


def test_lock_is_read_while_an_agent_starts(patient):
    """An agent that takes its lock just while the doctor looks must get it."""
    path, looked = patient.outbox.with_name(patient.outbox.name + ".lock"), []

    def look():
        for _ in range(50):
            looked.append(holder_of(patient.outbox, "inspector"))

    looking = threading.Thread(target=look)
    looking.start()
    taken = 0
    while looking.is_alive() or taken < 50:
        os.close(hold(path, "inspector"))  # raises where somebody else has it
        taken += 1
    looking.join()
    assert set(looked) <= {None, os.getpid()}
    assert len(looked) == 50


def test_agent_that_is_unwell_is_a_warning(patient):
    write_status(patient.outbox, InspectorHealth(state="failed", reason="no disk"))
    assert "warn: the inspector is failed: no disk -> " in the_failure(look_at_agents, patient)
    write_status(patient.outbox, InspectorHealth(state="ready"))
    write_status(patient.outbox, PublisherHealth(state="away", reason="no route"))
    assert "the publisher is away: no route" in the_failure(look_at_agents, patient)


# Bundle, engine, sources.


def test_missing_and_changed_bundle_are_failures(patient):
    model = Path(patient.station.model.bundle) / FP32_FILE
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "SHA-256" in the_failure(look_at_bundle, patient)
    assert patient.bundle is None
    patient = changed(patient, "model", bundle="/nowhere")
    assert "expected a bundle" in the_failure(look_at_bundle, patient)
    assert outcomes(look_at_engine, patient) == ["skipped"]
    assert outcomes(look_at_sources, patient) == ["skipped"]


def test_provider_that_is_not_here_is_a_failure(with_bundle):
    patient = changed(with_bundle, "model", provider="cuda")
    assert "CUDAExecutionProvider" in the_failure(look_at_engine, patient)
    patient = changed(with_bundle, "model", provider="tensorrt")
    assert "edge build" in the_failure(look_at_engine, patient), "it needs a plan"
    patient = changed(with_bundle, "model", provider="cpuu")
    assert "Did you mean 'cpu'?" in the_failure(look_at_engine, patient)


def test_engine_too_slow_for_the_budget_is_a_warning(with_bundle):
    patient = changed(with_bundle, "loop", budget_ms=1e-6)
    assert "warn: one part takes" in the_failure(look_at_engine, patient)


def test_bundle_for_several_cameras_is_scored_too(tmp_path):
    patient = patient_of(write_good(tmp_path))
    bundle, several = write_bundle(tmp_path / "other"), msgspec.structs.replace(spec_of(), batch=2)
    for name in (FP32_FILE, INT8_FILE):
        write_batch_model(bundle.folder / name, several)
    files = entries_of(bundle.folder)
    write_manifest(
        bundle.folder, msgspec.structs.replace(bundle.manifest, spec=several, files=files)
    )
    patient.bundle = Bundle.open(bundle.folder)
    found = [str(finding) for finding in look_at_engine(patient)]
    assert any("one run, of up to 2 parts, takes" in one for one in found), found


def test_model_that_scores_otherwise_than_recorded_is_a_failure(tmp_path):
    path = write_good(tmp_path)
    patient = patient_of(path)
    patient.bundle = write_bundle(tmp_path / "other")
    add_golden(patient.bundle, off=0.2)
    patient.bundle = Bundle.open(tmp_path / "other")
    assert "a score differs by 0.2" in the_failure(look_at_engine, patient)


def test_missing_recording_and_recording_of_other_sensors_are_failures(with_bundle, tmp_path):
    patient = source_of(with_bundle, recording=str(tmp_path / "nowhere"))
    assert "nowhere" in the_failure(look_at_sources, patient)
    write_squares(tmp_path / "bare", [GOOD], channels=(), without_sensor=[0])
    patient = source_of(with_bundle, recording=str(tmp_path / "bare"))
    assert "the model's channels" in the_failure(look_at_sources, patient)


def test_dark_frames_stretched_frames_and_dead_sensors_are_seen(with_bundle, tmp_path):
    recording = write_squares(tmp_path / "dead", [0])
    np.save(recording.path_of("still.npy"), np.zeros((len(CHANNELS), READINGS), np.float32))
    patient = source_of(with_bundle, recording=str(tmp_path / "dead"))
    frame, window = findings_of(patient, [Check("x", look_at_sources)])
    assert (frame.outcome, window.outcome) == ("warn", "fail")
    assert "mean grey level is 0" in frame.said
    wide = spec_of(sensor=False)
    wide = msgspec.structs.replace(wide, image=msgspec.structs.replace(wide.image, width=32))
    patient.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=wide))
    patient = source_of(patient, recording=str(tmp_path / "rec"))
    assert "another shape: it is stretched" in the_failure(look_at_sources, patient)


def test_frames_of_another_size_than_the_bundles_are_a_warning_with_the_way_out(with_bundle):
    frame = ImageInput(height=2 * SIZE, width=2 * SIZE)
    spec = msgspec.structs.replace(spec_of(sensor=False), frame=frame)
    with_bundle.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=spec))
    (finding,) = findings_of(with_bundle, [Check("x", look_at_sources)])
    assert finding.outcome == "warn"
    assert "the bundle is made for 32x32: each is resized to it first" in finding.said
    assert "--frame 16x16" in finding.do
    spec = msgspec.structs.replace(spec, frame=ImageInput(SIZE, SIZE))
    with_bundle.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=spec))
    (finding,) = findings_of(with_bundle, [Check("x", look_at_sources)])
    assert finding.outcome == "ok"


def test_camera_that_is_not_there_is_a_failure_and_one_in_use_is_left_alone(with_bundle):
    with_bundle.bundle = SimpleNamespace(manifest=SimpleNamespace(spec=spec_of(sensor=False)))
    patient = source_of(with_bundle, recording=None, v4l2="/dev/video987")
    assert "/dev/video987" in the_failure(look_at_sources, patient)
    lock = hold(patient.outbox.with_name(patient.outbox.name + ".lock"), "inspector")
    assert outcomes(look_at_sources, patient) == ["skipped"]
    os.close(lock)


@needs_gstreamer
def test_live_camera_gives_one_frame_and_one_window(with_bundle):
    patient = source_of(
        with_bundle,
        recording=None,
        gstreamer="videotestsrc is-live=true ! video/x-raw,width=48,height=48",
        sensor_gstreamer="audiotestsrc is-live=true wave=white-noise samplesperbuffer=16",
        sensor_scale=(2.0, 5.0),
    )
    frame, window = look_at_sources(patient)
    assert (frame.outcome, window.outcome) == ("ok", "ok"), (frame, window)
    assert "a frame of 48x48" in frame.said
    assert "load -" in window.said


# The broker.


def test_unknown_host_and_closed_port_are_failures(patient):
    patient = changed(patient, "broker", host="no-such-broker.invalid")
    assert "name 'no-such-broker.invalid' is not known" in the_failure(look_at_broker, patient)
    patient = changed(patient, "broker", host="127.0.0.1", port=free_port())
    assert "no TCP to 127.0.0.1 port" in the_failure(look_at_broker, patient)


def test_something_that_is_no_broker_is_a_failure(patient):
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_hang_up, args=(other,), daemon=True).start()
        patient = changed(patient, "broker", port=other.getsockname()[1])
        assert "expected an MQTT 5 broker" in the_failure(look_at_broker, patient)


def _hang_up(server):
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def test_missing_password_file_is_a_failure(patient):
    patient = changed(patient, "broker", username="s1", password_file="/nowhere/secret")
    assert "/nowhere/secret" in the_failure(look_at_broker, patient)


@needs_mosquitto
def test_acl_that_forbids_the_station_is_a_failure_and_a_wrong_password_too(patient, tmp_path):
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "acl").write_text("topic write orin-inspect/v1/north/milling/other/#\n")
    with running_broker(folder) as broker:
        broker.stop()
        text = MOSQUITTO_CONFIG.format(port=broker.port, folder=folder)
        config = folder / "mosquitto.toml"
        _start_with(broker, config, text + f"acl_file {folder}/acl\n")
        patient = changed(patient, "broker", port=broker.port)
        said = the_failure(look_at_broker, patient)
        assert "refuses a message on orin-inspect/v1/north/milling/l1/s1/doctor: not auth" in said
        assert "write to orin-inspect/v1/north/milling/l1/s1/# in the broker's ACL" in said
        broker.stop()
        _start_with(broker, config, text.replace("allow_anonymous true", "allow_anonymous false"))
        assert "Not authorized" in the_failure(look_at_broker, patient)


@needs_openssl
@needs_mosquitto
def test_tls_is_gone_through_and_an_unknown_authority_is_a_failure(patient, tmp_path):
    authority, folder = Authority(tmp_path, "plant"), tmp_path / "broker"
    server, ours = authority.pair("server"), authority.pair("station")
    with running_broker(folder) as broker:
        broker.stop()
        text = MOSQUITTO_CONFIG.format(port=broker.port, folder=folder)
        text += f"certfile {server.certificate}\nkeyfile {server.key}\n"
        text += f"cafile {authority.certificate}\nrequire_certificate true\n"
        _start_with(broker, folder / "mosquitto.toml", text)
        files = {"certificate_file": str(ours.certificate), "key_file": str(ours.key)}
        patient = changed(
            patient, "broker", port=broker.port, ca_file=str(authority.certificate), **files
        )
        [let_in, published] = look_at_broker(patient)
        assert (let_in.outcome, published.outcome) == ("ok", "ok")
        assert "TLS, its certificate trusted, ours shown" in let_in.said
        stranger = Authority(tmp_path, "stranger")
        patient = changed(patient, "broker", ca_file=str(stranger.certificate))
        assert "the authority that signed the certificate" in the_failure(look_at_broker, patient)
        patient = changed(patient, "broker", ca_file=None, certificate_file=None, key_file=None)
        assert "fail: mqtt://127.0.0.1" in the_failure(look_at_broker, patient)


def _start_with(broker, config, text):
    """Start Mosquitto with a configuration of the test's own."""
    command = broker._command()
    config.write_text(text)
    broker._command = lambda: command
    broker.start()


@needs_mosquitto
def test_doctor_disturbs_no_publisher_and_leaves_nothing_retained(patient, tmp_path):
    with running_broker(tmp_path / "broker") as broker:
        address = BrokerAddress("127.0.0.1", broker.port)
        patient = changed(patient, "broker", port=broker.port)
        publisher = Link(address, "orin-inspect-publisher-north-milling-l1-s1")
        consumer = Link(address, "consumer")
        publisher.open()
        consumer.open()
        consumer.subscribe("orin-inspect/v1/+/+/+/+/+")
        assert outcomes(look_at_broker, patient) == ["ok", "ok"]
        for _ in range(5):
            publisher.step(0.05)
            consumer.step(0.05)
        assert publisher.ended is None
        assert [m.topic.rpartition("/")[2] for m in consumer.take_received()] == ["doctor"]
        late = Link(address, "late consumer")
        late.open()
        late.subscribe("#")
        for _ in range(5):
            late.step(0.05)
        assert late.take_received() == []
        for link in (publisher, consumer, late):
            link.close()


# The GPU.


def test_gpu_is_seen_in_the_drivers_files_and_in_an_orins_device_tree(tmp_path):
    assert nvidia_gpu_in(tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()  # the driver's door, there without any GPU
    assert nvidia_gpu_in(tmp_path) is None
    (tmp_path / "dev" / "nvidia0").touch()
    assert nvidia_gpu_in(tmp_path) == "an NVIDIA GPU"
    orin = write_orin(tmp_path / "orin")
    assert nvidia_gpu_in(orin) == "the GPU of NVIDIA Jetson AGX Orin Developer Kit"
    write(
        tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "IRQ: 1\nModel: \t RTX A2000"
    )
    assert nvidia_gpu_in(tmp_path) == "RTX A2000"


def test_gpu_that_the_station_leaves_idle_is_a_warning_with_the_way_to_use_it(patient, monkeypatch):
    monkeypatch.setattr(doctor_gpu, "nvidia_gpu_in", lambda: "the GPU of an Orin")
    for installed, step in ((True, "edge build "), (False, "Install TensorRT")):
        monkeypatch.setattr(doctor_gpu, "find_spec", lambda _, here=installed: here or None)
        told = the_failure(look_at_gpu, patient)
        assert told.startswith("warn: this machine has the GPU of an Orin, and model.provider is")
        assert f"-> {step}" in told
        assert "model.provider = 'tensorrt'" in told
    assert outcomes(look_at_gpu, changed(patient, "model", provider="tensorrt")) == ["ok"]


def test_machine_without_a_gpu_is_well_on_its_cpu(patient, monkeypatch):
    monkeypatch.setattr(doctor_gpu, "nvidia_gpu_in", lambda: None)
    assert outcomes(look_at_gpu, patient) == ["ok"]
