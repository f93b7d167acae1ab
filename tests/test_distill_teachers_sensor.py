from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_distillation import Order, quick_recipe, silent, small_recording

from distill.dataset import Source, TrainingParts, spec_for
from distill.recipe import Recipe
from distill.teachers.chosen import chosen_parts
from distill.teachers.sensor_teacher import SensorTeacher, fit_sensor_teacher
from distill.teachers.window_network import window_network_of


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TrainingParts:
    folder = tmp_path_factory.mktemp("sensor") / "rec"
    return training(folder, Order(labels=("ok", "hum"), per_label=24))


def training(folder: Path, order: Order) -> TrainingParts:
    recording = small_recording(folder, order)
    spec = spec_for(recording, quick_recipe())
    return TrainingParts((Source(recording, recording.rows_in("train")),), spec)


def fitted(parts: TrainingParts, recipe: Recipe) -> tuple[SensorTeacher, dict[int, int]]:
    chosen = chosen_parts(parts, recipe, recipe.all_stages()[-1])
    teacher = fit_sensor_teacher(parts, chosen, recipe, silent)
    assert teacher is not None
    return teacher, chosen.fold_of


@pytest.mark.parametrize("epochs", [0, 30])
def test_a_hum_is_told_from_quiet_windows_whether_trained_or_not(parts: TrainingParts, epochs: int):
    teacher, fold_of = fitted(parts, quick_recipe(f"teacher.sensor_epochs={epochs}"))
    assert (teacher.learned is not None) == bool(epochs)
    said = [
        teacher.part_probability(teacher.vector(parts.window(i)), fold_of.get(i))
        for i in range(len(parts))
    ]
    hums = np.array([row.label == "hum" for row in parts.rows])
    assert min(np.array(said)[hums]) > max(0.9, np.median(np.array(said)[~hums]))


def test_a_trained_vector_has_the_recipes_size_and_variance_one(parts: TrainingParts):
    for size in (16, 80):
        recipe = quick_recipe("teacher.sensor_epochs=3", f"teacher.feature_size={size}")
        teacher, _ = fitted(parts, recipe)
        vectors = torch.stack([teacher.vector(parts.window(i)) for i in range(len(parts))])
        assert vectors.shape == (len(parts), size)
        known = vectors.abs().amax(0) > 0
        assert known.sum() == min(size, 64)
        assert 0.8 < float(vectors[:, known].var(0).mean()) < 1.25


def test_training_lowers_what_the_network_gets_wrong_about_hidden_spectra():
    random = torch.Generator().manual_seed(0)
    tone = torch.randn(12, generator=random)
    loudness = torch.randn(64, 1, 1, 1, generator=random)
    frames = loudness * tone + 0.1 * torch.randn(64, 2, 5, 12, generator=random)
    hidden = torch.rand(64, 2, 5, generator=random) < 0.75
    fresh, trained = (window_network_of(frames, epochs, 0, silent) for epochs in (0, 60))
    with torch.no_grad():
        before, after = (float(n.prediction_loss(frames, hidden)) for n in (fresh, trained))
    assert after < 0.5 * before


def test_the_same_windows_and_seed_give_the_same_network_and_leave_torchs_chance_alone():
    frames = torch.randn(20, 2, 3, 9, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (window_network_of(frames, 2, 7, silent) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name


def test_without_windows_there_is_no_sensor_teacher(tmp_path: Path):
    parts = training(tmp_path / "rec", Order(channels=(), per_label=2))
    recipe = quick_recipe("teacher.sensor_epochs=2")
    chosen = chosen_parts(parts, recipe, recipe.all_stages()[-1])
    assert fit_sensor_teacher(parts, chosen, recipe, silent) is None


def test_windows_of_one_fold_alone_are_no_memory_of_what_is_normal(parts: TrainingParts):
    recipe = quick_recipe()
    chosen = chosen_parts(parts, recipe, recipe.all_stages()[-1])
    one = [index for index in chosen.indices if chosen.fold_of[index] == 0]
    few = TrainingParts(
        tuple(
            Source(
                source.recording,
                tuple(
                    row if index in one else msgspec.structs.replace(row, sensor=None)
                    for index, row in enumerate(source.rows)
                ),
            )
            for source in parts.sources
        ),
        parts.spec,
    )
    teacher = fit_sensor_teacher(few, chosen, recipe, silent)
    assert teacher is not None, "it still describes windows"
    assert teacher.memory is None, "but each would be measured against itself"
