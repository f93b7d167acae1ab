"""The recipe: a training run, written by a person in TOML, read strictly.

A recipe is a name of one that comes with the package (`distill/recipes/*.toml`) or the path of a
file. Every key is required, so that the file says all there is to say about a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge.artefact import digest_of_bytes
from edge.config import struct_from_toml
from edge.errors import InputError, nearest_hint

RECIPES = Path(__file__).parent / "recipes"

Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]
Positive = Annotated[float, Meta(gt=0.0)]
BelowOne = Annotated[float, Meta(ge=0.0, lt=1.0)]


class ImageRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How large the student's image is; its aspect ratio comes from the recording."""

    pixel_budget: Annotated[int, Meta(ge=1024)]  # height * width, about


class SensorRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a sensor window is cut into spectra."""

    frame_samples: Annotated[int, Meta(ge=8, le=4096)]  # readings per spectrum, at most
    time_tokens: Count  # spectra per channel, at most; more frames than that are averaged


class TeacherRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The frozen teacher."""

    backbone: str  # "efficientnet_lite2", or the folder of a Hugging Face vision model
    feature_size: Count  # dimensions that its dense features are reduced to
    memory_patches: Count  # patches of normal parts that the memory keeps
    memory_candidates: Count  # patches of normal parts that those are chosen from
    fit_parts: Annotated[int, Meta(ge=2)]  # parts that features and memory are fitted on, at most


class TargetsRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is computed once and kept on disk."""

    copies: CountOrNone  # augmented copies per training part, besides the original
    broken_share: Share  # of the copies, where no defect is labelled: these get a made defect
    teacher_share: Share  # weight of the teacher's word where a person labelled the part too


class AugmentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far copies differ from the original. 0 (or false) leaves a property alone."""

    rotate_degrees: Amount
    scale: BelowOne  # 0.07: from 93 % to 107 %
    shift: BelowOne  # of the image's size
    brightness: BelowOne  # of the full range
    contrast: BelowOne  # as a factor
    gamma: Amount  # exponent of e
    colour: BelowOne  # as a factor, per channel
    pixel_noise: BelowOne  # standard deviation, of the full range
    flip_horizontal: bool
    flip_vertical: bool
    sensor_gain: Amount  # standard deviation of the log of the gain
    sensor_shift: BelowOne  # of the window's length, around its end
    sensor_noise: Amount  # of each channel's own standard deviation


class StudentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The student's shape. With `image_depth` 0, image and sensor meet from the first block on."""

    stem: Literal["efficientnet_lite0", "patch"]
    width: Annotated[int, Meta(ge=8, multiple_of=8)]
    heads: Count
    hidden: Count  # width of the MLPs
    image_depth: CountOrNone  # blocks over image tokens alone
    sensor_depth: CountOrNone  # blocks over sensor tokens alone
    joint_depth: Count  # blocks over both together
    experts: CountOrNone  # MLPs to choose from in each joint block; 0: one dense MLP
    window_tokens: CountOrNone  # image tokens that attend to each other, at most; 0: all to all
    global_every: Count  # each so many blocks, and the last, attend over all windows
    gated: bool  # windowed blocks mix in what the other windows hold, by a learned share
    dropout: BelowOne
    token_noise: Amount  # while training, of the image tokens' own standard deviation


class LossRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of what the student learns together (see `distill.training.losses`)."""

    classes: Amount
    score: Amount
    map: Amount
    features: Amount


class TrainRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schedule. The learning rate warms up, then falls along a cosine to 0."""

    epochs: Count  # an epoch visits every training part once, or more often to make ...
    batch: Annotated[int, Meta(ge=2)]
    min_steps_per_epoch: Count  # ... this many steps where parts are few
    learning_rate: Positive
    weight_decay: Amount
    warmup_steps: Count
    withhold: Annotated[float, Meta(ge=0.0, le=0.5)]  # share of draws, per modality, without it


class ThresholdRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the decision rule's thresholds come from."""

    split: str  # its normal parts, which training never saw, set the thresholds
    false_alarm_budget: Annotated[float, Meta(gt=0.0, lt=1.0)]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training run."""

    name: str
    seed: CountOrNone
    image: ImageRecipe
    sensor: SensorRecipe
    teacher: TeacherRecipe
    targets: TargetsRecipe
    augment: AugmentRecipe
    student: StudentRecipe
    loss: LossRecipe
    train: TrainRecipe
    threshold: ThresholdRecipe

    def digest(self) -> str:
        """Return the SHA-256 of the recipe's content (64 hexadecimal digits)."""
        return digest_of_bytes(msgspec.json.encode(self))


def recipe_names() -> tuple[str, ...]:
    """Name the recipes that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by name or by path, after `key.sub=value` overrides. Raises InputError."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if path.parent == RECIPES and name not in recipe_names():
        raise InputError(
            where="--recipe",
            expected="a recipe's name or the path of a .toml file",
            found=f"'{name}'",
            do=f"{nearest_hint(name, recipe_names())} Recipes: {', '.join(recipe_names())}.",
        )
    recipe = struct_from_toml(path, Recipe, overrides)
    if recipe.student.width % recipe.student.heads:
        raise InputError(
            where=path,
            expected="student.width to be a multiple of student.heads",
            found=f"width {recipe.student.width}, heads {recipe.student.heads}",
            do="Change one of the two.",
        )
    return recipe
