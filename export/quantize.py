"""A student becomes Q/DQ: int8 written into the graph itself, on the Linears and nowhere else.

torchao's PT2E flow with our own `Quantizer`. Weights are int8 per output channel, activations int8
per tensor, both symmetric; biases stay float (TensorRT's parser refuses an int32
DequantizeLinear). Residual adds, LayerNorm, softmax, the attention products, embeddings, constants
such as the DFT matrix, and the heads stay float: quantising those is what costs transformers their
accuracy (DESIGN, "INT8 on transformers").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import nn
from torch.fx import GraphModule, Node

from edge.errors import AnswerIsNo
from edge.model_spec import ModelSpec
from edge.scorer import ModelInputs
from export.onnx_graph import example_inputs, onnx_from_module, quiet

with quiet():  # torchao announces each CUDA extension that a CPU machine lacks
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
    )

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv2d.default, _ATEN.conv1d.default)
_FINEST_SCALE = 2.0**-20  # an activation that was always 0 still gets a scale above 0

# Symmetric, so that zero points are 0, as TensorRT requires; -128 is left out, so that the range
# is as wide below 0 as above.
_ACTIVATIONS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_tensor_symmetric,
    observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_FINEST_SCALE),
)
_WEIGHTS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_FINEST_SCALE),
)


@dataclass(frozen=True)
class QdqStudent:
    """A student whose quantisation is part of its graph."""

    module: GraphModule
    quantised: tuple[str, ...]  # module paths of the layers that are int8
    kept_float: tuple[str, ...]  # layers left as they were, because the student asks for it


class LinearQuantizer(Quantizer):  # type: ignore[misc] # torchao is untyped
    """Annotates `nn.Linear` outside the submodules `keep`; convolutions too where asked."""

    def __init__(self, keep: Iterable[str], *, convolutions: bool = False) -> None:
        self._keep = tuple(keep)
        self._targets = (_ATEN.linear.default, *(_CONVOLUTIONS if convolutions else ()))
        self.quantised: list[str] = []
        self.kept_float: list[str] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the input and the weight of every layer that becomes int8."""
        for node in model.graph.nodes:
            if node.target not in self._targets or not _has_weights(node):
                continue
            path = _module_path(node)
            if _is_inside(path, self._keep):
                self.kept_float.append(path)
                continue
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={node.args[0]: _ACTIVATIONS, node.args[1]: _WEIGHTS},
                _annotated=True,
            )
            self.quantised.append(path)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept: every pattern that `annotate` marks is one that TensorRT takes."""


def qdq_from_student(
    student: nn.Module,
    spec: ModelSpec,
    calibration: Iterable[ModelInputs],
    *,
    kept_float: Iterable[str] = (),
    convolutions: bool = False,
) -> QdqStudent:
    """Observe the student on the calibration samples and write the ranges into its graph.

    `kept_float` names submodules of the student (heads, embeddings) whose Linears stay float.
    """
    quantizer = LinearQuantizer(kept_float, convolutions=convolutions)
    with quiet(), torch.no_grad():
        traced = torch.export.export(student.eval(), example_inputs(spec))
        prepared = prepare_pt2e(traced.module(check_guards=False), quantizer)
    if not quantizer.quantised:
        raise AnswerIsNo(
            where=f"student '{spec.name}'",
            expected="Linear layers to quantise",
            found="none",
            do="Choose a recipe with transformer blocks; this student has nothing that INT8 "
            "would make faster.",
        )
    samples = 0
    with torch.no_grad():
        for samples, inputs in enumerate(calibration, start=1):
            prepared(*tensors_from(inputs, spec))
            if samples == 1:
                _stop_observing_weights(prepared)
    assert samples, "a calibration set is never empty, see `calibration_set`"
    with quiet():
        module = convert_pt2e(prepared)
    return QdqStudent(module, tuple(quantizer.quantised), tuple(quantizer.kept_float))


def int8_onnx_from_qdq(qdq: QdqStudent, spec: ModelSpec, path: Path) -> list[str]:
    """Write the Q/DQ student to `path`, weights as int8, and prove that all of them are.

    Returns the names of the nodes that compute on int8.
    """
    model = onnx_from_module(qdq.module, spec)
    _transpose_int8_weights(model)
    onnx.checker.check_model(model, full_check=True)
    found = int8_layers_of(model)
    if len(found) != len(qdq.quantised):
        missing = sorted(set(qdq.quantised) - {name.split("/")[0] for name in found})
        raise AnswerIsNo(
            where=path.name,
            expected=f"{len(qdq.quantised)} layers with int8 weights and inputs",
            found=f"{len(found)}; without: " + (", ".join(missing) or "(a layer used twice)"),
            do="Report this with the versions of torch, torchao and onnxscript.",
        )
    onnx.save(model, path)
    return found


def int8_layers_of(model: ModelProto) -> list[str]:
    """Name every MatMul, Gemm or Conv whose input and int8 weight both come dequantised."""
    makers = {output: node for node in model.graph.node for output in node.output}
    int8 = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    layers = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        activation, weight = (makers.get(name) for name in node.input[:2])
        if weight is not None and weight.op_type == "Transpose":
            weight = makers.get(weight.input[0])
        if activation is None or activation.op_type != "DequantizeLinear":
            continue
        if weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] in int8:
            layers.append(node.name)
    return layers


def tensors_from(inputs: ModelInputs, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """Return the model's inputs as tensors, in the order of the spec."""
    # A copy, because pixels that came straight from a picture are read-only memory.
    return tuple(torch.tensor(inputs[tensor.name]) for tensor in spec.inputs())


def _stop_observing_weights(prepared: GraphModule) -> None:
    """Weights are the same for every sample: seen once is enough, and most of the work is saved."""
    for observer in prepared.modules():
        if isinstance(observer, PerChannelMinMaxObserver):
            observer.forward = lambda weight: weight


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


def _set_axis(node: onnx.NodeProto, axis: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = axis
            return
    node.attribute.append(onnx.helper.make_attribute("axis", axis))


def _has_weights(node: Node) -> bool:
    """Tell whether the second operand is a parameter of the student, not something computed."""
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"


def _module_path(node: Node) -> str:
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _is_inside(path: str, modules: tuple[str, ...]) -> bool:
    return any(path == module or path.startswith(module + ".") for module in modules)
