"""An ONNX file: checked, and written with its weights beside it where one file cannot hold them.

A protobuf message ends at 2 GB. A larger model keeps its weights in a file of its own, named for
the ONNX file and next to it, which every runtime finds by the relative name in the graph; in a
bundle both have their digest in the manifest. In memory there is no such limit, so graphs are
checked without their weights: what a checker reads of a weight is its type and shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, TensorProto
from onnx.helper import make_graph, make_model, make_tensor_value_info

from edge.onnx_weights import weight_files_of

MOST_BYTES_IN_ONE_FILE = 2_000_000_000  # protobuf ends at 2**31 - 1; the graph needs a part
WEIGHTS_SUFFIX = ".data"
_INSIDE = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them
_SMALL = 64  # elements that a tensor may have to stay in the graph without weights
_READABLE = 0o644  # what writes the weights makes a file that its owner alone can read
_HAS_LENGTH = 2  # protobuf's wire type
_Message = TypeVar("_Message", ModelProto, GraphProto)


def save(model: ModelProto, path: Path) -> None:
    """Write `model` to `path`, over an older one; its weights beside it where it is too large.

    Written weight by weight, so that no second copy of them all is in memory. A model whose
    weights went beside it has them no longer afterwards; those that were beside it before
    (`put_beside`) stay there.
    """
    beside = path.with_name(path.name + WEIGHTS_SUFFIX)
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        beside.unlink(missing_ok=True)
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if held <= MOST_BYTES_IN_ONE_FILE:
        with path.open("wb") as file:
            file.writelines(_pieces_of(model))
        return
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=beside.name,
        size_threshold=_INSIDE,
    )
    beside.chmod(_READABLE)


def put_beside(model: ir.Model, path: Path) -> None:
    """Write the weights beside `path`, before the graph is made a message, where it is too large.

    The graph then names them, and `save` writes it without them.
    """
    weights = [value.const_value for value in model.graph.initializers.values()]
    if sum(weight.nbytes for weight in weights if weight is not None) > MOST_BYTES_IN_ONE_FILE:
        beside = path.with_name(path.name + WEIGHTS_SUFFIX)
        beside.unlink(missing_ok=True)
        ir.external_data.unload_from_model(
            model, path.parent, beside.name, size_threshold_bytes=_INSIDE
        )
        beside.chmod(_READABLE)


def _pieces_of(model: ModelProto) -> Iterator[bytes]:
    """Yield the bytes of the file, one weight at a time.

    A message is its fields one after another, in any order, each a tag, a length and the content
    (protobuf.dev, "Encoding"); so the weights can follow the rest of the graph.
    """
    weights = model.graph.initializer
    graph = _without(model.graph, "initializer").SerializeToString()
    heads = [_head(GraphProto.INITIALIZER_FIELD_NUMBER, weight.ByteSize()) for weight in weights]
    length = len(graph) + sum(map(len, heads)) + sum(weight.ByteSize() for weight in weights)
    yield _without(model, "graph").SerializeToString()
    yield _head(ModelProto.GRAPH_FIELD_NUMBER, length)
    yield graph
    for head, weight in zip(heads, weights, strict=True):
        yield head
        yield weight.SerializeToString()


def _without(message: _Message, left_out: str) -> _Message:
    """Return a copy of a model or a graph without one of its fields."""
    rest = type(message)()
    for field, value in message.ListFields():
        if field.name != left_out and isinstance(value, (int, str)):
            setattr(rest, field.name, value)
        elif field.name != left_out:
            getattr(rest, field.name).extend(value)
    return rest


def _head(field: int, length: int) -> bytes:
    """Return the tag of a field that has a length, and that length, both in base 128."""
    found = bytearray()
    for number in (field << 3 | _HAS_LENGTH, length):
        left = number
        while left > 0x7F:
            found.append(left & 0x7F | 0x80)
            left >>= 7
        found.append(left)
    return bytes(found)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the ONNX file and the files that hold its weights, if there are any."""
    return (path, *(path.parent / name for name in weight_files_of(path)))


def check(model: ModelProto) -> None:
    """Hold the graph against ONNX's own rules, types and shapes inferred; of any size."""
    onnx.checker.check_model(without_weights(model), full_check=True)


def without_weights(model: ModelProto) -> ModelProto:
    """Return the graph with every weight as an input of its type and shape."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if _is_small(tensor)]
    large = [tensor for tensor in graph.initializer if not _is_small(tensor)]
    placeholders = [make_tensor_value_info(t.name, t.data_type, t.dims) for t in large]
    inputs = [*graph.input, *placeholders]
    skeleton = make_graph(list(graph.node), graph.name, inputs, list(graph.output), small)
    return make_model(skeleton, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _is_small(tensor: TensorProto) -> bool:
    return bool(np.prod(tensor.dims, dtype=np.int64) <= _SMALL)
