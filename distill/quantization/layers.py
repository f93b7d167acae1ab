"""A student whose layers compute as INT8 will: put on in place, and taken off again.

Which layers those are, and what they read together, is said by who exports (`Int8Input`); here it
is only done. Weights keep their names and stay the same parameters, so that state is saved, shared
and resumed as that of any student.

Shapes: E experts, R their rows, I input and O output channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.checkpoint import Int8Input
from distill.quantization.int8 import InputRange, weight_in_int8
from distill.students.student import Student
from distill.students.trunk import Experts

_LINEAR_AXIS, _EXPERTS_AXIS = 0, 2  # of the output channels


class Int8Linear(nn.Linear):
    """A Linear in int8; the bias stays float."""

    input_range: InputRange

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of what int8 makes of both operands."""
        weight = weight_in_int8(self.weight, _LINEAR_AXIS)
        return F.linear(self.input_range(input), weight, self.bias)


class Int8Experts(Experts):
    """Experts whose batched products are in int8, their scales shared by all experts."""

    input_ranges: nn.ModuleDict  # by the weight's name; a weight without one stays float

    def product(self, x_ERI: Tensor, weight: str) -> Tensor:
        """Return each expert's rows times its matrix, both as int8 has them."""
        if weight not in self.input_ranges:
            return super().product(x_ERI, weight)
        weight_EIO = weight_in_int8(getattr(self, weight), _EXPERTS_AXIS)
        read_ERI: Tensor = self.input_ranges[weight](x_ERI)
        return read_ERI @ weight_EIO


def put_in_int8(student: Student, inputs: Iterable[Int8Input], *, learn_ranges: bool) -> None:
    """Let the layers that `inputs` name compute as in int8, in place, and nothing be random.

    Dropout and token noise are for a student that may still become another; this one is to stay
    what it is.
    """
    for one in inputs:
        shared = InputRange(one.covered, learns=learn_ranges)
        for layer in one.layers:
            _put_layer_in_int8(student, layer, shared)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    student.image_tokens.noise = 0.0


def as_trained(student: Student, inputs: Iterable[Int8Input]) -> tuple[Int8Input, ...]:
    """Return `inputs` with the ranges that the student has now."""
    return tuple(
        msgspec.structs.replace(one, covered=_range_of(student, one.layers[0]).covered)
        for one in inputs
    )


@torch.no_grad()
def take_out_of_int8(student: Student) -> None:
    """Make it an ordinary student again, in place, its weights rounded to where int8 has them.

    Rounding them again then changes nothing, so the weights that export writes are these.
    """
    for module in list(student.modules()):
        if isinstance(module, Int8Linear):
            module.weight.copy_(weight_in_int8(module.weight, _LINEAR_AXIS))
            del module.input_range
            _become(nn.Linear, module)
        elif isinstance(module, Int8Experts):
            for name in module.input_ranges:
                weight = getattr(module, name)
                weight.copy_(weight_in_int8(weight, _EXPERTS_AXIS))
            del module.input_ranges
            _become(Experts, module)


def _put_layer_in_int8(student: Student, layer: str, shared: InputRange) -> None:
    module, weight = _module_of(student, layer)
    if not weight:
        assert type(module) is nn.Linear, f"'{layer}' is no Linear: export names what it quantises"
        _become(Int8Linear, module)
        module.input_range = shared
        return
    assert isinstance(module, Experts), f"'{layer}' is no weight of experts"
    if not isinstance(module, Int8Experts):
        _become(Int8Experts, module)
        module.input_ranges = nn.ModuleDict()
    module.get_submodule("input_ranges").add_module(weight, shared)


def _become(kind: type[nn.Module], module: nn.Module) -> None:
    """Change a module's class and nothing else of it, as torch's own parametrizations do."""
    module.__class__ = kind


def _range_of(student: Student, layer: str) -> InputRange:
    module, weight = _module_of(student, layer)
    found = module.input_ranges[weight] if isinstance(module, Int8Experts) else module.input_range
    assert isinstance(found, InputRange)
    return found


def _module_of(student: Student, layer: str) -> tuple[nn.Module, str]:
    """Return a layer's module, and the name of its weight where that is a layer of its own."""
    owner, _, name = layer.rpartition(".")
    found = getattr(student.get_submodule(owner), name)
    if isinstance(found, nn.Module):
        return found, ""
    return student.get_submodule(owner), name
