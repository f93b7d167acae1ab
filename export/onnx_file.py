"""An ONNX file: checked, and written with its weights beside it where one file cannot hold them.

A protobuf message ends at 2 GB. A larger model keeps its weights in a file of its own, named for
the ONNX file and next to it, which every runtime finds by the relative name in the graph; in a
bundle both have their digest in the manifest. In memory there is no such limit, so graphs are
checked without their weights: what a checker reads of a weight is its type and shape.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_model, make_tensor_value_info

from edge.onnx_weights import weight_files_of

MOST_BYTES_IN_ONE_FILE = 2_000_000_000  # protobuf ends at 2**31 - 1; the graph needs a part
WEIGHTS_SUFFIX = ".data"
_INSIDE = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them
_SMALL = 64  # elements that a tensor may have to stay in the graph without weights


def save(model: ModelProto, path: Path) -> None:
    """Write `model` to `path`, over an older one; its weights beside it where it is too large.

    A model whose weights went beside it has them no longer afterwards.
    """
    beside = path.with_name(path.name + WEIGHTS_SUFFIX)
    beside.unlink(missing_ok=True)
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if held <= MOST_BYTES_IN_ONE_FILE:
        onnx.save(model, path)
        return
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=beside.name,
        size_threshold=_INSIDE,
    )


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
