"""A student becomes Q/DQ ONNX: int8 written into the graph itself.

The ranges and choices are made in `export.quantization`, on the traced student; here its graph is
written, each weight as int8 in the file, and what was meant to be int8 is proven to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from edge.errors import AnswerIsNo
from edge.model_spec import ModelSpec
from export import onnx_file
from export.half_precision import half_precision
from export.onnx_graph import onnx_from_module
from export.quantization.prepared import QdqStudent

_PRODUCTS = ("MatMul", "Gemm", "Conv")


def int8_onnx_from_qdq(qdq: QdqStudent, spec: ModelSpec, path: Path) -> list[str]:
    """Write the Q/DQ student to `path`, weights as int8, all else as `half_precision` has it.

    Proves that every weight meant to be int8 is. Returns the names of the nodes that compute on
    int8.
    """
    model = onnx_from_module(qdq.module, spec)
    _transpose_int8_weights(model)
    _leave_zero_points_out(model)
    half_precision(model)
    onnx_file.check(model)
    found = int8_layers_of(model)
    if len(found) != len(qdq.quantised):
        modules = {name.split("/")[0] for name in found}
        missing = [name for name in qdq.quantised if not _is_of(name, modules)]
        raise AnswerIsNo(
            where=path.name,
            expected=f"{len(qdq.quantised)} layers with int8 weights and inputs",
            found=f"{len(found)}; without: " + (", ".join(missing) or "(a layer used twice)"),
            do="Report this with the versions of torch, torchao and onnxscript.",
        )
    onnx_file.save(model, path)
    return found


def int8_layers_of(model: ModelProto) -> list[str]:
    """Name every product whose operands both come dequantised, a weight from int8 in the file."""
    makers = {output: node for node in model.graph.node for output in node.output}
    int8 = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    layers = []
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        first, second = (makers.get(name) for name in node.input[:2])
        if second is not None and second.op_type == "Transpose":
            second = makers.get(second.input[0])
        if _dequantises(first, makers, ()) and _dequantises(second, makers, int8):
            layers.append(node.name)
    return layers


def _dequantises(
    node: NodeProto | None, makers: dict[str, NodeProto], stored: Iterable[str]
) -> bool:
    """Tell whether a node turns int8 to float: from the file, or as just quantised."""
    if node is None or node.op_type != "DequantizeLinear":
        return False
    source = makers.get(node.input[0])
    return node.input[0] in stored or (source is not None and source.op_type == "QuantizeLinear")


def _is_of(layer: str, modules: set[str]) -> bool:
    """Tell whether a layer is one of `modules`, or a weight or a product of one of them."""
    path = layer.partition("#")[0]
    return path in modules or path.rpartition(".")[0] in modules


def _transpose_int8_weights(model: ModelProto) -> None:
    """Store each weight as [in, out] and drop the Transpose between it and its MatMul.

    Tracing writes `weight[out, in] -> DequantizeLinear(axis 0) -> Transpose -> MatMul`; without the
    Transpose every runtime sees the plain Q/DQ pattern that it fuses into an int8 product.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for transpose in [node for node in graph.node if node.op_type == "Transpose"]:
        dequantize = makers.get(transpose.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        weight = stored.get(dequantize.input[0])
        alone = uses[transpose.input[0]] == 1 and uses.get(dequantize.input[0]) == 1
        if weight is None or len(weight.dims) != 2 or not alone:
            continue
        weight.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), weight.name)
        )
        _set_axis(dequantize, 1)
        dequantize.output[0] = transpose.output[0]
        graph.node.remove(transpose)


def _leave_zero_points_out(model: ModelProto) -> None:
    """Leave the zero point, which is 0 and optional, out where the weight is a batch (experts).

    onnxruntime fuses such a product, too, and then refuses a zero point per channel at the first
    run ("b zero point is not valid"); without one it computes on int8.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        weight = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and len(weight.dims) == 3:
            del node.input[2:]


def _set_axis(node: onnx.NodeProto, axis: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = axis
            return
    node.attribute.append(onnx.helper.make_attribute("axis", axis))
