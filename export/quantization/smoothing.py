"""SmoothQuant: a LayerNorm hands part of its outliers to the weights that follow it.

Channel c of the LayerNorm's output is divided by s_c and row c of each weight that reads it is
multiplied by s_c, with s_c = max|x_c|^a / max|w_c|^(1-a) (Xiao et al., arXiv 2211.10438, eq. 4).
The division is folded into the LayerNorm's own weight and bias, so nothing is computed more.

Here s_c is rounded to a power of two. Scaling by one is exact in floating point, so the float
student says bit for bit what it said before, whichever strength is tried; strengths can be tried
one after another on the same weights without error adding up; and at most a factor of sqrt(2) of
a channel's balance is given away, half a bit of int8's eight at worst.

Shapes: C channels, the last axis of the LayerNorm's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from export.quantization.observers import Activation
from export.quantization.prepared import PreparedStudent
from export.quantization.quantizer import (
    LAYER_NORM,
    LINEAR,
    MATMUL,
    has_parameter,
    module_path,
    parameter_of,
)

_ATEN = torch.ops.aten
# What moves entries about but keeps each in its channel, as long as the last axis stays the last.
_MOVES = (
    _ATEN.unsqueeze.default,
    _ATEN.transpose.int,
    _ATEN.flatten.using_ints,
    _ATEN.reshape.default,
    _ATEN.view.default,
    _ATEN.expand.default,
    _ATEN.slice.Tensor,
    _ATEN.select.int,
    _ATEN.clone.default,
    _ATEN.contiguous.default,
    _ATEN.dropout.default,
)
_LARGEST_POWER = 10  # of two: further, and FP16 would lose the small channels
_NOTHING = 1e-12


@dataclass
class Joint:
    """One LayerNorm and the weights that read nothing but it; each weight's input axis is 1."""

    name: str
    norm_weight: nn.Parameter
    norm_bias: nn.Parameter | None
    weights: list[nn.Parameter]
    watched: Activation  # sees the LayerNorm's channels
    powers_C: Tensor = field(default_factory=lambda: torch.zeros(0))  # of two, as folded now

    def fold(self, strength: float) -> None:
        """Fold scales of `strength` (0 undoes), whatever was folded before, from what was seen."""
        wanted_C = torch.zeros_like(self.norm_weight)
        if strength > 0.0:
            wanted_C = self._powers(strength)
        before_C = self.powers_C if len(self.powers_C) else torch.zeros_like(wanted_C)
        factor_C = torch.exp2(wanted_C - before_C)
        with torch.no_grad():
            self.norm_weight.div_(factor_C)
            if self.norm_bias is not None:
                self.norm_bias.div_(factor_C)
            for weight in self.weights:
                weight.mul_(factor_C[:, None] if weight.ndim == 3 else factor_C)
        self.powers_C = wanted_C

    def _powers(self, strength: float) -> Tensor:
        """Return the logarithms (base 2) of s_c, whole, for the unfolded weights."""
        assert self.watched.channels_C is not None
        folded_C = torch.exp2(self.powers_C) if len(self.powers_C) else torch.ones(1)
        seen_C = self.watched.channels_C * folded_C
        weights_C = torch.stack([_by_input_channel(weight) for weight in self.weights]).amax(0)
        heavy_C = weights_C / folded_C
        log_C = strength * torch.log2(seen_C.clamp_min(_NOTHING)) - (1.0 - strength) * torch.log2(
            heavy_C.clamp_min(_NOTHING)
        )
        powers_C = torch.where((seen_C > 0) & (heavy_C > 0), log_C, torch.zeros_like(log_C))
        # Their common factor moves no outlier: without it, the LayerNorm keeps its size.
        powers_C = torch.round(powers_C - powers_C.median())
        return powers_C.clamp(-_LARGEST_POWER, _LARGEST_POWER)


def joints_of(prepared: PreparedStudent) -> list[Joint]:
    """Find each LayerNorm whose every reader is a weight that can take its scale."""
    module = prepared.module
    found = (_joint(module, node) for node in module.graph.nodes if node.target is LAYER_NORM)
    return [joint for joint in found if joint is not None]


def fold(prepared: PreparedStudent, joints: list[Joint], strength: float) -> None:
    """Fold `strength` into every joint; ranges are stale then, see `PreparedStudent.watch`."""
    for joint in joints:
        joint.fold(strength)
    for unit in prepared.units:
        for one in unit.weights:
            one.forget()


def _joint(module: GraphModule, norm: Node) -> Joint | None:
    watched: list[Activation] = []
    products: list[Node] = []
    for reader in _readers(module, norm, watched):
        if reader is None:
            return None
        products.append(reader)
    weights = {id(weight): weight for weight in (parameter_of(module, node) for node in products)}
    norm_weight, norm_bias = (_parameter(module, norm, place) for place in (2, 3))
    shared = any(_readers_of(module, weight) != 1 for weight in weights.values())
    if norm_weight is None or not watched or shared or _readers_of(module, norm_weight) != 1:
        return None
    return Joint(module_path(norm), norm_weight, norm_bias, list(weights.values()), watched[0])


def _readers(module: GraphModule, node: Node, watched: list[Activation]) -> Iterator[Node | None]:
    """Yield the products that read `node`, and None for a reader that cannot take a scale."""
    channels = _channels(node)
    for user in node.users:
        if user.op == "call_module":
            observer = module.get_submodule(str(user.target))
            if isinstance(observer, Activation):
                watched.append(observer)
                yield from _readers(module, user, watched)
                continue
        reads_rows = user.target in (LINEAR, MATMUL) and user.args[0] is node
        if reads_rows and has_parameter(module, user):
            yield user
        elif user.target in _MOVES and _keeps_channels(user, channels):
            yield from _readers(module, user, watched)
        elif user.target is MATMUL and user.args[1] is node:
            # A product from the left (the experts' choice of tokens) mixes rows, not channels.
            yield from _readers(module, user, watched)
        else:
            yield None


def _keeps_channels(node: Node, channels: int) -> bool:
    """Tell whether the last axis of a moved tensor is still that of the channels."""
    if _channels(node) != channels:
        return False
    source = node.args[0]
    assert isinstance(source, Node)
    last = int(source.meta["val"].ndim) - 1
    if node.target is _ATEN.transpose.int:
        return last not in (_axis(node, 1, last), _axis(node, 2, last))
    if node.target in (_ATEN.select.int, _ATEN.slice.Tensor):
        return _axis(node, 1, last) != last
    if node.target is _ATEN.unsqueeze.default:
        return _axis(node, 1, last + 1) != last + 1
    return True


def _axis(node: Node, place: int, last: int) -> int:
    """Return the axis that argument `place` names, counted from the front."""
    axis = node.args[place] if len(node.args) > place else 0
    assert isinstance(axis, int)
    return int(axis % (last + 1))


def _channels(node: Node) -> int:
    value = node.meta.get("val")
    if value is None:  # an observer: as its source
        source = node.args[0]
        assert isinstance(source, Node)
        value = source.meta["val"]
    return int(value.shape[-1])


def _parameter(module: GraphModule, norm: Node, place: int) -> nn.Parameter | None:
    operand = norm.args[place] if len(norm.args) > place else None
    if not isinstance(operand, Node) or operand.op != "get_attr":
        return None
    return module.get_parameter(str(operand.target))


def _readers_of(module: GraphModule, parameter: nn.Parameter) -> int:
    """Count the places in the graph that read a parameter."""
    return sum(
        len(node.users)
        for node in module.graph.nodes
        if node.op == "get_attr" and _is(module, node, parameter)
    )


def _is(module: GraphModule, node: Node, parameter: nn.Parameter) -> bool:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name, None) is parameter


def _by_input_channel(weight: Tensor) -> Tensor:
    """Return the largest magnitude [C] of each input channel; axis 1 is theirs."""
    return weight.detach().abs().amax([axis for axis in range(weight.ndim) if axis != 1])
