"""The recipe: a training run, written by a person in TOML, read strictly.

A recipe is a name of one that comes with the package (`distill/recipes/*.toml`) or the path of a
file. Every key is required, so that the file says all there is to say about a run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge.artefact import digest_of_bytes
from edge.config import struct_from_toml
from edge.errors import InputError, nearest_hint

RECIPES = Path(__file__).parent / "recipes"
TRAIN_SPLIT = "train"
LAST_STAGE = "line"
"""The stage on the command's own recording."""

JUDGED = ("map", "score", "labels", "soft_labels")
"""Losses that say of a part whether it is normal; the others only describe it."""

_STAGE_NAME = re.compile(r"[\w-]{1,64}")
_BY_BACKBONE = ("features", "summary")  # losses that only a backbone can teach

Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # what every generator of random numbers takes
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
    """The frozen teachers. Each is standardised by its own statistics, so that none dominates."""

    # "efficientnet_lite2", the folder of a Hugging Face vision model, or its name on the hub
    backbones: tuple[str, ...]
    feature_size: Count  # dimensions that each one's features are reduced to
    sensor_epochs: CountOrNone  # a teacher trained on the windows; 0: their spectra alone
    memory_patches: Count  # patches of normal parts that the memory keeps
    memory_candidates: Count  # patches of normal parts that those are chosen from
    fit_parts: Annotated[int, Meta(ge=2)]  # parts that features and memory are fitted on, at most
    runs: tuple[str, ...] = ()  # folders of trained runs, which judge in place of the memories


class TargetsRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is computed once and kept on disk."""

    copies: CountOrNone  # augmented copies per training part, besides the original
    broken_share: Share  # of the copies, where no defect is labelled: these get a made defect
    teacher_share: Share  # weight of the teacher's word where a person labelled the part too
    label_share: Share  # of each class's labels that are used; the other parts count as unlabelled


class AugmentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far copies differ from the original. 0 (or false) leaves a property alone.

    A share "of the side" is of the image's shorter side, so that it means the same at every size.
    """

    # Where things lie; the mask moves along.
    rotate_degrees: Amount
    scale: BelowOne  # 0.07: from 93 % to 107 %
    shift: BelowOne  # of the image's size
    perspective: Annotated[float, Meta(ge=0.0, lt=0.25)]  # a corner's way, of the image's size
    elastic: Annotated[float, Meta(ge=0.0, lt=0.05)]  # a point's way in a smooth warp, of the side
    flip_horizontal: bool
    flip_vertical: bool
    # How the camera sees it.
    light_gradient: BelowOne  # light gained or lost at opposite edges
    shadow: BelowOne  # light lost behind a soft edge that crosses the picture
    defocus: Annotated[float, Meta(ge=0.0, lt=0.1)]  # radius of the blur's disc, of the side
    motion_blur: Annotated[float, Meta(ge=0.0, lt=0.1)]  # length of the smear, of the side
    brightness: BelowOne  # of the full range
    contrast: BelowOne  # as a factor
    gamma: Annotated[float, Meta(ge=0.0, le=3.0)]  # exponent of e
    colour: BelowOne  # as a factor, per channel
    pixel_noise: BelowOne  # standard deviation, of the full range
    jpeg_loss: Annotated[float, Meta(ge=0.0, le=95.0)]  # points of JPEG's quality of 100 given up
    # Made defects, where none is labelled: how often each shape comes, beside the others.
    defect_patch: Amount  # a rectangle of the part in the wrong place
    defect_scar: Amount  # a thin, turned piece of it
    defect_perlin: Amount  # where Perlin noise is high: scattered or winding
    defect_blob: Amount  # one rough ellipse, from a dot to a scratch
    defect_area: Annotated[float, Meta(gt=0.002, lt=1.0)]  # of the image, at most
    # The sensor window. Channels move in time together: they share the machine and the clock.
    sensor_gain: Annotated[float, Meta(ge=0.0, le=3.0)]  # deviation of the log, all channels alike
    sensor_channel_gain: Annotated[float, Meta(ge=0.0, le=3.0)]  # the same, each by itself
    sensor_shift: BelowOne  # of the window's length: its clock against the camera's
    sensor_warp: Annotated[float, Meta(ge=0.0, lt=0.5)]  # the machine faster or slower by this
    sensor_noise: Amount  # of each channel's own standard deviation
    sensor_mask: BelowOne  # widest band that is silenced, of the spectrum
    sensor_gap: BelowOne  # longest loss of contact in one channel, of the window's length
    sensor_drop: Share  # how often one channel of several has no contact at all
    sensor_fault: Amount  # strength of made faults; 1: 0.4 to 6 times the channel's deviation


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
    """Weights of what the student learns together (see `distill.training.losses`).

    0 leaves a lesson out. With all but `labels`, `score` and `map` at 0 and `teacher_share` at 0,
    a student learns from persons alone.
    """

    labels: Amount  # the class that a person named
    soft_labels: Amount  # class probabilities by the teacher's heads
    temperature: Positive  # of those; above 1 the unlikely classes weigh more
    score: Amount  # anomaly score
    map: Amount  # anomaly map
    features: Amount  # the teachers' dense features
    summary: Amount  # the teachers' one vector for the whole image
    window: Amount  # the sensor teacher's one vector for the window


class TrainRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schedule. The learning rate warms up, then falls along a cosine to 0, in each stage."""

    epochs: Count  # an epoch visits every training part once, or more often to make ...
    batch: Annotated[int, Meta(ge=2)]  # parts per step, over all processes
    accumulate: Count  # pieces that each process's share of a batch is worked through in
    min_steps_per_epoch: Count  # ... this many steps where parts are few
    learning_rate: Positive
    weight_decay: Amount
    warmup_steps: Count
    gradient_limit: Positive  # norm that a step's gradient is clipped to
    ema_decay: BelowOne  # of the running average of the weights that is kept; 0: none
    precision: Literal["fp32", "bf16", "fp16"]  # of the arithmetic; weights stay float32
    recompute: bool  # activations are computed again on the way back, to save memory
    withhold: Annotated[float, Meta(ge=0.0, le=0.5)]  # share of draws, per modality, without it
    save_every_s: Positive  # state for --resume is written this often, and after long epochs
    workers: CountOrNone  # processes that read and vary the parts; 0: the training process itself


class StageRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage before the last: on other recordings, by other teachers, with other weights.

    The last stage is not listed: it is the command's own recording with `[teacher]`, `[loss]` and
    `[train]`. What a stage does not say (batch, withholding, precision ...) is as there.
    """

    recordings: Annotated[tuple[str, ...], Meta(min_length=1)]  # folders, from the recipe's own on
    backbones: tuple[str, ...]
    epochs: Count
    learning_rate: Positive
    warmup_steps: Count
    loss: LossRecipe


class ThresholdRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the decision rule's thresholds come from."""

    split: str  # its normal parts, which training never saw, set the thresholds
    false_alarm_budget: Annotated[float, Meta(gt=0.0, lt=1.0)]


class AdaptRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `edge adapt` takes a run to another line. What it does not say is as in `[train]`."""

    epochs: Count
    learning_rate: Positive
    warmup_steps: Count
    few_shot_epochs: Count  # with 5 to 50 parts: of [train] min_steps_per_epoch steps each
    few_shot_learning_rate: Positive


class QuantizeRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `edge distill --quantize` trains the INT8 self of a run. The rest is as in `[train]`.

    It has defaults, unlike the rest, because runs from before it was there are quantised too.
    """

    epochs: Count = 3
    learning_rate: Positive = 0.000002  # more takes a self that begins so near further away
    warmup_steps: Count = 10
    learn_ranges: bool = True  # of activations; else they stay as calibrated


class Stage(msgspec.Struct, frozen=True):
    """One stage as it is run, the last one too."""

    name: str
    recordings: tuple[Path, ...]  # none: the command's own
    backbones: tuple[str, ...]
    epochs: int
    learning_rate: float
    warmup_steps: int
    loss: LossRecipe
    runs: tuple[str, ...] = ()  # that judge in place of the memories


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training run."""

    name: str
    seed: Seed
    image: ImageRecipe
    sensor: SensorRecipe
    teacher: TeacherRecipe
    targets: TargetsRecipe
    augment: AugmentRecipe
    student: StudentRecipe
    loss: LossRecipe
    train: TrainRecipe
    adapt: AdaptRecipe
    threshold: ThresholdRecipe
    quantize: QuantizeRecipe = QuantizeRecipe()
    stages: dict[str, StageRecipe] = msgspec.field(default_factory=dict)  # in order

    def all_stages(self) -> tuple[Stage, ...]:
        """Return the listed stages in order, then the one on the command's own recording."""
        earlier = [
            Stage(
                name,
                tuple(Path(folder) for folder in stage.recordings),
                stage.backbones,
                stage.epochs,
                stage.learning_rate,
                stage.warmup_steps,
                stage.loss,
            )
            for name, stage in self.stages.items()
        ]
        train = self.train
        rates = (train.epochs, train.learning_rate, train.warmup_steps)
        teacher = self.teacher
        last = Stage(LAST_STAGE, (), teacher.backbones, *rates, self.loss, teacher.runs)
        return (*earlier, last)

    def digest(self) -> str:
        """Return the SHA-256 of the recipe's content (64 hexadecimal digits)."""
        return digest_of_bytes(msgspec.json.encode(self))


def recipe_names() -> tuple[str, ...]:
    """Name the recipes that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by name or by path, after `key.sub=value` overrides. Raises InputError."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not name.endswith(".toml") and name not in recipe_names():
        hint, known = nearest_hint(name, recipe_names()), ", ".join(recipe_names())
        raise InputError(
            where="--recipe",
            expected="a recipe's name or the path of a .toml file",
            found=f"'{name}'",
            do=hint if known in hint else f"{hint} Recipes: {known}.",
        )
    recipe = struct_from_toml(path, Recipe, overrides)
    refuse_contradictions(recipe, path)
    return _with_paths_from(recipe, path.parent)


def refuse_contradictions(recipe: Recipe, path: Path) -> None:
    """Refuse what each key allows and all together cannot mean. Raises InputError."""
    student, train = recipe.student, recipe.train
    if student.width % student.heads:
        raise InputError(
            where=path,
            expected="student.width to be a multiple of student.heads",
            found=f"width {student.width}, heads {student.heads}",
            do="Change one of the two.",
        )
    if train.accumulate > train.batch:
        raise InputError(
            where=path,
            expected="at least one part in each piece of a batch",
            found=f"train.batch {train.batch} in train.accumulate {train.accumulate} pieces",
            do="Make train.accumulate smaller.",
        )
    if recipe.threshold.split == TRAIN_SPLIT:
        raise InputError(
            where=path,
            expected="a split that training never sees to set the threshold on",
            found=f"threshold.split = '{TRAIN_SPLIT}'",
            do="Hold good parts out (split 'val'), or name the split that holds them.",
        )
    if LAST_STAGE in recipe.stages:
        raise InputError(
            where=path,
            expected=f"another name than '{LAST_STAGE}' for a stage before the last",
            found=f"[stages.{LAST_STAGE}]",
            do="Rename it; the last stage is what [teacher], [loss] and [train] say.",
        )
    for name in recipe.stages:
        if not _STAGE_NAME.fullmatch(name):
            raise InputError(
                where=path,
                expected="a stage's name of letters, digits, '-' and '_': it names a folder",
                found=f"[stages.{name!r}]",
                do="Rename it.",
            )
    for stage in recipe.all_stages():
        _refuse_contradictory_stage(stage, recipe, path)


def _refuse_contradictory_stage(stage: Stage, recipe: Recipe, path: Path) -> None:
    where = f"{path}, stage '{stage.name}'"
    weights = {name: getattr(stage.loss, name) for name in stage.loss.__struct_fields__}
    weights.pop("temperature")
    if not any(weights.values()):
        raise InputError(
            where=where,
            expected="at least one loss with a weight above 0",
            found="none",
            do="Say what the student should learn in this stage.",
        )
    asked = [name for name in _BY_BACKBONE if weights[name]]
    if asked and not stage.backbones:
        raise InputError(
            where=where,
            expected=f"a teacher to learn {' and '.join(asked)} from",
            found="backbones = []",
            do="Name a backbone, or set those weights to 0.",
        )
    if weights["window"] and not recipe.teacher.sensor_epochs:
        raise InputError(
            where=where,
            expected="a trained sensor teacher to learn 'window' from",
            found="teacher.sensor_epochs = 0",
            do="Give it epochs, or set the weight to 0.",
        )
    if len(set(stage.backbones)) < len(stage.backbones):
        raise InputError(
            where=where,
            expected="each backbone once",
            found=", ".join(stage.backbones),
            do="Leave out the second mention.",
        )


def _with_paths_from(recipe: Recipe, folder: Path) -> Recipe:
    """Make paths absolute: they are written relative to the recipe's file.

    A teacher is a path where it begins with a dot; else it is a name, or stands as it is.
    """

    def absolute(path: str) -> str:
        return str((folder / path).resolve())

    def teachers(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(absolute(name) if name.startswith(".") else name for name in names)

    stages = {
        name: msgspec.structs.replace(
            stage,
            recordings=tuple(map(absolute, stage.recordings)),
            backbones=teachers(stage.backbones),
        )
        for name, stage in recipe.stages.items()
    }
    teacher = msgspec.structs.replace(
        recipe.teacher,
        backbones=teachers(recipe.teacher.backbones),
        runs=teachers(recipe.teacher.runs),
    )
    return msgspec.structs.replace(recipe, teacher=teacher, stages=stages)
