"""An onnx_graph in FP32 becomes strongly typed FP16, with FP32 where it is needed.

Which node computes in which precision is chosen by the student's modules, whose names the nodes
carry (`export.onnx_graph`), and by what flows in, never by a tolerance:

- FP32: what is in a module of `FLOAT_MODULES`, and what comes before the first product (scaling
  of pixels and readings) or leads to nothing but FP32 (the last norms, the scores). Spectra and
  the relation's logarithms are of squares, which leave FP16's range; a router's choice is made by
  small differences; a head's product is small, and its output is the score.
- FP16: every other product of a submodule, both sides of every Q/DQ pair with its scale, what is
  dequantised from weights in int8 or int4, and what such values flow through: residual adds,
  LayerNormalization (its mean and variance are FP32 inside, by its `stash_type`), the softmax of
  attention, which is fused in FP16 alone.

Inputs and outputs keep the types of the spec. Converted where it lies: no tensor is held twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import make_node

from edge.errors import AnswerIsNo
from export.onnx_file import without_weights

FLOAT_MODULES = {
    "resize": "grey levels are rounded from sums finer than FP16's",
    "frames": "spectra are of squares, which leave FP16's range",
    "relation": "logarithms of squares, which leave FP16's range",
    "router": "small differences choose the experts",
    "heads": "their small products are the scores",
}
"""Modules of the student that stay FP32, with all that is in them, and why."""

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_MOVES = ("Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose")
_ROOT = "student"  # the student's own operations, in no submodule (`export.onnx_graph`)
_SMALL = 16  # constants up to this many elements may stand in the file in both precisions
_FINEST_SCALE = 2.0**-20  # an FP16 subnormal that still has 4 bits
_LARGEST = float(np.finfo(np.float16).max)
_TO = {"half": TensorProto.FLOAT16, "float": TensorProto.FLOAT}

Precision = Literal["half", "float"]


def half_precision(
    model: ModelProto, *, float_modules: Iterable[str] = FLOAT_MODULES
) -> ModelProto:
    """Turn `model`, of `onnx_from_module`, int8 or int4, to FP16 in place; return it.

    Raises AnswerIsNo naming the weights that FP16 cannot hold.
    """
    floats = _float_tensors(model)
    precisions = _precisions(model, floats, frozenset(float_modules))
    _Conversion(model, floats, precisions).convert()
    return model


def _float_tensors(model: ModelProto) -> set[str]:
    """Name every tensor of FP32."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in inferred.initializer if t.data_type == TensorProto.FLOAT}


def _precisions(
    model: ModelProto, floats: set[str], float_modules: frozenset[str]
) -> list[Precision]:
    """Choose the precision of each node, in the order of the graph."""
    nodes = list(model.graph.node)
    settled = [_settled(node, float_modules) for node in nodes]
    chosen: list[Precision] = []
    halves: set[str] = set()
    mixed: set[int] = set()  # nodes that also take what an FP32 node gives
    made = {name for node in nodes for name in node.output} & floats
    for node, wish in zip(nodes, settled, strict=True):
        follows: Precision = "half" if halves.intersection(node.input) else "float"
        chosen.append(wish or follows)
        if made.intersection(node.input) - halves:
            mixed.add(len(chosen) - 1)
        if chosen[-1] == "half":
            halves.update(floats.intersection(node.output))
    # What leads to FP32 alone is computed in FP32 too; what was cast from no float serves all.
    readers: dict[str, set[Precision]] = {}
    for number in reversed(range(len(nodes))):
        node = nodes[number]
        wanted = set[Precision]().union(*(readers.get(name, set()) for name in node.output))
        moves_halves = node.op_type in _MOVES and number not in mixed
        if settled[number] is None and not moves_halves and wanted == {"float"}:
            chosen[number] = "float"
        if node.op_type == "Cast" and node.input[0] not in floats and "half" in wanted:
            chosen[number] = "half"
        for name in node.input:
            readers.setdefault(name, set()).add(chosen[number])
    return chosen


def _settled(node: NodeProto, float_modules: frozenset[str]) -> Precision | None:
    """Return the precision that a node has by what it is; None where its inputs decide."""
    module = node.name.rpartition("/")[0]
    if float_modules.intersection(module.split(".")):
        return "float"
    if node.op_type in _QUANTISERS:
        return "half"
    if node.op_type in _PRODUCTS:
        return "float" if module == _ROOT else "half"
    return None


class _Conversion:
    """Rewrites nodes one after another, casting a tensor where its reader wants it otherwise."""

    def __init__(self, model: ModelProto, floats: set[str], precisions: list[Precision]) -> None:
        self._graph = model.graph
        self._floats = floats
        self._precisions = precisions
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._is_now: dict[str, Precision] = dict.fromkeys(floats, "float")
        self._cast: dict[tuple[str, Precision], str] = {}
        self._written: list[NodeProto] = []

    def convert(self) -> None:
        """Convert constants, then nodes, then give the outputs back in FP32."""
        self._halve_scales()
        self._halve_constants()
        outputs = {value.name for value in self._graph.output}
        for node, precision in zip(self._graph.node, self._precisions, strict=True):
            for place, name in enumerate(node.input):
                if name in self._floats:
                    node.input[place] = self._as(precision, name)
            if node.op_type == "Cast" and _cast_to(node).i == TensorProto.FLOAT:
                _cast_to(node).i = _TO[precision]
            self._written.append(node)
            for place, name in enumerate(node.output):
                if name in self._floats and precision == "half":
                    self._is_now[name] = "half"
                    if name in outputs:
                        node.output[place] = f"{name}_half"
                        self._cast[name, "half"] = f"{name}_half"
                        self._add_cast(f"{name}_half", name, "float")
                        self._is_now[name] = "float"
        written = [NodeProto.FromString(node.SerializeToString()) for node in self._written]
        del self._graph.node[:]
        self._graph.node.extend(written)

    def _as(self, wanted: Precision, name: str) -> str:
        """Return the tensor in the precision wanted: itself, or a cast of it, made once."""
        if self._is_now[name] == wanted:
            return name
        known = self._cast.get((name, wanted))
        if known is not None:
            return known
        other = f"{name}_{wanted}"
        self._cast[name, wanted] = other
        tensor = self._stored.get(name)
        if tensor is not None and np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
            self._graph.initializer.append(_halved(tensor, other))
        else:
            self._add_cast(name, other, wanted)
        return other

    def _add_cast(self, name: str, other: str, wanted: Precision) -> None:
        node = make_node("Cast", [name], [other], name=f"{_ROOT}/{other}", to=_TO[wanted])
        self._written.append(node)

    def _halve_constants(self) -> None:
        """Store as FP16 what no FP32 node reads; refuse what FP16 cannot hold."""
        readers: dict[str, set[Precision]] = {}
        for node, precision in zip(self._graph.node, self._precisions, strict=True):
            for name in node.input:
                readers.setdefault(name, set()).add(precision)
        beyond = []
        for name, tensor in self._stored.items():
            if name in self._floats and "half" in readers.get(name, ()):
                if np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0) > _LARGEST:
                    beyond.append(name)
                elif readers[name] == {"half"}:
                    tensor.CopyFrom(_halved(tensor, name))
                    self._is_now[name] = "half"
        if beyond:
            raise AnswerIsNo(
                where="the student in FP16",
                expected=f"weights within FP16's range ({_LARGEST:g})",
                found=f"larger ones in {', '.join(beyond[:3])}",
                do="Distil again with a smaller train.learning_rate; these weights overflow.",
            )

    def _halve_scales(self) -> None:
        """Round the scales of weights to FP16, and the weights' codes for what it changed.

        Codes of int4 stay: even the finest scale changes by 1/32, which moves 7 by a quarter step.
        """
        as_given: dict[str, NDArray[np.float32]] = {}  # several weights may share one scale
        for node in self._graph.node:
            if node.op_type in _QUANTISERS and node.input[1] in self._stored:
                scale = self._stored[node.input[1]]
                given = onnx.numpy_helper.to_array(scale).astype(np.float32)
                before = as_given.setdefault(scale.name, given)
                after = np.maximum(before, np.float32(_FINEST_SCALE)).astype(np.float16)
                codes = self._stored.get(node.input[0])
                if codes is not None and codes.data_type == TensorProto.INT8:
                    _recode(codes, before, after, _axis_of(node))
                scale.CopyFrom(onnx.numpy_helper.from_array(after.astype(np.float32), scale.name))


def _recode(
    codes: TensorProto, before: NDArray[np.float32], after: NDArray[np.float16], axis: int
) -> None:
    """Divide the weights by their rounded scales, where that is another scale by more than 1/256.

    A smaller change moves no code by half a step.
    """
    change = before / after.astype(np.float32)
    if np.abs(change - 1.0).max() < 1 / 256:
        return
    old = onnx.numpy_helper.to_array(codes)
    shape = [1] * old.ndim
    if change.ndim:
        shape[axis] = -1
    new = np.clip(np.rint(old * change.reshape(shape)), -127, 127).astype(np.int8)
    codes.CopyFrom(onnx.numpy_helper.from_array(new, codes.name))


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), name)


def _axis_of(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 1)


def _cast_to(node: NodeProto) -> onnx.AttributeProto:
    to: onnx.AttributeProto
    (to,) = (attribute for attribute in node.attribute if attribute.name == "to")
    return to
