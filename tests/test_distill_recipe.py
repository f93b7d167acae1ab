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
    ],
)
def test_a_wrong_key_or_value_names_where_and_what(override: str, said: str):
    with pytest.raises(InputError) as caught:
        load_recipe("tiny", (override,))
    assert said in str(caught.value)


def test_overrides_change_the_digest():
    assert quick_recipe().digest() != quick_recipe("seed=1").digest()
    assert quick_recipe("train.epochs=7").train.epochs == 7
