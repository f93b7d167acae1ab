"""One traced student plays float and int8; what it plays is what the file computes."""

import numpy as np
import onnx
import pytest
import torch
from export_stand_in import SIZE, small_recording, spec_of, trained_student
from torch import nn

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.students.trunk import Experts
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from export.calibration import calibration_set
from export.quantization import prepared as prepared_module
from export.quantization.observers import PerChannelWeight
from export.quantization.prepared import prepared_student
from export.quantize import int8_layers_of, int8_onnx_from_qdq

SPEC = spec_of(sensor=False)
PATCH = 8


class ExpertStudent(nn.Module):
    """Patches, one mixture of experts behind a LayerNorm, heads."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(3 * PATCH * PATCH, 64)
        self.norm = nn.LayerNorm(64)
        self.mlp = Experts(64, 128, 4)
        self.heads = nn.Linear(64, 3)

    def forward(self, image):
        x = (image.float() / 127.5 - 1.0).permute(0, 3, 1, 2)
        patches = nn.functional.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
        tokens = self.tokens(patches)
        tokens = tokens + self.mlp(self.norm(tokens))
        embedding = tokens.mean(1)
        classes = self.heads(embedding).softmax(-1)
        side = SIZE // PATCH
        return classes, 1 - classes[:, 0], tokens[..., 0].sigmoid().view(-1, side, side), embedding


def inputs_of(count=32):
    calibration = calibration_set(small_recording(), SPEC, samples=32)
    return list(calibration.inputs_from(calibration.rows))[:count]


@pytest.fixture(scope="module")
def prepared():
    made = prepared_student(trained_student(sensor=False), SPEC, kept_float=("heads",))
    made.watch(inputs_of())
    return made


def scores(scorer, samples):
    return [scorer.score(inputs).anomaly_score for inputs in samples]


def test_layers_that_read_the_same_tensor_are_one_unit(prepared):
    names = [unit.name for unit in prepared.units]
    assert names == [f"blocks.{b}.{n}" for b in (0, 1) for n in ("qkv", "proj", "up", "down")]
    assert prepared.kept_float == ("heads.classes", "heads.map")


def test_float_state_is_the_student_itself(prepared):
    samples = inputs_of(4)
    with torch.no_grad():
        expected = [
            float(trained_student(sensor=False)(torch.tensor(one["image"]))[1]) for one in samples
        ]
    # But for the batch norm, which was folded into its convolution.
    assert scores(prepared, samples) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_file_computes_what_the_traced_student_plays(prepared, tmp_path, method):
    prepared.settle(method)
    samples = inputs_of(6)
    with prepared.playing("int8", prepared.units):
        played = scores(prepared, samples)
    int8_onnx_from_qdq(prepared.converted(), SPEC, tmp_path / "model.onnx")
    with engine_from_onnx(tmp_path / "model.onnx", SPEC) as engine:
        assert scores(engine, samples) == pytest.approx(played, abs=2e-3)
    assert played != scores(prepared, samples)  # which is float again


def test_ranges_of_a_large_student_are_those_of_a_small_one_though_watched_in_bfloat16():
    samples = inputs_of(8)
    exact, swift = (
        prepared_student(trained_student(sensor=False), SPEC, kept_float=("heads",))
        for _ in range(2)
    )
    exact.watch(samples)
    swift.watched_in = "bfloat16"
    swift.watch(samples)
    pairs = [
        (one.scale, other.scale)
        for unit, twin in zip(exact.units, swift.units, strict=True)
        for one, other in zip(unit.activations, twin.activations, strict=True)
    ]
    assert any(one != other for one, other in pairs)  # another arithmetic
    for one, other in pairs:
        assert other == pytest.approx(one, rel=0.02)
    assert scores(exact, samples) == scores(swift, samples)  # what is played stays float32


@pytest.mark.parametrize("multiplies", [True, False])
def test_only_a_large_student_is_watched_in_bfloat16_and_only_where_the_cpu_has_it(
    multiplies, monkeypatch
):
    monkeypatch.setattr(prepared_module, "multiplies_bfloat16", lambda: multiplies)
    student = trained_student(sensor=False)
    assert prepared_student(student, SPEC).watched_in == "float32"
    monkeypatch.setattr(prepared_module, "_LARGE", 1000)
    expected = "bfloat16" if multiplies else "float32"
    assert prepared_student(student, SPEC).watched_in == expected


def test_units_given_back_are_float_in_the_file_and_the_student_converts_again(prepared, tmp_path):
    prepared.settle("max")
    back = [unit for unit in prepared.units if unit.name in ("blocks.0.qkv", "blocks.1.down")]
    qdq = prepared.converted(back)
    assert qdq.returned == ("blocks.0.qkv", "blocks.1.down")
    names = int8_onnx_from_qdq(qdq, SPEC, tmp_path / "some.onnx")
    assert {name.split("/")[0] for name in names} == set(qdq.quantised)
    assert not {"blocks.0.qkv", "blocks.1.down"} & set(qdq.quantised)
    model = onnx.load(tmp_path / "some.onnx")
    assert len(int8_layers_of(model)) == 6
    assert len(int8_onnx_from_qdq(prepared.converted(), SPEC, tmp_path / "all.onnx")) == 8


def test_both_products_of_each_attention_become_int8_where_asked_for(tmp_path):
    student = trained_student(sensor=False)
    made = prepared_student(student, SPEC, kept_float=("heads",), attention=True)
    samples = inputs_of(12)
    made.watch(samples)
    names = [unit.name for unit in made.units]
    assert {"blocks.0#1", "blocks.0#2", "blocks.1#1", "blocks.1#2"} <= set(names)
    layers = int8_onnx_from_qdq(made.converted(), SPEC, tmp_path / "model.onnx")
    assert len(layers) == 12
    with made.playing("int8", made.units):
        played = scores(made, samples)
    with engine_from_onnx(tmp_path / "model.onnx", SPEC) as engine:
        assert scores(engine, samples) == pytest.approx(played, abs=5e-3)


@pytest.fixture(scope="module")
def experts():
    torch.manual_seed(0)
    made = prepared_student(ExpertStudent().eval(), SPEC, kept_float=("heads", "tokens"))
    made.watch(inputs_of())
    return made


def test_experts_share_one_scale_for_each_output_channel(experts, tmp_path):
    assert [unit.name for unit in experts.units] == ["mlp.up_EDU", "mlp.down_EUD"]
    assert "mlp.router" in experts.kept_float  # a choice among tokens is no place for rounding
    int8_onnx_from_qdq(experts.converted(), SPEC, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    assert [stored[node.input[0]].shape for node in weights] == [(4, 64, 128), (4, 128, 64)]
    for node in weights:
        assert stored[node.input[0]].dtype == np.int8
        assert stored[node.input[1]].shape == stored[node.input[0]].shape[2:]
        assert next(a.i for a in node.attribute if a.name == "axis") == 2


def test_experts_in_int8_run_on_onnxruntime_as_they_are_played(experts, tmp_path):
    samples = inputs_of(6)
    with experts.playing("int8", experts.units):
        played = scores(experts, samples)
    int8_onnx_from_qdq(experts.converted(), SPEC, tmp_path / "model.onnx")
    with engine_from_onnx(tmp_path / "model.onnx", SPEC) as engine:
        assert scores(engine, samples) == pytest.approx(played, abs=2e-3)


def test_student_whose_values_overflow_is_refused_by_the_layer():
    student = trained_student(sensor=False)
    made = prepared_student(student, SPEC, kept_float=("heads",))
    with torch.no_grad():
        before = student.blocks[1].norm_2.weight[3].clone()
        student.blocks[1].norm_2.weight[3] = torch.inf
        try:
            with pytest.raises(AnswerIsNo, match=r"infinity or no number at blocks\.1\.up"):
                made.watch(inputs_of(2))
        finally:
            student.blocks[1].norm_2.weight[3] = before


def test_calibration_is_streamed():
    """The samples are taken one at a time: each is gone before the next is read."""
    row = small_recording().rows_in("train")[0]
    alive, most = [], 0

    def stream():
        nonlocal most
        for _ in range(5):
            inputs = model_inputs(small_recording().read_sample(row), SPEC)
            alive.append(inputs)
            most = max(most, len(alive))
            yield inputs
            alive.remove(inputs)

    made = prepared_student(trained_student(sensor=False), SPEC, kept_float=("heads",))
    made.watch(stream())
    assert most == 1
    assert made.units[0].activations[0].histogram.total == 5 * 64 * 64


def test_weights_are_played_one_at_a_time(prepared):
    """Each weight is rounded where its product reads it, not all of them at the beginning."""
    observers = [
        node
        for node in prepared.module.graph.nodes
        if node.op == "call_module"
        and isinstance(prepared.module.get_submodule(node.target), PerChannelWeight)
    ]
    assert len(observers) == len(prepared.units)
    assert all(node.next in node.users for node in observers)
