"""Whole frames into the onnx_graph, which brings them to the student's size as `edge.prepare` does.

The filter is Pillow's (`src/libImaging/Resample.c`, BILINEAR): a triangle as wide as the
scale, its weights in steps of 2**-22; columns first, then rows, each pass in whole grey levels. No
runtime that we serve but onnxruntime has it (TensorRT's Resize knows no antialiasing), so it is
written in operators that all have, with static shapes.

A pass is linear, hence a product with a matrix; but of one of [1280, 256] all but a hundredth is
zero. So each line is cut into stretches of pixels, and each stretch is multiplied by the weights
that it has. What comes out are parts of pixels, two of them for a pixel over a seam, which are
gathered and added up:

    [lines, stretches * pixels] -> [stretches, lines, parts] -> [pixels out, lines]

To the last bit: Pillow's sums have 30 bits and FP32's 24, so a weight is split in two halves of 11
bits, whose sums FP32 holds exactly (and TF32 the products), in whatever order they are added. The
low half's carry joins the high half before that is rounded.

Shapes: I pixels in, O pixels out of a line, N stretches, P pixels of one, R parts of one (of high
halves, then of low ones), T terms of a sum, K colours side by side.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import get_attribute_value, make_node
from onnx.numpy_helper import from_array

from edge.model_spec import ModelSpec

MODULE = "resize"  # as the student's modules are named in nodes, see `export.onnx_graph`
_STEPS = 1 << 22  # of a weight: Pillow's PRECISION_BITS for pixels of 8 bits
_HALF_STEPS = 1 << 11
_SHORTEST = 16  # pixels of a stretch: shorter ones make more parts, longer ones more zeros
_COLOURS = 3


def filter_weights(source: int, target: int) -> NDArray[np.float32]:
    """Return Pillow's weights [O, I], each an exact multiple of 2**-22."""
    scale = source / target
    support = max(scale, 1.0)
    weights_OI = np.zeros((target, source), dtype=np.float32)
    for place in range(target):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(source, int(centre + support + 0.5))
        apart = np.abs(np.arange(first, last) - centre + 0.5) / support
        triangle = np.maximum(0.0, 1.0 - apart)
        weights_OI[place, first:last] = np.floor(triangle / triangle.sum() * _STEPS + 0.5) / _STEPS
    return weights_OI


@dataclass(frozen=True)
class Stretches:
    """One line's weights, cut. A pixel out is the sum of its T parts, some of which are zero."""

    weights_NPR: NDArray[np.float32]  # whole numbers, 2**11 at most
    high_TO: NDArray[np.int64]  # place of each term's high half among the N * R parts
    low_TO: NDArray[np.int64]
    appended: int  # black pixels at the end of the line, so that N * P is its length


def stretches_of(weights_OI: NDArray[np.float32]) -> Stretches:
    """Cut the weights of a line into stretches."""
    target, source = weights_OI.shape
    pixels = _pixels_of_stretch(weights_OI)
    count = math.ceil(source / pixels)
    padded_OI = np.pad(weights_OI, ((0, 0), (0, count * pixels - source)))
    cut_ONP = padded_OI.reshape(target, count, pixels)
    meets_ON = np.asarray(cut_ONP.any(axis=2))
    parts, terms = int(meets_ON.sum(axis=0).max()), int(meets_ON.sum(axis=1).max())
    if meets_ON.sum() == count * parts:
        parts += 1  # a part that stays zero, for sums of fewer terms
    weights_NPR = np.zeros((count, pixels, 2 * parts), dtype=np.float32)
    places: list[list[int]] = [[] for _ in range(target)]
    zero = 0
    for number in range(count):
        met = np.flatnonzero(meets_ON[:, number])
        whole_PR = cut_ONP[met, number].T * np.float32(_STEPS)
        high_PR = np.floor(whole_PR / _HALF_STEPS)
        weights_NPR[number, :, : len(met)] = high_PR
        weights_NPR[number, :, parts : parts + len(met)] = whole_PR - high_PR * _HALF_STEPS
        for part, place in enumerate(met):
            places[place].append(number * 2 * parts + part)
        if len(met) < parts:
            zero = number * 2 * parts + len(met)
    full = [(*mine, *[zero] * (terms - len(mine))) for mine in places]
    high_TO = np.array(full, dtype=np.int64).T
    return Stretches(weights_NPR, high_TO, high_TO + parts, count * pixels - source)


def put_resize_first(model: ModelProto, spec: ModelSpec) -> None:
    """Let `model`, which takes images of `spec.image`, take frames of `spec.frame`; in place."""
    assert spec.frame is not None
    graph = model.graph
    (image,) = (value for value in graph.input if value.name == "image")
    (cast,) = (node for node in graph.node if image.name in node.input)
    assert cast.op_type == "Cast", cast.op_type  # `export.onnx_graph`: before anything else
    assert get_attribute_value(cast.attribute[0]) == TensorProto.FLOAT
    resize = _Resize()
    resize.write(image.name, spec)
    resize.nodes[-1].output[0] = cast.output[0]
    for dimension, size in zip(
        image.type.tensor_type.shape.dim, spec.inputs()[0].shape, strict=True
    ):
        dimension.dim_value = size
    kept = [node for node in graph.node if node.name != cast.name]
    # Copies: those that lie in the graph go with the list that is emptied.
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in (*resize.nodes, *kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(from_array(value, name) for name, value in resize.constants.items())


class _Resize:
    """Writes the nodes; each method returns the name of the tensor that it made."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._seen: Counter[str] = Counter()

    def write(self, frames: str, spec: ModelSpec) -> None:
        """Frames uint8 [B, H, W, K] become images float32 [B, h, w, K] in whole grey levels."""
        assert spec.frame is not None
        (height, width), batch = (spec.frame.height, spec.frame.width), spec.batch
        x_BHWK = self._add("Cast", frames, to=TensorProto.FLOAT)
        x_wKBH = self._pass(x_BHWK, "columns", batch * height, (width, spec.image.width), _COLOURS)
        lines = spec.image.width * _COLOURS * batch
        x_hwKB = self._pass(x_wKBH, "rows", lines, (height, spec.image.height), 1)
        if batch > 1:
            x_hwKB = self._reshape(x_hwKB, spec.image.height, spec.image.width, _COLOURS, batch)
            x_hwKB = self._add("Transpose", x_hwKB, perm=[3, 0, 1, 2])
        self._reshape(x_hwKB, batch, spec.image.height, spec.image.width, _COLOURS)

    def _pass(self, x: str, axis: str, lines: int, sizes: tuple[int, int], colours: int) -> str:
        """Resize lines [lines, I * K] and turn them: [O * K, lines]."""
        source, target = sizes
        if source == target:
            x = self._reshape(x, lines, source * colours)
            return self._add("Transpose", x, perm=[1, 0])
        cut = stretches_of(filter_weights(source, target))
        count, pixels, parts = cut.weights_NPR.shape
        if cut.appended:
            x = self._reshape(x, lines, source * colours)
            x = self._add("Pad", x, self._constant(np.array([0, 0, 0, cut.appended * colours])))
        x = self._reshape(x, lines, count, pixels * colours)
        x = self._add("Transpose", x, perm=[1, 0, 2])
        weights = self._constant(_for_colours(cut.weights_NPR, colours), f"{axis}.weights")
        x = self._add("MatMul", x, weights)
        x = self._add("Transpose", x, perm=[0, 2, 1])
        x = self._reshape(x, count * parts, colours * lines)
        low = self._sum(x, cut.low_TO, f"{axis}.low")
        high = self._sum(x, cut.high_TO, f"{axis}.high")
        half = self._constant(np.array(_HALF_STEPS / 2, dtype=np.float32), "half")
        total = self._add("Add", self._add("Add", high, self._shifted(low)), half)
        return self._shifted(total)

    def _sum(self, x: str, places_TO: NDArray[np.int64], name: str) -> str:
        """Add up parts of `x`."""
        terms = [
            self._add("Gather", x, self._constant(places_O, f"{name}.{number}"), axis=0)
            for number, places_O in enumerate(places_TO)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = self._add("Add", total, term)
        return total

    def _shifted(self, x: str) -> str:
        """Shift whole numbers right by the bits of a half."""
        step = self._constant(np.array(1.0 / _HALF_STEPS, dtype=np.float32), "step")
        return self._add("Floor", self._add("Mul", x, step))

    def _reshape(self, x: str, *shape: int) -> str:
        return self._add("Reshape", x, self._constant(np.array(shape)))

    def _constant(self, value: NDArray[Any], name: str = "") -> str:
        name = f"{MODULE}.{name or f'shape.{len(self.constants)}'}"
        self.constants[name] = value
        return name

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        self._seen[operator] += 1
        number = f"_{self._seen[operator]}" * (self._seen[operator] > 1)
        name = f"{MODULE}/{operator}{number}"
        self.nodes.append(make_node(operator, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"


def _for_colours(weights_NPR: NDArray[np.float32], colours: int) -> NDArray[np.float32]:
    """Return the weights for pixels whose colours lie side by side [N, P * K, R * K]."""
    count, pixels, parts = weights_NPR.shape
    apart = np.einsum("npr,kc->npkrc", weights_NPR, np.eye(colours, dtype=np.float32))
    return np.ascontiguousarray(apart.reshape(count, pixels * colours, parts * colours))


def _pixels_of_stretch(weights_OI: NDArray[np.float32]) -> int:
    """Choose a length that divides the line, better one of sixteens.

    It is no shorter than a pixel's filter less one, so that a sum has two terms at most.
    """
    source = weights_OI.shape[1]
    shortest = max(_SHORTEST, int((weights_OI > 0).sum(axis=1).max()) - 1)
    lengths = range(shortest, 2 * shortest + _SHORTEST)
    return min(lengths, key=lambda length: (source % length > 0, length % 16 > 0, length))
