"""A recording, a student of the usual build trained on it for seconds, and a scorer for it.

Small real things for the tests of `export`: the student has a conv stem with batch norm, a DFT as a
fixed matrix, two transformer blocks, and heads, as `distill` builds them.
"""

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from benchmarks.int8_students import qdq_from_student
from PIL import Image
from torch import nn

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.evaluation.reference import reference_of
from edge.artefact import digest_of_file, new_folder
from edge.bundle import FP32_FILE, INT8_FILE, CompileCheck
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.prepare import model_inputs
from edge.recording.format import Recording, RecordingHeader, SampleRow, write_recording
from edge.sample import Channel
from edge.scorer import scores_from_outputs
from edge.verdict import DecisionRule, Threshold
from export.calibration import calibration_set
from export.golden import write_golden
from export.judge import judged_by
from export.onnx_graph import fp32_onnx_from_student
from export.pack import Proof, bundle_from, provenance_of
from export.parity import CHECKPOINT, ONNX_INT8, held_out_rows, parity_of
from export.quantize import int8_onnx_from_qdq

SIZE, READINGS, WIDTH = 64, 256, 64
CHANNELS = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 12000.0))
CLASSES = ("ok", "scratch", "hum")
SPLITS = {"train": 96, "val": 48, "test": 24}
_KEPT = []  # temporary folders live as long as the tests


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BND):
        B, N, D = x_BND.shape
        qkv = self.qkv(self.norm_1(x_BND)).reshape(B, N, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * (D // self.heads) ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        x_BND = x_BND + self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))
        return x_BND + self.down(nn.functional.gelu(self.up(self.norm_2(x_BND))))


class Student(nn.Module):
    def __init__(self, spec: ModelSpec, linears: bool = True):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, WIDTH, 1), nn.MaxPool2d(2),
        )  # fmt: skip
        angles = 2 * math.pi / 64 * torch.outer(torch.arange(64.0), torch.arange(32.0))
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        self.sensor_in = nn.Linear(32, WIDTH) if spec.sensor and linears else None
        self.place = nn.Parameter(torch.randn(1, 72 if spec.sensor else 64, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block(WIDTH) for _ in range(2 if linears else 0)])
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict(
            {"classes": nn.Linear(WIDTH, len(spec.classes)), "map": nn.Linear(WIDTH, 1)}
        )

    def forward(self, image, sensor=None, present=None):
        x = image.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        if self.sensor_in is not None:
            frames = sensor.reshape(sensor.shape[0], -1, 64)
            power = torch.log1p((frames @ self.cosines) ** 2 + (frames @ self.sines) ** 2)
            heard = self.sensor_in(power) * present[:, 1:, None]
            tokens = torch.cat([tokens * present[:, :1, None], heard], 1)
        tokens = tokens + self.place[:, : tokens.shape[1]]
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        embedding = tokens.mean(1)
        classes = self.heads["classes"](embedding).softmax(-1)
        anomaly_map = self.heads["map"](tokens[:, :64]).squeeze(-1).sigmoid().reshape(-1, 8, 8)
        return classes, 1 - classes[:, 0], anomaly_map, embedding


class TorchScorer:
    def __init__(self, student, spec):
        self.student, self.spec = student.eval(), spec

    def score(self, inputs):
        with torch.no_grad():
            outputs = self.student(*(torch.tensor(inputs[t.name]) for t in self.spec.inputs()))
        names = [tensor.name for tensor in self.spec.outputs()]
        return scores_from_outputs(
            {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def spec_of(sensor: bool = True, threshold: float | None = 0.5) -> ModelSpec:
    cut = Threshold(threshold, 0.05, 40, True) if threshold is not None else None
    return ModelSpec(
        name="stand-in",
        image=ImageInput(SIZE, SIZE),
        sensor=SensorInput(CHANNELS, READINGS) if sensor else None,
        classes=CLASSES,
        map_height=8,
        map_width=8,
        embedding_size=WIDTH,
        rule=DecisionRule(cut) if cut else None,
    )


def write_small_recording(
    folder: Path, splits: dict[str, int] = SPLITS, seed: int = 0
) -> Recording:
    """Parts that are ok, scratched (seen) or humming (heard), a third of each."""
    chance = np.random.default_rng(seed)
    files = folder / "files"
    files.mkdir(parents=True)
    rows = []
    for split, count in splits.items():
        for number in range(count):
            label = CLASSES[number % 3]
            name = f"{split}-{number:03d}"
            image, readings = _part(chance, label)
            Image.fromarray(image).save(files / f"{name}.png")
            np.save(files / f"{name}.npy", readings)
            rows.append(
                SampleRow(
                    sample_id=name,
                    image=f"{name}.png",
                    image_digest=digest_of_file(files / f"{name}.png"),
                    label=label,
                    split=split,
                    part_id=name,
                    sensor=f"{name}.npy",
                    sensor_digest=digest_of_file(files / f"{name}.npy"),
                )
            )
    write_recording(folder, RecordingHeader("small", CHANNELS, CLASSES, 2.0, "a test"), rows)
    return Recording.open(folder)


def _part(chance, label):
    image = chance.normal(110, 12, (SIZE, SIZE, 3))
    if label == "scratch":
        row, column = chance.integers(8, 40, 2)
        image[row : row + 4, column : column + 20] += 90
    time_s = np.arange(READINGS) / CHANNELS[0].rate_hz
    readings = chance.normal(0, 0.3, (2, READINGS))
    if label == "hum":
        readings += 0.6 * np.sin(2 * np.pi * chance.uniform(1500, 2500) * time_s)
    return image.clip(0, 255).astype(np.uint8), readings.astype(np.float32)


@functools.cache
def small_recording() -> Recording:
    return write_small_recording(kept_folder() / "recording")


def kept_folder() -> Path:
    _KEPT.append(tempfile.TemporaryDirectory(prefix="export-tests-"))
    return Path(_KEPT[-1].name)


@functools.cache
def trained_student(sensor: bool = True) -> Student:
    """Train for a few seconds, enough to tell the three classes apart."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small are quicker so, above all on a busy machine
    recording, spec = small_recording(), spec_of(sensor)
    student = Student(spec)
    rows = recording.rows_in("train")
    batch = [model_inputs(recording.read_sample(row), spec) for row in rows]
    inputs = [
        torch.cat([torch.tensor(one[tensor.name]) for one in batch]) for tensor in spec.inputs()
    ]
    labels = torch.tensor([CLASSES.index(row.label) for row in rows])
    optimiser = torch.optim.AdamW(student.parameters(), lr=2e-3)
    for _ in range(40):
        optimiser.zero_grad()
        classes = student(*inputs)[0]
        nn.functional.nll_loss(classes.clamp_min(1e-6).log(), labels).backward()
        optimiser.step()
    return student.eval()


@functools.cache
def exported_models() -> tuple[Path, Path]:
    """Return the trained stand-in as FP32 and as INT8 ONNX, made once for all tests."""

    spec, student, folder = spec_of(), trained_student(), kept_folder()
    fp32, int8 = folder / "model.fp32.onnx", folder / "model.int8.onnx"
    fp32_onnx_from_student(student, spec, fp32)
    calibration = calibration_set(small_recording(), spec, samples=48)
    qdq = qdq_from_student(
        student, spec, calibration.inputs_from(calibration.rows), kept_float=("heads",)
    )
    int8_onnx_from_qdq(qdq, spec, int8)
    return fp32, int8


def write_small_bundle(folder: Path) -> None:
    """Pack the exported stand-in as `edge export` does, compile checks left out."""

    spec, recording = spec_of(), small_recording()
    rows = held_out_rows(recording)
    with new_folder(folder) as partial:
        for path, name in zip(exported_models(), (FP32_FILE, INT8_FILE), strict=True):
            (partial / name).write_bytes(path.read_bytes())
        with engine_from_onnx(partial / INT8_FILE, spec) as int8:
            scorers = {CHECKPOINT: TorchScorer(trained_student(), spec), ONNX_INT8: int8}
            judged = judged_by(scorers, recording, rows)
            golden = write_golden(partial, recording, rows, int8, judged[ONNX_INT8])
            reference = reference_of(int8, recording, rows)
        proof = Proof(
            parity=(parity_of(ONNX_INT8, judged[CHECKPOINT], judged[ONNX_INT8]),),
            compile_checks=(CompileCheck(INT8_FILE, "not run", "TensorRT-RTX", "a test"),),
            golden=golden,
            reference=reference,
        )
        provenance = provenance_of(
            checkpoint_digest="0" * 64,
            training_digest=recording.digest(),
            calibration=calibration_set(recording, spec, samples=48),
        )
        bundle_from(partial, spec, proof, provenance)
