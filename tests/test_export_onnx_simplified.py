"""The graph loses what onnxscript's own optimisation would take out, and as much of it."""

import pytest
import torch
from benchmarks.fresh_students import spec_for, student_for
from onnxscript.optimizer import optimize

from distill.recipe import load_recipe
from distill.students.student import EMBEDDINGS, HEADS
from export.onnx_graph import OPSET, example_inputs, quiet
from export.onnx_simplified import simplify
from export.quantization.prepared import prepared_student

SIDE = 64


def program_of(module, spec):
    with quiet(), torch.no_grad():
        return torch.onnx.export(
            module, example_inputs(spec), dynamo=True, opset_version=OPSET, optimize=False
        ).model


def operations(model):
    """Every node with what it reads, in order."""
    return [
        (node.op_type, *(None if value is None else value.name for value in node.inputs))
        for node in model.graph
    ]


@pytest.mark.parametrize("form", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("recipe", "settings"), [("tiny", ()), ("600m-sparse", ("student.joint_depth=1",))]
)
def test_graph_is_the_one_that_onnxscript_makes(recipe, settings, form):
    student = student_for(load_recipe(recipe, settings), SIDE)
    spec = spec_for(load_recipe(recipe, settings), SIDE)
    module = student
    if form == "int8":
        prepared = prepared_student(student, spec, kept_float=(*HEADS, *EMBEDDINGS))
        prepared.settle("max")
        module = prepared.converted().module
    ours, theirs = program_of(module, spec), program_of(module, spec)
    before = len(operations(ours))
    simplify(ours)
    optimize(theirs)
    assert operations(ours) == operations(theirs)
    assert len(operations(ours)) < before
