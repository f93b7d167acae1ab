"""Which files beside it an ONNX file takes its weights from, read without the `onnx` package.

A model over 2 GB keeps its weights in other files, and names each by a path of its own. Such a
path could lead anywhere ("../../etc/shadow"), and not every parser minds; so it is read here first,
and only files that the manifest lists are let through.

Only the messages that can hold a tensor are walked (onnx.proto, field numbers below); the weights
themselves are stepped over, so that a file of gigabytes takes milliseconds.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from edge.bundle import Bundle
from edge.errors import InputError

# The messages of onnx.proto that can hold a tensor, each with its fields that hold such messages.
_HOLDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_OP_TYPE = 4  # of a Node
_KEY, _VALUE = 1, 2  # of an Entry
_LOCATION = b"location"
_FOREIGN_OPERATORS = (b"EPContext",)  # it runs a compiled model from a file that it names
_DEEPEST = 64  # a graph in an attribute in a graph: control flow, in our models none
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_NAME = 4096


def model_path(bundle: Bundle, file: str) -> Path:
    """Return the path of one of the bundle's ONNX files, it and its weights as the manifest says.

    Raises InputError where a byte of them differs, or the file names weights that the manifest
    does not list: nothing outside the bundle is read.
    """
    path = bundle.path_of(file)
    for location in weight_files_of(path):
        if location not in bundle.manifest.files:
            raise InputError(
                where=path,
                expected="weights in files that the manifest lists",
                found=f"weights in {location[:200]!r}",
                do="Use no bundle that somebody changed by hand: copy it from where it was "
                "exported.",
            )
        bundle.path_of(location)
    return path


def weight_files_of(path: Path) -> tuple[str, ...]:
    """Return the locations that the ONNX file at `path` names, each once, as they are written.

    Raises InputError where the file is no ONNX, or runs something from another file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size == 0:
                raise _Malformed("nothing in it")
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
            ):
                return tuple(dict.fromkeys(_locations(view, 0, size, "Model", 0)))
    except OSError as error:
        raise _no_onnx(path, error.strerror or str(error)) from None
    except _Malformed as error:
        raise _no_onnx(path, str(error)) from None


class _Malformed(Exception):
    """The bytes are not those of the message that stands here."""


def _locations(view: memoryview, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Yield the locations of external data in one message and in all that it holds."""
    if depth > _DEEPEST:
        raise _Malformed(f"messages nested deeper than {_DEEPEST}")
    key = value = b""
    for field, start, stop in _fields(view, at, end):
        inner = _HOLDS.get(message, {}).get(field)
        if inner is not None:
            yield from _locations(view, start, stop, inner, depth + 1)
        elif message == "Entry" and field == _KEY:
            key = _short(view, start, stop)
        elif message == "Entry" and field == _VALUE:
            value = _short(view, start, stop)
        elif message == "Node" and field == _OP_TYPE:
            operator = _short(view, start, stop)
            if operator in _FOREIGN_OPERATORS:
                raise _Malformed(f"the operator {operator.decode()}, which runs another file")
    if message == "Entry" and key == _LOCATION:
        yield value.decode("utf-8", errors="surrogateescape")


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that holds bytes; step over the others."""
    while at < end:
        tag, at = _varint(view, at, end)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(view, at, end)
        elif kind == _BYTES:
            length, at = _varint(view, at, end)
            if length > end - at:
                raise _Malformed("a field that ends after its message")
            yield tag >> 3, at, at + length
            at += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise _Malformed(f"a field of unknown kind {kind}")
    if at != end:
        raise _Malformed("a field that ends after its message")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _Malformed("a number without an end")


def _short(view: memoryview, start: int, stop: int) -> bytes:
    if stop - start > _LONGEST_NAME:
        raise _Malformed("a name of thousands of characters")
    return bytes(view[start:stop])


def _no_onnx(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="an ONNX file",
        found=found,
        do="Export it again; `edge verify` tells whether the bundle is whole.",
    )
