"""LoRA on real students: how much of each recipe learns, and that merging leaves no trace."""

import pytest
import torch
from small_distillation import VIBRATION, quick_recipe
from test_distill_recipes import MILLIONS, student_without_weights

from distill.adaptation.lora import PARAMETER_SHARE, merge_lora, with_lora
from distill.students.student import Student
from edge.errors import InputError
from edge.model_spec import ImageInput, ModelSpec, SensorInput

SPEC = ModelSpec("s", ImageInput(32, 32), SensorInput(VIBRATION, 128), ("ok", "worn"), 2, 2, 16)


def small_student() -> Student:
    torch.manual_seed(0)
    return Student(SPEC, quick_recipe()).eval()


def some_input() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 32, 32, 3), generator=random, dtype=torch.uint8)
    return image, torch.randn(2, 2, 128, generator=random), torch.ones(2, 2)


def learn(student: Student) -> None:
    """Move everything that learns, far enough that it shows."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)


@pytest.mark.parametrize("name", MILLIONS)
def test_at_most_one_percent_of_every_recipe_learns(name: str):
    student = student_without_weights(name)
    own = [w for n, w in student.named_parameters() if not n.startswith("teacher_heads")]
    total = sum(weight.numel() for weight in own)
    adaptation = with_lora(student)
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    assert adaptation.total == total
    assert adaptation.trained == trained
    assert adaptation.rank >= 1
    assert 0 < trained <= PARAMETER_SHARE * total
    assert PARAMETER_SHARE == 0.01


def test_a_fresh_adaptation_says_exactly_what_the_student_said():
    plain, adapted = small_student(), small_student()
    with_lora(adapted)
    for before, after in zip(plain(*some_input()), adapted(*some_input()), strict=True):
        assert torch.equal(before, after)


def test_only_heads_and_the_trunks_additions_learn():
    student = small_student()
    with_lora(student)
    learning = {name for name, weight in student.named_parameters() if weight.requires_grad}
    heads = {name for name in learning if name.startswith("heads.")}
    assert heads == {f"heads.{name}" for name, _ in student.heads.named_parameters()}
    added = learning - heads
    assert added
    for name in added:
        assert ".lora_" in name
        assert name.partition(".")[0] in ("image_blocks", "sensor_blocks", "joint_blocks")


def test_merged_it_says_the_same_and_is_an_ordinary_student():
    fresh, student = small_student(), small_student()
    with_lora(student)
    learn(student)
    adapted = [tensor.detach() for tensor in student(*some_input())]
    merge_lora(student)
    assert list(student.state_dict()) == list(fresh.state_dict())
    for before, after in zip(adapted, student(*some_input()), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    changed = [
        name
        for name, weight in student.state_dict().items()
        if not torch.equal(weight, fresh.state_dict()[name])
    ]
    assert changed
    allowed = ("heads.", "image_blocks.", "sensor_blocks.", "joint_blocks.")
    assert all(name.startswith(allowed) for name in changed)
    assert not any("norm" in name for name in changed)


def test_a_sum_that_is_no_number_is_not_merged():
    student = small_student()
    with_lora(student)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if ".lora_B" in name:
                weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs"):
        merge_lora(student)


def test_a_student_without_room_for_rank_one_is_refused():
    spec = ModelSpec("s", ImageInput(32, 32), None, tuple("abcdefgh"), 2, 2, 512)
    shape = ("student.stem=patch", "student.width=8", "student.heads=1", "student.hidden=8")
    student = Student(spec, quick_recipe(*shape, "student.image_depth=0"))
    with pytest.raises(InputError, match="edge distill"):
        with_lora(student)
