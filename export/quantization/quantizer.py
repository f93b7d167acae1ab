"""Which operands become int8: our `Quantizer` for torchao, by what TensorRT turns into int8 gemms.

Linears: weights per output channel, inputs per tensor. Convolutions the same, where asked for.
Experts' batched product `[E, R, D] @ [E, D, U]`: weight scales along U, shared by the experts,
for only so does NVIDIA's builder make one int8 gemm of it (DESIGN, "A sparse 600M"). The two
products of attention, where asked for. Everything else stays float: residual adds, LayerNorm,
softmax, embeddings, heads, constants such as the DFT matrix, and biases (TensorRT's parser refuses
an int32 DequantizeLinear). A Linear narrower than 16 outputs stays too: it is a gate or a router,
whose choice is made by small differences, and nothing is gained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.onnx_graph import quiet
from export.quantization.observers import activation, weight

with quiet():
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

_ATEN = torch.ops.aten
LINEAR, MATMUL, LAYER_NORM = (
    _ATEN.linear.default,
    _ATEN.matmul.default,
    _ATEN.layer_norm.default,
)
_CONVOLUTIONS = (_ATEN.conv2d.default, _ATEN.conv1d.default)
_TO_SOFTMAX = (_ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor)  # a mask, a scale
NARROWEST = 16  # modelopt's own bound for a product worth quantising
ANNOTATION = "quantization_annotation"


class LayerQuantizer(Quantizer):  # type: ignore[misc] # torchao is untyped
    """Annotates what may become int8, outside the submodules `keep`."""

    def __init__(
        self, keep: Iterable[str], *, convolutions: bool = False, attention: bool = False
    ) -> None:
        self._keep = tuple(keep)
        self._convolutions = convolutions
        self._attention = attention
        self.kept_float: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark both operands of every product that may become int8."""
        for node in model.graph.nodes:
            axis = self._weight_axis(model, node)
            if axis is not None:
                name = layer_name(node)
                if is_inside(name, self._keep) or _channels(model, node, axis) < NARROWEST:
                    self.kept_float.append(name)
                else:
                    _annotate(node, weight(axis))
            elif self._attention and is_attention_product(node):
                _annotate(node, activation())
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept: every pattern that `annotate` marks is one that TensorRT takes."""

    def _weight_axis(self, model: GraphModule, node: Node) -> int | None:
        """Return the axis of the output channels in the node's weight; None where it has none."""
        if node.target is LINEAR or (self._convolutions and node.target in _CONVOLUTIONS):
            return 0 if has_parameter(model, node) else None
        if node.target is MATMUL and has_parameter(model, node):
            return 2 if parameter_of(model, node).ndim == 3 else None
        return None


def has_parameter(model: GraphModule, node: Node) -> bool:
    """Tell whether the second operand is learned: not computed, and no constant matrix."""
    operand = _operand(node)
    return operand.op == "get_attr" and isinstance(_attribute(model, operand), nn.Parameter)


def parameter_of(model: GraphModule, node: Node) -> nn.Parameter:
    """Return the node's weight, whether or not an observer stands before it."""
    found = _attribute(model, _operand(node))
    assert isinstance(found, nn.Parameter)
    return found


def layer_name(node: Node) -> str:
    """Return the module path of a layer, or of the weight itself where a module has several."""
    path = module_path(node)
    operand = _operand(node) if node.target is MATMUL else None
    return str(operand.target) if operand is not None and operand.op == "get_attr" else path


def module_path(node: Node) -> str:
    """Return the path of the module that a node was traced in."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """Tell whether `path` is one of `modules` or within one."""
    return any(path == module or path.startswith(module + ".") for module in modules)


def is_attention_product(node: Node) -> bool:
    """Tell whether a node is query @ key, which a softmax follows, or softmax @ value."""
    if node.target is not MATMUL:
        return False
    first, second = node.args[:2]
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    return _is_softmax(first) or _leads_to_softmax(node)


def _leads_to_softmax(node: Node) -> bool:
    while len(node.users) == 1:
        node = next(iter(node.users))
        if _is_softmax(node):
            return True
        if node.target not in _TO_SOFTMAX:
            return False
    return False


def _is_softmax(node: Node) -> bool:
    return node.target in (_ATEN.softmax.int, _ATEN._softmax.default)


def _annotate(node: Node, second: Any) -> None:
    node.meta[ANNOTATION] = QuantizationAnnotation(
        input_qspec_map={node.args[0]: activation(), node.args[1]: second}, _annotated=True
    )


def _channels(model: GraphModule, node: Node, axis: int) -> int:
    return int(parameter_of(model, node).shape[axis])


def _operand(node: Node) -> Node:
    """Return the second operand, looking through an observer."""
    operand = node.args[1]
    assert isinstance(operand, Node)
    if operand.op == "call_module":
        operand = operand.args[0]
    assert isinstance(operand, Node)
    return operand


def _attribute(model: GraphModule, node: Node) -> Any:
    module: Any = model
    for part in str(node.target).split("."):
        module = getattr(module, part)
    return module
