"""The student: image and sensor window in, class scores, anomaly score, map and embedding out.

Everything that computes is inside, so that training and device cannot differ: it takes raw uint8
RGB pixels and readings in physical units, and standardises both itself. Static shapes, decomposed
attention, native LayerNorm, no FFT, no masks: what ONNX and TensorRT take as it is.

A part is as bad as the strongest evidence against it, joined by a soft maximum: the image's, the
sensor's, that of both together, or that the two do not belong to each other (`relation`). One
modality thus cannot talk the other's finding away, and an absent one leaves a learned floor in
place of its evidence.

Shapes: B batch, H W pixels, h w map grid, S stem features, C sensor channels, T readings,
N tokens, G image tokens (h * w), D width, M attention heads, Q width per attention head,
K classes, E pieces of evidence or spectral features, P components of the relation,
F teacher features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.dataset import STRIDE
from distill.features.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, imagenet_trunk
from distill.features.spectral import SpectralFrames
from distill.recipe import Recipe
from distill.students.float32 import in_float32
from distill.students.relation import COMPONENTS, Relation
from distill.students.trunk import MASKED, BlockShape, Trunk, layout_for
from edge.model_spec import ModelSpec, SensorInput

HEADS = ("heads", "teacher_heads")
"""Submodules that stay float when the student is quantised."""

EMBEDDINGS = ("image_tokens", "sensor_tokens")
"""Submodules that turn input into tokens; they stay float too (a third of INT8's score error)."""

_TOP_CELLS = 3
_RATE_FEATURES = 8
_TOKEN_DEVIATION = 0.02  # of fresh learned tokens and positions
_MAP_TRUST = 0.5  # evidence per log odds of the strongest cells, to begin with
_RELATION_TRUST = 2.0
_QUIET = -3.0  # log odds that a fresh piece of evidence starts from


class Reading(NamedTuple):
    """What the student makes of a batch, before it is turned into scores."""

    class_logits_BK: Tensor
    score_logit_B: Tensor
    map_logits_Bhw: Tensor
    embedding_BD: Tensor
    features: tuple[Tensor, ...]  # what it takes each teacher's dense features to be [B, G, F]
    summaries: tuple[Tensor, ...]  # and its summary of the image [B, F]
    window_BF: Tensor | None  # and the sensor teacher's vector of the window


class LiteStem(nn.Module):
    """Frozen EfficientNet-Lite0 at stride 8 (folded to 16) and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = imagenet_trunk(0)
        fine, coarse = self.trunk.widths[2], self.trunk.widths[4]
        self.size = 4 * fine + coarse

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return [B, S, h, w] of scaled pixels."""
        fine, coarse = self.trunk(x_B3HW)
        return torch.cat([F.pixel_unshuffle(fine, 2), coarse], 1)


class PatchStem(nn.Module):
    """The pixels of each patch, as they are: what a plain vision transformer starts from."""

    size = 3 * STRIDE * STRIDE

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return [B, S, h, w] of scaled pixels."""
        return F.pixel_unshuffle(x_B3HW, STRIDE)


class SensorTokens(nn.Module):
    """A window becomes one token per channel and stretch of time.

    Each token is told which channel it is of, when it was, and at what rate it was sampled.
    """

    rate_CR: Tensor

    def __init__(self, sensor: SensorInput, recipe: Recipe) -> None:
        super().__init__()
        width, channels = recipe.student.width, len(sensor.channels)
        self.frames = SpectralFrames(
            channels, sensor.samples, recipe.sensor.frame_samples, recipe.sensor.time_tokens
        )
        self.project = nn.Linear(self.frames.size, width)
        self.rate = nn.Linear(_RATE_FEATURES, width)
        self.channel = _learned(1, channels, 1, width)
        self.time = _learned(1, 1, self.frames.tokens, width)
        rates_C = torch.tensor([channel.rate_hz for channel in sensor.channels])
        self.register_buffer("rate_CR", rate_features(rates_C))
        self.tokens = channels * self.frames.tokens

    def forward(self, frames_BCNE: Tensor) -> Tensor:
        """Return tokens [B, C * N, D] of the window's spectra (`frames`)."""
        x_BCND: Tensor = self.project(frames_BCNE)
        rate_1C1D = self.rate(self.rate_CR)[None, :, None]
        placed_BCND: Tensor = x_BCND + self.channel + self.time + rate_1C1D
        return placed_BCND.flatten(1, 2)


class ImageTokens(nn.Module):
    """Stem features become one token per cell of the map."""

    mean_S: Tensor
    scale_S: Tensor

    def __init__(self, stem_size: int, cells: int, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.student.width
        self.register_buffer("mean_S", torch.zeros(stem_size))
        self.register_buffer("scale_S", torch.ones(stem_size))
        self.project = nn.Linear(stem_size, width)
        self.place = _learned(1, cells, width)
        self.noise = recipe.student.token_noise

    def forward(self, stem_BGS: Tensor) -> Tensor:
        """Return tokens [B, G, D]."""
        x_BGD: Tensor = self.project((stem_BGS - self.mean_S) / self.scale_S)
        if self.training and self.noise:
            x_BGD = x_BGD + torch.randn_like(x_BGD) * (self.noise * x_BGD.detach().std())
        return x_BGD + self.place


class Heads(nn.Module):
    """Class logits, the map, and the evidence of image, sensor and both together."""

    def __init__(self, width: int, classes: int, *, has_sensor: bool) -> None:
        super().__init__()
        self.classes = nn.Linear(3 * width + COMPONENTS if has_sensor else 2 * width, classes)
        self.map = nn.Linear(width, 1)
        self.image = nn.Linear(width + 2, 1)  # + the map's strongest cells and its mean
        self.joint = nn.Linear(width, 1)
        self.relation = nn.Linear(1, 1) if has_sensor else None
        self.sensor = nn.Linear(width, 1) if has_sensor else None
        self.floor = nn.Parameter(torch.full((3,), _QUIET))  # without image, sensor, either
        nn.init.constant_(self.joint.bias, _QUIET)
        # The map learns where long before few labels say whether: the image's evidence starts
        # from the map's strongest cells.
        nn.init.constant_(self.image.weight[:, width], _MAP_TRUST)
        if self.relation is not None:
            nn.init.constant_(self.relation.weight, _RELATION_TRUST)
            nn.init.constant_(self.relation.bias, _QUIET)

    def image_evidence(self, summary_BD: Tensor, map_logits_BG: Tensor) -> Tensor:
        """Return [B, 1]."""
        top = map_logits_BG.topk(min(_TOP_CELLS, map_logits_BG.shape[1]), 1).values
        levels_B2 = torch.stack([top.mean(1), map_logits_BG.mean(1)], 1)
        evidence: Tensor = self.image(torch.cat([summary_BD, levels_B2], 1))
        return evidence


class TeacherHeads(nn.Module):
    """What a student answers the teachers of one stage with. Nothing of it is exported."""

    def __init__(self, width: int, teachers: int, feature_size: int, *, window: bool) -> None:
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(width, feature_size) for _ in range(teachers))
        self.summary = nn.ModuleList(nn.Linear(width, feature_size) for _ in range(teachers))
        self.window = nn.Linear(width, feature_size) if window else None


class Student(nn.Module):
    """One class for every recipe. Inputs and outputs are those of its `ModelSpec`, in order."""

    def __init__(self, spec: ModelSpec, recipe: Recipe) -> None:
        super().__init__()
        shape = recipe.student
        self.grid = (spec.map_height, spec.map_width)
        self.cells = spec.map_height * spec.map_width
        self.stem = LiteStem() if shape.stem == "efficientnet_lite0" else PatchStem()
        self.image_tokens = ImageTokens(self.stem.size, self.cells, recipe)
        self.sensor_tokens = SensorTokens(spec.sensor, recipe) if spec.sensor else None
        self.relation = self._relation_to(spec.sensor) if spec.sensor else None
        self.image_summary = _learned(1, 1, shape.width)
        self.sensor_summary = _learned(1, 1, shape.width)
        self.summary = _learned(1, 1, shape.width)
        self.fused = shape.image_depth == 0
        sensor_tokens = self.sensor_tokens.tokens if self.sensor_tokens else 0
        prefix = 2 + (1 + sensor_tokens if self.sensor_tokens else 0)
        self.image_blocks = _trunk(shape.image_depth, 1, self.grid, recipe)
        self.sensor_blocks = _trunk(
            shape.sensor_depth if spec.sensor else 0, 1 + sensor_tokens, (0, 0), recipe
        )
        self.joint_blocks = _trunk(
            shape.joint_depth, prefix, self.grid, recipe, experts=shape.experts
        )
        self.image_norm = nn.LayerNorm(shape.width)
        self.sensor_norm = nn.LayerNorm(shape.width)
        self.joint_norm = nn.LayerNorm(shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.heads = Heads(shape.width, len(spec.classes), has_sensor=spec.sensor is not None)
        window = spec.sensor is not None and recipe.teacher.sensor_epochs > 0
        self.teacher_heads = nn.ModuleList(
            TeacherHeads(
                shape.width, len(stage.backbones), recipe.teacher.feature_size, window=window
            )
            for stage in recipe.all_stages()
        )

    def forward(
        self, image: Tensor, sensor: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return class scores [B, K], anomaly score [B], map [B, h, w] and embedding [B, D]."""
        reading = self.read(self.stem_features(image), sensor, present)
        map_Bhw = torch.sigmoid(reading.map_logits_Bhw)
        if present is not None:
            map_Bhw = map_Bhw * present[:, 0, None, None]
        return (
            torch.softmax(reading.class_logits_BK, 1),
            torch.sigmoid(reading.score_logit_B),
            map_Bhw,
            reading.embedding_BD,
        )

    def stem_features(self, image_BHW3: Tensor) -> Tensor:
        """Return the frozen stem's features [B, G, S] of uint8 images."""
        pixels = (image_BHW3.float() - PIXEL_MEAN) / PIXEL_SCALE
        stem: Tensor = self.stem(pixels.permute(0, 3, 1, 2))
        return stem.flatten(2).transpose(1, 2)

    def read(
        self,
        stem_BGS: Tensor,
        sensor_BCT: Tensor | None,
        present_B2: Tensor | None,
        stage: int = -1,
    ) -> Reading:
        """Return everything that the student learns in a stage, from stem features on."""
        if present_B2 is None:
            present_B2 = torch.ones_like(stem_BGS[:, 0, :2])
        has_image_B1, has_sensor_B1 = present_B2[:, :1], present_B2[:, 1:]
        image_BND = self._with(self.image_summary, self.image_tokens(stem_BGS))
        image_BND = self.image_blocks(image_BND, _bias(has_image_B1, 1, self.cells))
        prefix = [self.summary.expand(len(stem_BGS), -1, -1), image_BND[:, :1]]
        relation_BP = None
        if self.sensor_tokens is not None:
            assert sensor_BCT is not None
            assert self.relation is not None
            both_B1 = has_image_B1 * has_sensor_B1
            with in_float32(sensor_BCT):
                frames_BCNE = self.sensor_tokens.frames(sensor_BCT)
                spectrum_BE = part_spectrum(frames_BCNE)
                relation_BP = both_B1 * self.relation(stem_BGS.mean(1), spectrum_BE)
            sensor_BND = self._with(self.sensor_summary, self.sensor_tokens(frames_BCNE))
            bias_B11N = _bias(has_sensor_B1, 1, self.sensor_tokens.tokens)
            prefix.append(self.sensor_blocks(sensor_BND, bias_B11N))
        joint_BND = self.joint_blocks(
            torch.cat([*prefix, image_BND[:, 1:]], 1), self._joint_bias(present_B2)
        )
        summaries, cells_BGD = self._summaries(joint_BND, prefix, image_BND)
        cells_BGD = self.image_norm(cells_BGD)
        reading = self._heads(cells_BGD, summaries, relation_BP, present_B2)
        return self._answer_teachers(reading, cells_BGD, summaries, stage)

    def _joint_bias(self, present_B2: Tensor) -> Tensor:
        """Mask the sensor's tokens and the image's where they were not measured."""
        image_B11G = _bias(present_B2[:, :1], 0, self.cells)
        if self.sensor_tokens is None:
            return torch.cat([torch.zeros_like(image_B11G[..., :2]), image_B11G], -1)
        # Both summaries, the sensor's own summary, then its tokens.
        return torch.cat([_bias(present_B2[:, 1:], 3, self.sensor_tokens.tokens), image_B11G], -1)

    def _summaries(
        self, joint_BND: Tensor, prefix: list[Tensor], image_BND: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the summaries of both, of the image and of the sensor, and the image's cells.

        Where image and sensor met from the first block on, all of them are read at its end;
        else those of one modality come from before they met.
        """
        norms = [self.joint_norm, self.image_norm, self.sensor_norm]
        if self.fused:
            read = [joint_BND[:, place] for place in range(len(prefix))]
            cells_BGD = joint_BND[:, -self.cells :]
        else:
            read = [joint_BND[:, 0], *(tokens_BND[:, 0] for tokens_BND in prefix[1:])]
            cells_BGD = image_BND[:, 1:]
        return [norm(x_BD) for norm, x_BD in zip(norms, read, strict=False)], cells_BGD

    def _heads(
        self,
        cells_BGD: Tensor,
        summaries: list[Tensor],
        relation_BP: Tensor | None,
        present_B2: Tensor,
    ) -> Reading:
        """`summaries` [B, D] are those of both together, of the image and of the sensor."""
        map_logits_BG = self.heads.map(cells_BGD)[..., 0]
        dropped = [self.dropout(summary_BD) for summary_BD in summaries]
        related = dropped if relation_BP is None else [*dropped, relation_BP]
        floor = self.heads.floor
        image_B1 = self.heads.image_evidence(dropped[1], map_logits_BG)
        evidence = [
            self.heads.joint(dropped[0]),
            _where_present(image_B1, floor[0], present_B2[:, :1]),
        ]
        if self.heads.sensor is not None:
            sensor_B1 = self.heads.sensor(dropped[2])
            evidence.append(_where_present(sensor_B1, floor[1], present_B2[:, 1:]))
        if self.relation is not None and self.heads.relation is not None:
            assert relation_BP is not None
            relation_B1 = self.heads.relation(self.relation.beyond_limit(relation_BP))
            both_B1 = present_B2[:, :1] * present_B2[:, 1:]
            evidence.append(_where_present(relation_B1, floor[2], both_B1))
        return Reading(
            class_logits_BK=self.heads.classes(torch.cat(related, 1)),
            score_logit_B=soft_maximum(torch.cat(evidence, 1)),
            map_logits_Bhw=map_logits_BG.reshape(-1, *self.grid),
            embedding_BD=summaries[0],
            features=(),
            summaries=(),
            window_BF=None,
        )

    def _answer_teachers(
        self, reading: Reading, cells_BGD: Tensor, summaries: list[Tensor], stage: int
    ) -> Reading:
        heads = self.teacher_heads[stage]
        assert isinstance(heads, TeacherHeads)
        return reading._replace(
            features=tuple(dense(cells_BGD) for dense in heads.dense),
            summaries=tuple(summary(summaries[1]) for summary in heads.summary),
            window_BF=None if heads.window is None else heads.window(summaries[2]),
        )

    def _relation_to(self, sensor: SensorInput) -> Relation:
        assert self.sensor_tokens is not None
        return Relation(self.stem.size, len(sensor.channels) * self.sensor_tokens.frames.size)

    @staticmethod
    def _with(summary_11D: Tensor, tokens_BND: Tensor) -> Tensor:
        return torch.cat([summary_11D.expand(tokens_BND.shape[0], -1, -1), tokens_BND], 1)


def part_spectrum(frames_BCNE: Tensor) -> Tensor:
    """Return one vector of spectral features a window [B, C * E], averaged over time."""
    return frames_BCNE.mean(2).flatten(1)


def soft_maximum(evidence_BE: Tensor) -> Tensor:
    """Return the log of the summed exponentials [B].

    Written out, with the maximum taken first, because runtimes differ in whether their own
    ReduceLogSumExp is safe in FP16.
    """
    most_B1 = evidence_BE.amax(1, keepdim=True)
    return torch.log(torch.exp(evidence_BE - most_B1).sum(1)) + most_B1[:, 0]


def _where_present(evidence_B1: Tensor, floor: Tensor, present_B1: Tensor) -> Tensor:
    """Choose by multiplication, which every runtime fuses; the flags are exactly 0 or 1."""
    return present_B1 * evidence_B1 + (1.0 - present_B1) * floor


def rate_features(rates_C: Tensor) -> Tensor:
    """Return [C, R]: sines and cosines of the rate's logarithm, from one decade to a tenth."""
    octaves_CF = (
        torch.log10(rates_C.float())[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0]) * math.tau
    )
    return torch.cat([torch.sin(octaves_CF), torch.cos(octaves_CF)], 1)


def _trunk(
    depth: int, prefix: int, grid: tuple[int, int], recipe: Recipe, *, experts: int = 0
) -> Trunk:
    shape, recompute = recipe.student, recipe.train.recompute
    blocks = BlockShape(
        shape.width, shape.heads, shape.hidden, experts, shape.gated, shape.dropout, recompute
    )
    layout = layout_for(prefix, grid, shape.window_tokens)
    return Trunk(depth, blocks, layout, global_every=shape.global_every)


def _bias(present_B1: Tensor, always: int, tokens: int) -> Tensor:
    """Return the keys' bias [B, 1, 1, always + tokens]: the first `always` are always there."""
    masked_B111 = ((1.0 - present_B1) * MASKED)[:, None, None]
    masked = masked_B111.expand(-1, -1, -1, tokens)
    return torch.cat([torch.zeros_like(masked_B111).expand(-1, -1, -1, always), masked], -1)


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * _TOKEN_DEVIATION)
