from pathlib import Path

import msgspec
import pytest
import small_backbones
import torch
from small_backbones import saved
from small_distillation import Order, quick_recipe, silent, small_recording

from distill.dataset import Source, TrainingParts, spec_for
from distill.recipe import LossRecipe, Recipe
from distill.teachers import image_teacher
from distill.teachers.backbone import Seen
from distill.teachers.image_teacher import image_batch
from distill.teachers.lite_backbone import LITE2, LiteBackbone
from distill.teachers.named_backbone import backbone_named
from distill.teachers.teacher import Teachers, fit_teachers
from edge.errors import InputError
from edge.recording.format import SampleRow

DESCRIBED_ONLY = dict.fromkeys(LossRecipe.__struct_fields__, 0.0) | {
    "temperature": 1.0,
    "features": 1.0,
    "summary": 1.0,
}


class Scaled:
    """EfficientNet-Lite2 whose features are larger, as another network's may well be."""

    def __init__(self, factor: float) -> None:
        self.name, self.digest = f"times {factor}", f"times {factor}"
        self._lite, self._factor = LiteBackbone(), factor

    def __call__(self, image_BHW3: torch.Tensor, grid: tuple[int, int]) -> Seen:
        seen = self._lite(image_BHW3, grid)
        return Seen(seen.dense_BND * self._factor, seen.summary_BS * self._factor)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TrainingParts:
    recording = small_recording(tmp_path_factory.mktemp("teachers") / "rec", Order(per_label=8))
    spec = spec_for(recording, quick_recipe())
    return TrainingParts((Source(recording, recording.rows_in("train")),), spec)


def fitted(parts: TrainingParts, *backbones, recipe: Recipe | None = None, loss=None) -> Teachers:
    recipe = recipe or quick_recipe()
    stage = recipe.all_stages()[-1]
    if loss is not None:
        stage = msgspec.structs.replace(stage, loss=LossRecipe(**loss))
    return fit_teachers(parts, recipe, stage, backbones, silent)


def map_of(teachers: Teachers, parts: TrainingParts, index: int) -> torch.Tensor:
    images = image_batch([parts.image(index)])
    dense = [teacher.see(images).dense_BND[0] for teacher in teachers.images]
    return teachers.map_logits(dense, teachers.fold_of.get(index))


def relabelled(parts: TrainingParts, label_of) -> TrainingParts:
    """The same parts with other labels."""

    def changed(row: SampleRow) -> SampleRow:
        return msgspec.structs.replace(row, label=label_of(row), mask=None)

    source = parts.sources[0]
    rows = tuple(changed(row) for row in source.rows)
    return TrainingParts((Source(source.recording, rows),), parts.spec)


def test_several_teachers_see_and_judge_together(parts: TrainingParts, tmp_path: Path):
    other = backbone_named(saved(small_backbones.dinov2, tmp_path))
    teachers = fitted(parts, LiteBackbone(), other)
    assert [teacher.backbone.name for teacher in teachers.images] == [LITE2, str(tmp_path)]
    images = image_batch([parts.image(index) for index in range(4)])
    for teacher in teachers.images:
        seen = teacher.see(images)
        assert seen.dense_BND.shape == (4, 16, 24)
        assert seen.summary_BS.shape == (4, 24)
    lite, alone = map_of(teachers, parts, 1), map_of(fitted(parts, LiteBackbone()), parts, 1)
    assert lite.shape == alone.shape == (16,)
    assert not torch.equal(lite, alone)
    scratched = next(i for i, row in enumerate(parts.rows) if row.label == "scratch")
    fine = next(i for i, row in enumerate(parts.rows) if row.label == "ok")
    assert teachers.part_probability(map_of(teachers, parts, scratched)) > 0.5
    assert teachers.part_probability(map_of(teachers, parts, scratched)) > (
        teachers.part_probability(map_of(teachers, parts, fine))
    )


def test_the_map_is_the_mean_of_each_teachers_log_odds(parts: TrainingParts, tmp_path: Path):
    other = backbone_named(saved(small_backbones.vit, tmp_path))
    teachers = fitted(parts, LiteBackbone(), other)
    images = image_batch([parts.image(0)])
    dense = [teacher.see(images).dense_BND[0] for teacher in teachers.images]
    each = [t.map_logits(d, 0) for t, d in zip(teachers.images, dense, strict=True)]
    torch.testing.assert_close(teachers.map_logits(dense, 0), (each[0] + each[1]) / 2)


def test_a_teacher_with_features_a_thousand_times_larger_changes_nothing(
    parts: TrainingParts, tmp_path: Path
):
    other = backbone_named(saved(small_backbones.vit, tmp_path))
    plain, loud = fitted(parts, Scaled(1.0), other), fitted(parts, Scaled(1000.0), other)
    images = image_batch([parts.image(index) for index in range(3)])
    for ours, theirs in zip(plain.images, loud.images, strict=True):
        for small, large in zip(ours.see(images), theirs.see(images), strict=True):
            torch.testing.assert_close(small, large, atol=2e-2, rtol=2e-2)
    for index in range(6):
        torch.testing.assert_close(
            map_of(plain, parts, index), map_of(loud, parts, index), atol=0.2, rtol=0.05
        )


def test_every_teachers_features_vary_alike(parts: TrainingParts, tmp_path: Path):
    other = backbone_named(saved(small_backbones.clip, tmp_path))
    teachers = fitted(parts, Scaled(1e-3), other)
    normal = [index for index, row in enumerate(parts.rows) if row.label == "ok"]
    images = image_batch([parts.image(index) for index in normal])
    for teacher in teachers.images:
        seen = teacher.see(images)
        assert 0.8 < float(seen.dense_BND.flatten(0, 1).var(0).mean()) < 1.25
        known = seen.summary_BS.abs().amax(0) > 0
        assert 0.5 < float(seen.summary_BS[:, known].var(0).mean()) < 1.5


def test_fitting_again_says_the_same(parts: TrainingParts):
    recipe = quick_recipe("teacher.sensor_epochs=2", "teacher.fit_parts=5")
    first, second = (fitted(parts, LiteBackbone(), recipe=recipe) for _ in range(2))
    assert first.fold_of == second.fold_of
    assert torch.equal(map_of(first, parts, 0), map_of(second, parts, 0))
    window = parts.window(0)
    assert torch.equal(first.sensor.vector(window), second.sensor.vector(window))


def test_unlabelled_parts_suffice_where_no_loss_asks_for_normal_ones(parts: TrainingParts):
    unlabelled = relabelled(parts, lambda _row: "")
    teachers = fitted(unlabelled, LiteBackbone(), loss=DESCRIBED_ONLY)
    assert not teachers.has_map
    assert teachers.fold_of == {}
    assert teachers.images[0].memory is None
    assert teachers.sensor.memory is None
    seen = teachers.images[0].see(image_batch([parts.image(0)]))
    assert seen.dense_BND.shape == (1, 16, 24)


def test_the_memory_holds_nothing_of_unlabelled_parts(parts: TrainingParts):
    normal = [row.sample_id for row in parts.rows if row.label == "ok"]
    some = relabelled(parts, lambda row: "ok" if row.sample_id in normal[:3] else "")
    teachers = fitted(some, LiteBackbone())
    assert sorted(parts.rows[index].sample_id for index in teachers.fold_of) == sorted(normal[:3])


def test_a_stage_that_needs_normal_parts_and_has_none_is_refused(parts: TrainingParts):
    with pytest.raises(InputError, match="parts labelled normal"):
        fitted(relabelled(parts, lambda _row: "scratch"), LiteBackbone())


def test_no_backbone_leaves_the_sensor_teacher(parts: TrainingParts):
    teachers = fitted(parts)
    assert teachers.images == ()
    assert not teachers.has_map
    vector = teachers.sensor.vector(parts.window(0))
    assert 0.0 <= teachers.sensor.part_probability(vector, teachers.fold_of.get(0)) <= 1.0


def test_a_teacher_that_does_not_fit_is_refused_before_the_first_one_is_fitted(
    parts: TrainingParts, tmp_path: Path
):
    unfit = backbone_named(saved(small_backbones.swin, tmp_path))

    def no_work(title: str):
        raise AssertionError(f"began: {title}")

    recipe = quick_recipe()
    with pytest.raises(InputError, match="one patch for each of 4 x 4 cells"):
        fit_teachers(parts, recipe, recipe.all_stages()[-1], (LiteBackbone(), unfit), no_work)


def test_what_is_held_while_fitting_is_bounded_and_stated(
    parts: TrainingParts, monkeypatch: pytest.MonkeyPatch
):
    part_bytes = 16 * 24 * 2
    monkeypatch.setattr(image_teacher, "_CALIBRATION_BYTES", 3 * part_bytes)
    monkeypatch.setattr(image_teacher, "_BASIS_BYTES", 2 * 16 * 168 * 4)
    titles = []

    def noted(title: str):
        titles.append(title)
        return lambda items: items

    recipe = quick_recipe("teacher.memory_candidates=30", "teacher.memory_patches=20")
    teachers = fit_teachers(parts, recipe, recipe.all_stages()[-1], (LiteBackbone(),), noted)
    assert teachers.images[0].memory.points == 20
    assert "a memory of 20 patches" in teachers.remarks[0]
    assert "calibrated on 3 normal parts" in teachers.remarks[0]
    most_mb = (2 * 16 * 168 * 4 + 2 * 30 * (24 * 2 + 8) + 3 * part_bytes) / 1e6
    assert titles[0] == (
        f"efficientnet_lite2 looks at 8 parts, holding at most {most_mb:.1f} MB of their features"
    )
