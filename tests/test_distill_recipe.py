from pathlib import Path

import pytest
from small_distillation import quick_recipe

from distill.recipe import RECIPES, load_recipe, recipe_names
from edge.errors import InputError


def test_every_recipe_of_the_package_is_whole():
    assert "tiny" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_an_unknown_recipe_names_the_nearest_and_lists_all():
    with pytest.raises(InputError, match=r"found 'tny'.*Did you mean 'tiny'\?.*Recipes: .*tiny"):
        load_recipe("tny")


def test_a_recipe_file_of_a_persons_own_is_read(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text((RECIPES / "tiny.toml").read_text().replace('"tiny"', '"own"'))
    assert load_recipe(str(own)).name == "own"
    with pytest.raises(InputError, match="a TOML file"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=5", "epochs"),
        ("trian.epochs=5", "train"),
        ("train.epochs=many", "epochs"),
        ("threshold.false_alarm_budget=1.5", "false_alarm_budget"),
        ("student.stem=resnet", "stem"),
        ("student.heads=5", "multiple of student.heads"),
        ("threshold.split=train", "a split that training never sees"),
        ("train.epochs=0", "--set train.epochs=0"),
    ],
)
def test_a_wrong_key_or_value_names_where_and_what(override: str, said: str):
    with pytest.raises(InputError) as caught:
        load_recipe("tiny", (override,))
    assert said in str(caught.value)


def test_overrides_change_the_digest():
    assert quick_recipe().digest() != quick_recipe("seed=1").digest()
    assert quick_recipe("train.epochs=7").train.epochs == 7


STAGE = """
[stages.general]
recordings = ["../parts", "/data/more"]
backbones = ["efficientnet_lite2"]
epochs = 3
learning_rate = 0.002
warmup_steps = 10

[stages.general.loss]
labels = 0.0
soft_labels = 0.0
temperature = 1.0
score = 0.0
map = 0.0
features = 1.0
summary = 1.0
window = 0.0
"""


def recipe_with_stage(folder: Path, stage: str = STAGE, change: tuple[str, str] = ("", "")) -> Path:
    path = folder / "recipes" / "own.toml"
    path.parent.mkdir()
    path.write_text((RECIPES / "tiny.toml").read_text() + stage.replace(*change))
    return path


def test_stages_come_in_the_order_of_the_file_and_the_commands_own_last(tmp_path: Path):
    second = STAGE.replace("general", "domain").replace("efficientnet_lite2", "../vit")
    recipe = load_recipe(str(recipe_with_stage(tmp_path, STAGE + second)))

    stages = recipe.all_stages()

    assert [stage.name for stage in stages] == ["general", "domain", "line"]
    assert stages[0].recordings == (tmp_path / "parts", Path("/data/more"))
    assert stages[0].epochs == 3
    assert stages[1].backbones == (str(tmp_path / "vit"),)
    assert stages[2].recordings == ()
    assert stages[2].epochs == recipe.train.epochs
    assert stages[2].backbones == recipe.teacher.backbones


def test_key_of_a_stage_is_changed_by_its_name(tmp_path: Path):
    path = str(recipe_with_stage(tmp_path))
    recipe = load_recipe(path, ("stages.general.loss.map=0.5", "stages.general.epochs=9"))

    assert recipe.all_stages()[0].loss.map == 0.5
    assert recipe.all_stages()[0].epochs == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[stages.general", "[stages.line"), "another name than 'line'"),
        (("general", "'../general'"), "names a folder"),
        (("1.0\nsummary = 1.0", "0.0\nsummary = 0.0"), "at least one loss"),
        (('["efficientnet_lite2"]', "[]"), "a teacher to learn features and summary from"),
        (('["efficientnet_lite2"]', '["a", "a"]'), "each backbone once"),
        (("window = 0.0", "window = 1.0"), "a trained sensor teacher"),
        (('["../parts", "/data/more"]', "[]"), "recordings"),
        (("epochs = 3", "epoch = 3"), "epochs"),
        (("temperature = 1.0", "temperature = 0.0"), "temperature"),
    ],
)
def test_stage_that_contradicts_itself_is_named(tmp_path: Path, change, said: str):
    path = recipe_with_stage(tmp_path, change=change)

    with pytest.raises(InputError) as caught:
        load_recipe(str(path))

    assert said in str(caught.value)


def test_batch_in_more_pieces_than_it_has_parts_is_refused():
    with pytest.raises(InputError, match=r"train\.batch 4 in train\.accumulate 5 pieces"):
        quick_recipe("train.batch=4", "train.accumulate=5")


def test_name_that_leads_out_of_the_recipes_is_no_recipe():
    with pytest.raises(InputError, match=r"found '\.\./rec'"):
        load_recipe("../rec")


def test_seed_is_one_that_every_generator_takes():
    assert quick_recipe(f"seed={2**32 - 1}").seed == 2**32 - 1
    with pytest.raises(InputError, match="seed"):
        quick_recipe(f"seed={2**63 - 1}")
