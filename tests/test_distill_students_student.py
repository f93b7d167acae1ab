from dataclasses import dataclass
from functools import partial

import pytest
import torch
from small_distillation import VIBRATION, quick_recipe

from distill.students.student import HEADS, Student, soft_maximum
from edge.model_spec import ImageInput, ModelSpec, SensorInput


def spec_of(*, sensor: bool = True, classes: tuple[str, ...] = ("ok", "bad"), batch: int = 2):
    return ModelSpec(
        name="small",
        image=ImageInput(64, 96),
        sensor=SensorInput(VIBRATION, 200) if sensor else None,
        classes=classes,
        map_height=4,
        map_width=6,
        embedding_size=16,
        batch=batch,
    )


@dataclass
class Inputs:
    image: torch.Tensor
    sensor: torch.Tensor
    present: torch.Tensor


def inputs_of(batch: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return Inputs(
        torch.randint(0, 256, (batch, 64, 96, 3), dtype=torch.uint8, generator=generator),
        torch.randn(batch, 2, 200, generator=generator),
        torch.ones(batch, 2),
    )


def student_of(spec: ModelSpec, *overrides: str) -> Student:
    torch.manual_seed(0)
    return Student(spec, quick_recipe(*overrides)).eval()


@pytest.mark.parametrize("stem", ["efficientnet_lite0", "patch"])
@pytest.mark.parametrize("sensor", [True, False])
@pytest.mark.parametrize("classes", [("ok",), ("ok", "a", "b", "c")])
def test_the_student_gives_the_tensors_of_its_spec(stem: str, sensor: bool, classes):
    spec = spec_of(sensor=sensor, classes=classes)
    student = student_of(spec, f"student.stem={stem}")
    inputs = inputs_of()
    given = (inputs.image, inputs.sensor, inputs.present)[: len(spec.inputs())]
    with torch.inference_mode():
        outputs = student(*given)
    for output, wanted in zip(outputs, spec.outputs(), strict=True):
        assert tuple(output.shape) == wanted.shape
        assert output.dtype == torch.float32
        assert output.isfinite().all()
    scores, anomaly, anomaly_map, _ = outputs
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    for bounded in (anomaly, anomaly_map):
        assert bounded.min() >= 0
        assert bounded.max() <= 1


FUSED = ("student.stem=patch", "student.image_depth=0", "student.sensor_depth=0")
WINDOWED = (*FUSED, "student.joint_depth=2", "student.window_tokens=6", "student.global_every=2")


@pytest.mark.parametrize("form", [(), FUSED, WINDOWED, (*WINDOWED, "student.experts=4")])
@pytest.mark.parametrize(("place", "name"), [(0, "image"), (1, "sensor")])
def test_a_withheld_modality_cannot_be_felt(place: int, name: str, form: tuple[str, ...]):
    student = student_of(spec_of(), *form)
    shown, hidden = inputs_of(), inputs_of()
    for inputs in (shown, hidden):
        inputs.present[:, place] = 0.0
    setattr(hidden, name, torch.zeros_like(getattr(hidden, name)))
    with torch.inference_mode():
        first = student(shown.image, shown.sensor, shown.present)
        second = student(hidden.image, hidden.sensor, hidden.present)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_a_sample_is_scored_alike_alone_and_in_company():
    student = student_of(spec_of())
    inputs = inputs_of(4)
    with torch.inference_mode():
        together = student(inputs.image, inputs.sensor, inputs.present)
        alone = student(inputs.image[2:3], inputs.sensor[2:3], inputs.present[2:3])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[2:3], b, atol=1e-5, rtol=1e-4)


def test_one_piece_of_evidence_cannot_be_talked_away():
    evidence = torch.tensor([[5.0, -30.0, -30.0], [300.0, 1.0, 2.0]])
    torch.testing.assert_close(soft_maximum(evidence), torch.tensor([5.0, 300.0]))
    torch.testing.assert_close(soft_maximum(torch.randn(9, 3)).shape, torch.Size([9]))


def test_readings_out_of_all_bounds_do_not_break_the_scores():
    student = student_of(spec_of())
    inputs = inputs_of()
    inputs.sensor[0] = 1e12
    inputs.image[1] = 255
    with torch.inference_mode():
        for output in student(inputs.image, inputs.sensor, inputs.present):
            assert output.isfinite().all()


def test_the_heads_that_stay_float_exist():
    modules = dict(student_of(spec_of()).named_modules())
    assert all(name in modules for name in HEADS)


def test_the_frozen_stem_does_not_learn():
    student = student_of(spec_of())
    assert not any(weight.requires_grad for weight in student.stem.parameters())
    assert any(weight.requires_grad for weight in student.image_tokens.parameters())


def test_mixed_precision_never_reaches_raw_readings_or_the_relation():
    student, inputs = student_of(spec_of()), inputs_of()
    far = inputs.sensor + 1000.0  # a small movement about a large level: half holds none of it
    with torch.no_grad():
        student.sensor_tokens.frames.fit(far)
        stem = student.stem_features(inputs.image)
        many = (
            torch.randn(40, stem.shape[2]),
            torch.randn(40, 2 * student.sensor_tokens.frames.size),
        )
        student.relation.fit(*many)
    seen = {"sensor_tokens.frames": [], "relation": []}
    for name, values in seen.items():
        note = partial(lambda values, _module, _inputs, out: values.append(out), values)
        student.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        student.read(stem, far, None)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = student.read(stem, far, None)
    assert mixed.class_logits_BK.dtype == torch.bfloat16, "the rest is mixed"
    for name, (whole, half) in seen.items():
        assert whole.any()
        assert torch.equal(half, whole), name
