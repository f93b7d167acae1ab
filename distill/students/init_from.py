"""Public weights into a student: `--init-from` a Hugging Face folder or a safetensors file.

A plain vision transformer of the student's width and depth starts its trunk, whatever family it is
of: names are read by pattern, positions are resized to the student's grid, layer scales are folded
into the Linear before them, and a dense MLP is copied into each expert. Where the student has more
blocks than the file, blocks are repeated in order (depth up-scaling, Kim et al., arXiv 2312.15166).
What was taken, resized or left is told by name.

The patch projection is rewritten for the student's own pixel order and standardisation.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.dataset import STRIDE
from distill.features.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE
from distill.students.student import PatchStem, Student
from distill.students.trunk import Attention, Block, Experts, Mlp
from edge.errors import InputError

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.(.+)\.(weight|bias|lambda1|gamma)$")
# What the families call the same tensors inside a block: ViT and ViT-MAE, DINOv2 and DINOv3 (older
# and newer names), CLIP and SigLIP, timm (C-RADIO). The first pattern that matches names it.
_PARTS = tuple(
    (re.compile(pattern + "$"), name)
    for pattern, name in (
        (r"layernorm_before|layer_norm1|norm1", "norm_attention"),
        (r"layernorm_after|layer_norm2|norm2", "norm_mlp"),
        (r"attention\.attention\.query|(?:self_attn|attention)\.q_proj", "attention.query"),
        (r"attention\.attention\.key|(?:self_attn|attention)\.k_proj", "attention.key"),
        (r"attention\.attention\.value|(?:self_attn|attention)\.v_proj", "attention.value"),
        (r"attn\.qkv", "attention.qkv"),
        (
            r"attention\.output\.dense|self_attn\.out_proj|attention\.o_proj|attn\.proj",
            "attention.project",
        ),
        (r"intermediate\.dense|mlp\.fc1|mlp\.up_proj", "mlp.up"),
        (r"output\.dense|mlp\.fc2|mlp\.down_proj", "mlp.down"),
        (r"layer_scale1|ls1", "attention.scale"),
        (r"layer_scale2|ls2", "mlp.scale"),
    )
)
_PATCH = re.compile(r"patch_embed\w*(?:\.projection|\.proj|\.embedder)?\.(weight|bias)$")
_PLACES = re.compile(r"(?:position_embeddings|pos_embed|position_embedding\.weight)$")
_SUMMARY = re.compile(r"(?:cls_token|class_embedding|class_token)$")
_LAST_NORM = re.compile(r"^(?:\w+\.)*?(?:layernorm|post_layernorm|norm)\.(weight|bias)$")
_MOST_PREFIX_TOKENS = 1 + 8  # a class token and registers, whose positions precede the patches'
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass
class Taken:
    """What became of each tensor of the file."""

    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Say it for people."""
        more = ", ..." if len(self.left) > 4 else ""
        left = f" ({', '.join(self.left[:4])}{more})" if self.left else ""
        resized = f" ({', '.join(self.resized)})" if self.resized else ""
        lines = [
            f"{len(self.taken)} tensors taken, {len(self.resized)} of them resized{resized}, "
            f"{len(self.left)} left{left}",
            *self.remarks,
        ]
        return "\n".join(lines)


def refuse_unfit(student: Student, path: Path) -> None:
    """Raise InputError where `path` cannot start this student."""
    weights = _Weights(path)
    weights.refuse_other_geometry(student)
    weights.refuse_oblong_places()


@torch.no_grad()
def start_from(student: Student, path: Path) -> Taken:
    """Start the student's image side and joint blocks from public weights, in place.

    `path` is a Hugging Face folder or a safetensors file. Call it after the student's
    standardisation is fitted: the patch projection is folded with it. Raises InputError for a
    path that holds no such weights, and for weights of another geometry or with positions on an
    oblong grid, before anything changed.
    """
    weights = _Weights(path)
    weights.refuse_other_geometry(student)
    weights.refuse_oblong_places()
    told = Taken()
    _start_blocks(student, weights, told)
    _start_patches(student, weights, told)
    _start_places(student, weights, told)
    for norm in (student.joint_norm, student.image_norm):
        for name in ("weight", "bias"):
            weights.copy(f"last_norm.{name}", getattr(norm, name), told)
    told.left = sorted(weights.unused())
    return told


class _Weights:
    """Tensors of one file or folder, by the student's names for them; read one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self._name_of: dict[str, str] = {}  # the student's name -> the file's
        self._used: set[str] = set()
        for file in _files_of(path):
            with _opened(file) as tensors:
                self._files.update(dict.fromkeys(tensors.keys(), file))
        for name in self._files:
            ours = _our_name(name)
            if ours is not None:
                self._name_of.setdefault(ours, name)
        self.depth = 1 + max(
            (int(ours.split(".")[1]) for ours in self._name_of if ours.startswith("blocks.")),
            default=-1,
        )
        self.config = _json_beside(path, "config.json")
        self.standardisation = _standardisation(path)

    def get(self, ours: str) -> Tensor | None:
        """Return a tensor in float32, or None where the file has none of this name."""
        name = self._name_of.get(ours)
        if name is None:
            return None
        self._used.add(name)
        with _opened(self._files[name]) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor.float()

    def name(self, ours: str) -> str:
        """What the file calls it."""
        return self._name_of[ours]

    def copy(self, ours: str, target: Tensor, told: Taken) -> None:
        """Copy a tensor of the same shape."""
        tensor = self.get(ours)
        if tensor is not None:
            target.copy_(tensor)
            _note(told.taken, self.name(ours))

    def copy_scaled(self, ours: str, scale: str, target: Tensor, told: Taken) -> None:
        """Copy a Linear's weight or bias with the layer scale behind it folded in."""
        tensor, scale_D = self.get(ours), self.get(scale)
        if tensor is None:
            return
        if scale_D is not None:
            tensor = tensor * (scale_D[:, None] if tensor.ndim == 2 else scale_D)
            _note(told.taken, self.name(scale))
        target.copy_(tensor)
        _note(told.taken, self.name(ours))

    def unused(self) -> set[str]:
        """Names in the file that nothing was started from."""
        return set(self._files) - self._used

    def refuse_other_geometry(self, student: Student) -> None:
        """Raise InputError unless width, MLP and heads are the student's."""
        if self.depth == 0:
            raise InputError(
                where=self.path,
                expected="the weights of a vision transformer",
                found="no blocks that this reads (" + ", ".join(sorted(self._files)[:3]) + ", ...)",
                do="Name a ViT, ViT-MAE, DINOv2, DINOv3, CLIP, SigLIP or C-RADIO model.",
            )
        block = student.joint_blocks.blocks[0]
        assert isinstance(block, Block)
        width, hidden = _mlp_shape(block.mlp)
        up = self.get("blocks.0.mlp.up.weight")
        found = "no plain MLP" if up is None else f"{up.shape[1]} wide, MLP {up.shape[0]}"
        heads = self.config.get("num_attention_heads", block.attention.heads)
        if found != f"{width} wide, MLP {hidden}" or heads != block.attention.heads:
            raise InputError(
                where=self.path,
                expected=f"weights {width} wide, MLP {hidden}, {block.attention.heads} heads",
                found=f"{found}, {heads} heads",
                do="Choose the recipe of that geometry, or other weights.",
            )

    def refuse_oblong_places(self) -> None:
        """Raise InputError unless positions are those of a square of patches.

        A file does not say how long a row of an oblong grid is.
        """
        places = self.get("places")
        if places is None:
            return
        has_class = self.get("summary") is not None
        most = _MOST_PREFIX_TOKENS if has_class else 0
        count = places.numel() // places.shape[-1]
        size = self.config.get("image_size")
        oblong = isinstance(size, list) and len(set(size)) > 1
        if oblong or count - math.isqrt(count) ** 2 > most:
            tokens = f"after at most {most} of class and register tokens" if most else "alone"
            raise InputError(
                where=self.path,
                expected=f"positions learned on a square of patches, {tokens}",
                found=f"{count} positions" + (f" for image_size {size}" if oblong else ""),
                do="Use a model for square images; its positions are resized to the student's.",
            )


def _start_blocks(student: Student, weights: _Weights, told: Taken) -> None:
    blocks = student.joint_blocks.blocks
    for number, block in enumerate(blocks):
        assert isinstance(block, Block)
        source = f"blocks.{source_block(number, len(blocks), weights.depth)}"
        for name in ("weight", "bias"):
            weights.copy(
                f"{source}.norm_attention.{name}", getattr(block.norm_attention, name), told
            )
            weights.copy(f"{source}.norm_mlp.{name}", getattr(block.norm_mlp, name), told)
            _start_attention(block.attention, weights, source, name, told)
        _start_mlp(block.mlp, weights, source, told)
    if weights.depth != len(blocks):
        told.remarks.append(f"{weights.depth} blocks were spread over the student's {len(blocks)}")
    activation = weights.config.get("hidden_act", "gelu")
    if activation not in ("gelu", "gelu_pytorch_tanh"):
        told.remarks.append(f"the file's blocks use {activation}, the student's GELU")


def _start_attention(
    attention: Attention, weights: _Weights, source: str, name: str, told: Taken
) -> None:
    parts = (attention.query, attention.key, attention.value)
    joint = weights.get(f"{source}.attention.qkv.{name}")
    if joint is not None:
        for part, tensor in zip(parts, joint.chunk(3), strict=True):
            getattr(part, name).copy_(tensor)
        _note(told.taken, weights.name(f"{source}.attention.qkv.{name}"))
    for part, called in zip(parts, ("query", "key", "value"), strict=True):
        target = getattr(part, name)
        if joint is None and weights.get(f"{source}.attention.{called}.{name}") is None:
            target.zero_()  # DINOv3's keys have no bias
        weights.copy(f"{source}.attention.{called}.{name}", target, told)
    inside = f"{source}.attention"
    projection = getattr(attention.project, name)
    weights.copy_scaled(f"{inside}.project.{name}", f"{inside}.scale", projection, told)


def _start_mlp(mlp: nn.Module, weights: _Weights, source: str, told: Taken) -> None:
    dense = Mlp(*_mlp_shape(mlp))
    for name in ("weight", "bias"):
        weights.copy(f"{source}.mlp.up.{name}", getattr(dense.up, name), told)
        down = getattr(dense.down, name)
        weights.copy_scaled(f"{source}.mlp.down.{name}", f"{source}.mlp.scale", down, told)
    if isinstance(mlp, Mlp):
        mlp.load_state_dict(dense.state_dict())
        return
    assert isinstance(mlp, Experts)
    mlp.up_EDU.copy_(dense.up.weight.T.expand_as(mlp.up_EDU))
    mlp.up_bias_E1U.copy_(dense.up.bias.expand_as(mlp.up_bias_E1U))
    mlp.down_EUD.copy_(dense.down.weight.T.expand_as(mlp.down_EUD))
    mlp.down_bias_E1D.copy_(dense.down.bias.expand_as(mlp.down_bias_E1D))


def _start_patches(student: Student, weights: _Weights, told: Taken) -> None:
    """Fold the file's pixel standardisation and the student's own into the projection."""
    kernel = weights.get("patch.weight")
    if kernel is None or not isinstance(student.stem, PatchStem):
        told.remarks.append("the patch projection starts fresh")
        return
    tokens = student.image_tokens
    if kernel.ndim == 2:  # SigLIP 2: a Linear over pixels, colour last
        side = math.isqrt(kernel.shape[1] // 3)
        kernel = torch.unflatten(kernel, 1, (side, side, 3)).permute(0, 3, 1, 2)
    if kernel.shape[-1] != STRIDE:
        kernel = resized_kernel(kernel, STRIDE)
        told.resized.append(weights.name("patch.weight"))
    mean_3, deviation_3 = (torch.tensor(part)[:, None, None] for part in weights.standardisation)
    # Pixel value = unit * PIXEL_SCALE + PIXEL_MEAN, unit = token * scale_S + mean_S.
    unit_scale = torch.unflatten(tokens.scale_S, 0, (3, STRIDE, STRIDE))
    unit_mean = torch.unflatten(tokens.mean_S, 0, (3, STRIDE, STRIDE))
    kernel = kernel / (255.0 * deviation_3)
    middle = unit_mean * PIXEL_SCALE + PIXEL_MEAN - 255.0 * mean_3
    tokens.project.weight.copy_((kernel * unit_scale * PIXEL_SCALE).flatten(1))
    tokens.project.bias.copy_((kernel * middle).sum((1, 2, 3)))
    bias = weights.get("patch.bias")
    if bias is not None:
        tokens.project.bias.add_(bias)
        _note(told.taken, weights.name("patch.bias"))
    _note(told.taken, weights.name("patch.weight"))


def _start_places(student: Student, weights: _Weights, told: Taken) -> None:
    """Resize learned positions to the student's grid; the class token starts the summary."""
    summary = weights.get("summary")
    places = weights.get("places")
    if places is None:
        told.remarks.append("no learned positions in the file: the student's start fresh")
    else:
        places_ND = places.reshape(-1, places.shape[-1])
        side = math.isqrt(len(places_ND))
        before = len(places_ND) - side * side if summary is not None else 0
        grid_1Dhw = torch.unflatten(places_ND[before:].T, 1, (side, -1))[None]
        if grid_1Dhw.shape[2:] != student.grid:
            grid_1Dhw = F.interpolate(
                grid_1Dhw, student.grid, mode="bicubic", align_corners=False, antialias=True
            )
            told.resized.append(weights.name("places"))
        student.image_tokens.place.copy_(grid_1Dhw.flatten(2).transpose(1, 2))
        _note(told.taken, weights.name("places"))
        if summary is not None and before:
            summary = summary.flatten() + places_ND[0]
    if summary is not None:
        for target in (student.summary, student.image_summary):
            target.copy_(summary.reshape(1, 1, -1))
        _note(told.taken, weights.name("summary"))


def source_block(number: int, depth: int, source_depth: int) -> int:
    """Which of the file's blocks starts block `number`: the same, or the nearest in proportion."""
    if depth in (source_depth, 1):
        return min(number, source_depth - 1)
    return round(number * (source_depth - 1) / (depth - 1))


def resized_kernel(kernel_D3HW: Tensor, side: int) -> Tensor:
    """Resize patch kernels so that a resized patch projects to the same token.

    The pseudo-inverse of the resize matrix (Beyer et al., "FlexiViT", arXiv 2212.08013): bilinear
    resizing of the kernel itself would change the tokens' scale.
    """
    old = kernel_D3HW.shape[-1]
    basis = torch.eye(old * old).reshape(old * old, 1, old, old)
    resize = F.interpolate(basis, (side, side), mode="bilinear", antialias=True).flatten(1)
    flat = kernel_D3HW.flatten(2) @ torch.linalg.pinv(resize).T
    return torch.unflatten(flat, 2, (side, side))


def _our_name(name: str) -> str | None:
    """Return the student's name of a file's tensor, or None where it has no place for it."""
    if name.startswith(("decoder", "text_model", "head.")) or ".decoder" in name:
        return None
    block = _BLOCK.search(name)
    if block is not None:
        number, inside, kind = block.groups()
        for pattern, ours in _PARTS:
            if pattern.match(inside):
                scale = kind in ("lambda1", "gamma")
                return f"blocks.{number}.{ours}" if scale else f"blocks.{number}.{ours}.{kind}"
        return None
    for pattern, ours in ((_PATCH, "patch"), (_LAST_NORM, "last_norm")):
        found = pattern.search(name)
        if found:
            return f"{ours}.{found.group(1)}"
    if _PLACES.search(name):
        return "places"
    return "summary" if _SUMMARY.search(name) else None


def _files_of(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            where=path,
            expected="a Hugging Face model folder with .safetensors files, or one such file",
            found="none" if path.exists() else "nothing",
            do="Download the model to a folder, and name that folder.",
        )
    return files


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise InputError(
            where=file,
            expected="a safetensors file",
            found=str(error),
            do="Download it again; a .bin or .pt file must be converted first.",
        ) from None


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that lies beside the weights; an empty one where there is none."""
    folder = path if path.is_dir() else path.parent
    try:
        content = msgspec.json.decode((folder / name).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}
    vision = content.get("vision_config")
    return vision if isinstance(vision, dict) else content


def _standardisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of pixels in 0..1 that the weights were trained with."""
    beside = _json_beside(path, "preprocessor_config.json")
    mean, deviation = beside.get("image_mean"), beside.get("image_std")
    if isinstance(mean, list) and isinstance(deviation, list) and len(mean) == len(deviation) == 3:
        return tuple(map(float, mean)), tuple(map(float, deviation))
    return _IMAGENET


def _mlp_shape(mlp: nn.Module) -> tuple[int, int]:
    """Return (width, hidden) of a dense or a sparse MLP."""
    if isinstance(mlp, Experts):
        return mlp.up_EDU.shape[1], mlp.up_EDU.shape[2]
    assert isinstance(mlp, Mlp)
    return mlp.up.in_features, mlp.up.out_features


def _note(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
