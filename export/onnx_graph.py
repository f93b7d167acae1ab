"""A student becomes an onnx_graph: static shapes, named tensors, all constants once.

The torch exporter (dynamo) writes opset 20 with `LayerNormalization` kept as one operator: the
decomposed one overflows FP16 on the Orin (DESIGN, "ONNX"). What the exporter adds for debugging is
taken out again, because it holds paths and source lines of the machine that exported, and nodes
are named for the student's module they came from: `blocks.0.mlp.up/MatMul`. NVIDIA's parser and
builder then speak of modules that a person finds in the student.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import onnx
import torch
from onnx import ModelProto, NodeProto, ValueInfoProto
from torch import Tensor, nn

from edge.errors import InputError
from edge.model_spec import ModelSpec, TensorSpec
from export import onnx_file
from export.onnx_simplified import simplify
from export.resize import put_resize_first

OPSET = 20
LARGEST_BATCH = 64
_ROOT = "student"  # stands for the student itself where an operation is in no submodule
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def fp32_onnx_from_student(student: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write the student, as trained, to `path`."""
    onnx_file.save(onnx_from_module(student.eval(), spec, path), path)


def onnx_from_module(module: nn.Module, spec: ModelSpec, path: Path | None = None) -> ModelProto:
    """Trace `module` into ONNX that takes and gives exactly the tensors of `spec`.

    A student looks at images of its own size; where the spec's model takes whole frames, their
    resize comes before it. With `path`, the weights of a large one are written beside it at once.
    """
    student_spec = spec_of_student(spec)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example_inputs(student_spec),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in student_spec.inputs()],
            output_names=[tensor.name for tensor in student_spec.outputs()],
            external_data=False,
            optimize=False,  # see `simplify`
            verbose=False,
        )
    assert program is not None
    simplify(program.model)
    if path is not None:
        onnx_file.put_beside(program.model, path)
    model = program.model_proto
    _name_nodes_by_module(model)
    _strip_debugging(model)
    if spec.frame is not None:
        put_resize_first(model, spec)
    onnx_file.check(model)
    problems = tensor_problems(model, spec)
    assert not problems, problems  # the student broke its own spec: our bug, not a person's
    assert not model.functions, "the exporter left ONNX functions, which TensorRT does not inline"
    return model


def example_inputs(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Return one tensor per input of the spec; only shapes and types matter to the tracer."""
    return tuple(
        torch.ones(tensor.shape, dtype=getattr(torch, tensor.dtype)) for tensor in spec.inputs()
    )


def spec_of_student(spec: ModelSpec) -> ModelSpec:
    """Return the contract of the student in a model that may take whole frames."""
    return msgspec.structs.replace(spec, frame=None)


def spec_for_batch(spec: ModelSpec, batch: int) -> ModelSpec:
    """Return the contract of the same student for `batch` samples in one run.

    The shape is static, as are all others. Raises InputError for a batch that no station fills.
    """
    if not 1 <= batch <= LARGEST_BATCH:
        raise InputError(
            where="--batch",
            expected=f"1 to {LARGEST_BATCH} samples in one run of the model",
            found=str(batch),
            do="Choose at most as many as the station has cameras; 1 answers soonest.",
        )
    return msgspec.structs.replace(spec, batch=batch)


def tensor_problems(model: ModelProto, spec: ModelSpec) -> list[str]:
    """Hold the graph's inputs and outputs against the spec; one sentence per difference."""
    problems = []
    for kind, found, wanted in (
        ("input", model.graph.input, spec.inputs()),
        ("output", model.graph.output, spec.outputs()),
    ):
        have = tuple(_tensor_of(value) for value in found)
        if have != wanted:
            problems.append(f"{kind}s are {have} where the spec says {wanted}")
    return problems


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch's exporter and torchao say to nobody in particular.

    Errors still rise as exceptions; only prints, warnings and log lines are held back.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _tensor_of(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(value.name, dtype, tuple(dim.dim_value for dim in kind.shape.dim))


def _name_nodes_by_module(model: ModelProto) -> None:
    """Name each node `module/Operator`, numbered from the second of the same name on.

    Q/DQ nodes are nobody's; they are named for the layer whose operand they quantise.
    """
    seen: Counter[str] = Counter()
    modules: dict[str, str] = {}  # a tensor's name -> the module that reads it
    for node in reversed(model.graph.node):
        module = _module_of(node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Transpose"):
            module = modules.get(node.output[0], module) if module == _ROOT else module
        modules.update(dict.fromkeys(node.input, module))
        node.name = module
    for node in model.graph.node:
        name = f"{node.name}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _module_of(node: NodeProto) -> str:
    """Return the module path that the exporter noted for a node."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES_KEY:
            scopes: list[str] = ast.literal_eval(entry.value)
            # The last scope is the traced operation itself, the one before it its module.
            return (scopes[-2] if len(scopes) > 1 else "") or _ROOT
    return _ROOT


def _strip_debugging(model: ModelProto) -> None:
    """Remove source lines, stack traces and intermediate shapes: they can be inferred again."""
    graph = model.graph
    del graph.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
