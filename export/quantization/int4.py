"""Weights alone in int4, block by block; every computation stays float.

A quarter of FP16's bytes to read, and no product becomes faster: at batch 1 and a few hundred
tokens a student is bound by arithmetic, so this form is for boards with little memory. Block-wise
`DequantizeLinear` exists from opset 21 on, so this file says 21 where all others say 20; the
operators that we use mean the same in both. Blocks are 128 weights along the input channels (64
where 128 does not divide them): the sizes that TensorRT's int4 gemms take. A layer whose input
channels neither divides stays float.

Each block's scale is the one of a few, from 0.75 of its largest weight up, with the least squared
error of rounding to nearest: clipping the largest a little serves the rest.

Shapes: K input channels, N output channels, B blocks along K, S block size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from torch import nn

from distill.quantization.int8 import FINEST_SCALE
from edge.errors import AnswerIsNo
from export.quantization.quantizer import NARROWEST, is_inside

OPSET = 21
_BLOCKS = (128, 64)
_LEVELS = 7  # symmetric: -8 is left out, as -128 is in int8
_SHARES = np.linspace(0.75, 1.0, 6)


@dataclass(frozen=True)
class Int4Layers:
    """Which layers' weights became int4, and which could not."""

    quantised: tuple[str, ...]
    too_narrow: tuple[str, ...]  # no block size divides their input channels


def linears_of(student: nn.Module, *, kept_float: Iterable[str] = ()) -> tuple[str, ...]:
    """Name the Linears outside the submodules `kept_float` (heads, embeddings), gates left out."""
    keep = tuple(kept_float)
    return tuple(
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features >= NARROWEST
        and not is_inside(name, keep)
    )


def int4_weights(model: ModelProto, layers: Iterable[str]) -> Int4Layers:
    """Store the weights of `layers` as int4 in `model`, a float onnx_graph, in place.

    Experts' batched weights stay float: TensorRT's int4 gemm takes a matrix.
    """
    graph, wanted = model.graph, set(layers)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    quantised, too_narrow = [], []
    for node in list(graph.node):
        layer = node.name.rpartition("/")[0]
        weight = stored.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or layer not in wanted:
            continue
        weight_KN = _as_rows(node, weight)
        size = next((size for size in _BLOCKS if len(weight_KN) % size == 0), None)
        if size is None:
            too_narrow.append(layer)
            continue
        _store(model, node, weight_KN, size)
        quantised.append(layer)
    if not quantised:
        raise AnswerIsNo(
            where="--precision int4-weights",
            expected=f"Linears whose input channels divide by {_BLOCKS[-1]}",
            found=f"none ({len(too_narrow)} Linears of other widths)",
            do="Choose --precision int8 or fp16, or a recipe whose student.width and "
            f"student.hidden are multiples of {_BLOCKS[-1]}.",
        )
    _forget_unused(model)
    _set_opset(model)
    onnx.checker.check_model(model, full_check=True)
    return Int4Layers(tuple(quantised), tuple(too_narrow))


def _as_rows(node: NodeProto, weight: TensorProto) -> NDArray[np.float32]:
    array = onnx.numpy_helper.to_array(weight).astype(np.float32)
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return np.ascontiguousarray(array.T) if transposed else array


def _store(model: ModelProto, node: NodeProto, weight_KN: NDArray[np.float32], size: int) -> None:
    """Put int4 values, their scales and a block-wise DequantizeLinear before the product."""
    codes_KN, scales_BN = _rounded(weight_KN, size)
    base = node.name.rpartition("/")[0] + ".weight"
    graph = model.graph
    graph.initializer.append(
        onnx.helper.make_tensor(
            base + "_int4", TensorProto.INT4, codes_KN.shape, _packed(codes_KN), raw=True
        )
    )
    graph.initializer.append(onnx.numpy_helper.from_array(scales_BN, base + "_scale"))
    dequantise = onnx.helper.make_node(
        "DequantizeLinear",
        [base + "_int4", base + "_scale"],
        [base + "_float"],
        name=node.name.rpartition("/")[0] + "/DequantizeLinear",
        axis=0,
        block_size=size,
    )
    graph.node.insert(list(graph.node).index(node), dequantise)
    node.input[1] = base + "_float"
    for attribute in node.attribute:
        if attribute.name == "transB":
            attribute.i = 0


def _packed(codes_KN: NDArray[np.int8]) -> bytes:
    """Put two codes into each byte, the first into its lower half (K is even: it has blocks)."""
    halves = codes_KN.flatten().view(np.uint8) & 0x0F
    packed = halves[0::2] | (halves[1::2] << 4)
    return packed.astype(np.uint8).tobytes()


def _rounded(
    weight_KN: NDArray[np.float32], size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the codes [K, N] and the scales [B, N] of the least squared error."""
    blocks_BSN = weight_KN.reshape(-1, size, weight_KN.shape[1])
    largest_BN = np.abs(blocks_BSN).max(1)
    best_BN = np.full_like(largest_BN, np.inf)
    scales_BN = np.zeros_like(largest_BN)
    for share in _SHARES:
        tried_BN = np.maximum(largest_BN * (share / _LEVELS), FINEST_SCALE).astype(np.float32)
        error_BN = ((_codes(blocks_BSN, tried_BN) * tried_BN[:, None] - blocks_BSN) ** 2).sum(1)
        better_BN = error_BN < best_BN
        best_BN = np.where(better_BN, error_BN, best_BN)
        scales_BN = np.where(better_BN, tried_BN, scales_BN)
    codes_BSN = _codes(blocks_BSN, scales_BN)
    return codes_BSN.reshape(weight_KN.shape).astype(np.int8), scales_BN.astype(np.float32)


def _codes(blocks_BSN: NDArray[np.float32], scales_BN: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(np.round(blocks_BSN / scales_BN[:, None]), -_LEVELS, _LEVELS)


def _forget_unused(model: ModelProto) -> None:
    """Drop the float weights that nothing reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(tensor)


def _set_opset(model: ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
