"""The spec against the file: the tensors that an engine really has are held against the model's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edge.errors import InputError
from edge.model_spec import ModelSpec, TensorSpec


def refuse_mismatch(
    path: Path, spec: ModelSpec, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> None:
    """Raise InputError naming the first tensor that differs between the spec and the file."""
    for side, wanted_ones, found in (
        ("input", spec.inputs(), inputs),
        ("output", spec.outputs(), outputs),
    ):
        in_file = {tensor.name: tensor for tensor in found}
        for wanted in wanted_ones:
            got = in_file.pop(wanted.name, None)
            if got != wanted:
                raise _mismatch(path, f"{side} '{wanted.name}' {_form(wanted)}", _form(got))
        for name, extra in in_file.items():
            raise _mismatch(path, f"no other {side} than the spec's", f"'{name}' {_form(extra)}")


def _form(tensor: TensorSpec | None) -> str:
    return "no such tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _mismatch(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        where=path,
        expected=expected,
        found=found,
        do="The file and the spec are of different models: export the bundle again.",
    )
