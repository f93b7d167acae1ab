"""A station small enough for a test: a model of a few operators, a recording of grey squares.

The model's anomaly score is the image's mean brightness (0..1) plus a tenth of the sensor's mean
magnitude where a window is present, so a test knows every verdict from what it wrote.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from device_agents.broker import broker_kind
from edge.artefact import digest_of_file
from edge.bundle import (
    FP32_FILE,
    INT8_FILE,
    Bundle,
    Manifest,
    Provenance,
    entries_of,
    write_manifest,
)
from edge.errors import MachineError
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.recording.format import (
    FILES_FOLDER,
    Recording,
    RecordingHeader,
    SampleRow,
    write_recording,
)
from edge.sample import Channel
from edge.verdict import DecisionRule, Threshold

SIZE = 16
READINGS = 32
CHANNELS = (Channel("drive_end", "g", 1600.0), Channel("load", "N", 1600.0))
CLASSES = ("good", "scratch", "dent")
GOOD, BAD = 40, 220  # grey levels: scores 0.16 and 0.86 around a threshold of 0.5
STATION_ID = 'station = { site = "north", area = "milling", line = "l1", station = "s1" }'


def broker_here() -> str:
    """Which broker this machine has: "mosquitto", "iotcore" or ""."""
    try:
        return broker_kind()
    except MachineError:
        return ""


needs_broker = pytest.mark.skipif(not broker_here(), reason="neither Mosquitto nor iotcore is here")
needs_mosquitto = pytest.mark.skipif(
    broker_here() != "mosquitto",
    reason="Mosquitto is not installed: delivery is NOT proven on this machine",
)


def spec_of(*, sensor: bool = True, image_only: bool = False) -> ModelSpec:
    threshold = Threshold(0.5, 0.01, 200, True)
    return ModelSpec(
        name="tiny",
        image=ImageInput(SIZE, SIZE),
        sensor=SensorInput(CHANNELS, READINGS) if sensor else None,
        classes=CLASSES,
        map_height=4,
        map_width=4,
        embedding_size=2,
        rule=DecisionRule(threshold, Threshold(0.6, 0.01, 200, True) if image_only else None),
    )


def write_model(path: Path, spec: ModelSpec, **renamed: str) -> None:
    """Write the ONNX file; `renamed` gives a tensor another name than the spec's."""
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

    def info(tensor):
        name = renamed.get(tensor.name, tensor.name)
        return helper.make_tensor_value_info(name, kinds[tensor.dtype], tensor.shape)

    def constant(name, values, dtype=np.float32):
        return onnx.numpy_helper.from_array(np.asarray(values, dtype=dtype), name)

    constants = [
        constant("full", 255.0),
        constant("zero", 0.0),
        constant("one", 1.0),
        constant("tenth", 0.1),
        constant("no_sensor", 0.0),
        constant("flat", [1], np.int64),
        constant("row", [1, 1], np.int64),
        constant("cell", [1, 1, 1], np.int64),
        constant("map_shape", [1, spec.map_height, spec.map_width], np.int64),
        constant("mix", [[-1.0, 0.6, 0.4]]),
        constant("offset", [[1.0, 0.0, 0.0]]),
        constant("two", [1, 2], np.int64),
        constant("second", 1, np.int64),
    ]
    image = renamed.get("image", "image")
    nodes = [
        helper.make_node("Cast", [image], ["image_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["image_f"], ["image_mean"], keepdims=0),
        helper.make_node("Div", ["image_mean", "full"], ["brightness"]),
    ]
    shake = "no_sensor"
    if spec.sensor is not None:
        sensor, present = renamed.get("sensor", "sensor"), renamed.get("present", "present")
        nodes += [
            helper.make_node("Abs", [sensor], ["magnitude"]),
            helper.make_node("ReduceMean", ["magnitude"], ["magnitude_mean"], keepdims=0),
            helper.make_node("Reshape", [present, "two"], ["flags"]),
            helper.make_node("Gather", ["flags", "second"], ["sensor_flag"], axis=1),
            helper.make_node("Reshape", ["sensor_flag", "flat"], ["sensor_there"]),
            helper.make_node("Mul", ["magnitude_mean", "tenth"], ["shake_raw"]),
            helper.make_node("Mul", ["shake_raw", "sensor_there"], ["shake"]),
        ]
        shake = "shake"
    score = renamed.get("anomaly_score", "anomaly_score")
    nodes += [
        helper.make_node("Add", ["brightness", shake], ["raw"]),
        helper.make_node("Clip", ["raw", "zero", "one"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "flat"], [score]),
        helper.make_node("Reshape", ["clipped", "row"], ["score_row"]),
        helper.make_node("MatMul", ["score_row", "mix"], ["mixed"]),
        helper.make_node("Add", ["mixed", "offset"], [renamed.get("class_scores", "class_scores")]),
        helper.make_node("Reshape", ["clipped", "cell"], ["score_cell"]),
        helper.make_node(
            "Expand", ["score_cell", "map_shape"], [renamed.get("anomaly_map", "anomaly_map")]
        ),
        helper.make_node("Expand", ["score_row", "two"], [renamed.get("embedding", "embedding")]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [info(tensor) for tensor in spec.inputs()],
        [info(tensor) for tensor in spec.outputs()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_bundle(folder: Path, spec: ModelSpec | None = None) -> Bundle:
    spec = spec or spec_of()
    folder.mkdir(parents=True)
    write_model(folder / FP32_FILE, spec)
    write_model(folder / INT8_FILE, spec)
    made = Provenance("c" * 64, "t" * 64, "k" * 64, 8, {"test": "1"}, "2026-11-21T00:00:00Z")
    write_manifest(folder, Manifest(spec, entries_of(folder), (), (), (), made))
    return Bundle.open(folder)


def write_squares(
    folder: Path,
    levels: Sequence[int],
    *,
    rate: float = 50.0,
    without_sensor: Sequence[int] = (),
    channels: tuple[Channel, ...] = CHANNELS,
) -> Recording:
    """Write one part per grey level, named p0000 and on, its sensor reading next to nothing.

    Not nothing at all: that would be a stuck sensor, and no part would be judged by it.
    """
    files = folder / FILES_FOLDER
    files.mkdir(parents=True)
    rows = []
    for level in sorted(set(levels)):
        Image.new("L", (SIZE, SIZE), level).save(files / f"grey{level}.png")
    still = np.zeros((len(channels), READINGS), np.float32)
    still[:, READINGS // 2 :] = 1e-6
    np.save(files / "still.npy", still)
    for number, level in enumerate(levels):
        image = f"grey{level}.png"
        rows.append(
            SampleRow(
                sample_id=f"p{number:04d}",
                image=image,
                image_digest=digest_of_file(files / image),
                label="good" if level < 128 else "scratch",
                split="test",
                part_id=f"part{number:04d}",
                sensor=None if number in without_sensor else "still.npy",
            )
        )
    write_recording(folder, RecordingHeader("squares", channels, CLASSES, rate, "a test"), rows)
    return Recording.open(folder)


def write_station(folder: Path, port: int = 1883, *, source: str = "", broker: str = "") -> Path:
    """Write the station file beside `rec` and `bundle` in `folder`."""
    path = folder / "station.toml"
    path.write_text(
        f"{STATION_ID}\n"
        f'[source]\nrecording = "rec"\n{source}\n'
        f'[model]\nbundle = "bundle"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {port}\nhealth_every_s = 0.5\n{broker}\n'
    )
    return path


def edge(*words: object, **options: object) -> subprocess.Popen[bytes]:
    """Start `edge WORDS` as a process of its own."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "edge.cli.main", *map(str, words)]
    return subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]


class Proxy:
    """A TCP link to a broker that a test can cut, or leave open while nothing comes through."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.answers_pass = True  # False: what the broker says is swallowed
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection without a word."""
        pairs, self._pairs = self._pairs, []
        for end in [end for pair in pairs for end in pair]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._server.accept()[0]
                broker = socket.create_connection(self._target)
                self._pairs.append((client, broker))
                for source, sink in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            from_broker = source.getpeername() == self._target
            while chunk := source.recv(65_536):
                if self.answers_pass or not from_broker:
                    sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
