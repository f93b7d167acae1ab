"""A plan and its stamp: what it was built from, by which builder, and for which machine.

    PLAN    64 KiB: a line that names the format, a line with length and SHA-256 of the stamp,
            the stamp as JSON, zeros
            then TensorRT's own plan, unchanged

The stamp stands in front of the plan and not beside it: two files can be parted, or one of them
replaced, and a plan without its stamp cannot be told from another machine's. TensorRT's own tools
take what `tail -c +65537 PLAN` gives.

A plan holds machine code for one GPU and one TensorRT, tuned at one power mode. What does not fit
is refused before the first byte of it is loaded. The digests are against accidents, they are no
signature: load no plan from somebody you would not take a program from.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.artefact import digest_of_bytes, digest_of_file
from edge.errors import InputError
from edge.model_spec import ModelSpec

SCHEMA = 1
MAGIC = b"orin-inspect plan\n"
HEADER_BYTES = 64 << 10
FLAVOURS = ("tensorrt", "tensorrt_rtx")
_LINE = re.compile(rb"(\d{1,5}) ([0-9a-f]{64})\n")
_ROOM_BYTES = HEADER_BYTES - len(MAGIC) - 5 - 1 - 64 - 1
_REBUILD = "Rebuild it on this machine: edge build BUNDLE --out PLAN --force."


class MachineIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine that a plan is bound to. None: it has none, or the plan is not bound to it."""

    gpu: str | None = None  # as the driver calls it, such as "Orin"
    compute_capability: str | None = None  # such as "8.7"
    driver: str | None = None  # such as "L4T 36.4.3"; on a PC "595.71.05"
    cuda: str | None = None  # the newest CUDA that the driver serves, such as "12.6"
    module: str | None = None  # as the device tree calls the board; None on a PC
    power_mode: str | None = None  # nvpmodel's name, such as "MODE_30W"; None on a PC


class PlanStamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan is. `spec` is the bundle's: a plan can be held against it, and run, alone."""

    bundle_digest: str
    form: str  # which of the bundle's ONNX files, such as "int8"
    spec: ModelSpec
    flavour: str  # one of FLAVOURS
    tensorrt: str  # the builder's version
    built_for: MachineIdentity
    dla_core: int | None
    workspace_bytes: int
    seconds: float  # that the builder took
    created_at: str
    sha256: str = ""  # of TensorRT's own plan
    plan_bytes: int = 0
    schema: int = SCHEMA


class Plan:
    """A plan file whose stamp was read and whose bytes are those that were stamped."""

    def __init__(self, path: Path, stamp: PlanStamp) -> None:
        self.path = path
        self.stamp = stamp

    @classmethod
    def open(cls, path: Path) -> Plan:
        """Read the stamp and hold the plan's bytes against it. Raises InputError."""
        try:
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
                size = path.stat().st_size - HEADER_BYTES
        except OSError as error:
            found = error.strerror or str(error)
            do = "Check the path, or make one with `edge build`."
            raise InputError(where=path, expected="a plan", found=found, do=do) from None
        stamp = _stamp_from(header, path)
        if size != stamp.plan_bytes or digest_of_file(path, skip=HEADER_BYTES) != stamp.sha256:
            raise _broken(path, "bytes that are not those that were stamped")
        return cls(path, stamp)

    @contextlib.contextmanager
    def bytes(self) -> Iterator[memoryview]:
        """Yield TensorRT's own plan, mapped: on an 8 GB board it need not lie in memory twice."""
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[HEADER_BYTES:] as plan,
        ):
            yield plan

    def refuse_misfit(self, *, flavour: str, tensorrt: str, here: MachineIdentity) -> None:
        """Raise InputError, naming each part of the stamp that is not as it is here."""
        stamp = self.stamp
        wrong = [
            f"{what} {built} where this is {now}"
            for what, built, now in (
                ("flavour", stamp.flavour, flavour),
                ("TensorRT", stamp.tensorrt, tensorrt),
                *_differences(stamp.built_for, here),
            )
            if built != now
        ]
        if wrong:
            raise InputError(
                where=self.path,
                expected="a plan that was built for this machine as it is now",
                found="one for " + "; ".join(wrong),
                do=_REBUILD,
            )

    def refuse_other_bundle(self, bundle_digest: str, form: str) -> None:
        """Raise InputError unless the plan was built from this bundle's file of this form."""
        stamp = self.stamp
        if (stamp.bundle_digest, stamp.form) != (bundle_digest, form):
            raise InputError(
                where=self.path,
                expected=f"a plan of the bundle {bundle_digest[:12]}, form {form}",
                found=f"one of {stamp.bundle_digest[:12]}, form {stamp.form}",
                do=_REBUILD,
            )


def write_stamp(path: Path, stamp: PlanStamp) -> PlanStamp:
    """Put the stamp into the room that was left for it in front of the plan; return it whole."""
    whole = msgspec.structs.replace(
        stamp,
        sha256=digest_of_file(path, skip=HEADER_BYTES),
        plan_bytes=path.stat().st_size - HEADER_BYTES,
    )
    text = msgspec.json.encode(whole)
    if len(text) > _ROOM_BYTES:
        raise InputError(
            where=path,
            expected=f"a model whose spec takes at most {_ROOM_BYTES} bytes",
            found=str(len(text)),
            do="Give the classes and channels shorter names.",
        )
    with path.open("r+b") as file:
        file.write(MAGIC + f"{len(text)} {digest_of_bytes(text)}\n".encode() + text)
    return whole


def _stamp_from(header: bytes, path: Path) -> PlanStamp:
    if not header.startswith(MAGIC):
        raise InputError(
            where=path,
            expected="a plan as `edge build` writes it",
            found="another file",
            do="Make one with `edge build BUNDLE --out PLAN`; one of trtexec's has no stamp.",
        )
    line = _LINE.match(header, len(MAGIC))
    if line is None or len(header) < HEADER_BYTES:
        raise _broken(path, "a stamp that is cut off")
    text = header[line.end() : line.end() + int(line[1])]
    if digest_of_bytes(text) != line[2].decode():
        raise _broken(path, "a stamp of which some byte was changed")
    try:
        schema = msgspec.json.decode(text, type=_OnlySchema).schema
        if schema == SCHEMA:
            return msgspec.json.decode(text, type=PlanStamp)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    raise InputError(
        where=path, expected=f"plan schema {SCHEMA}", found=f"schema {schema}", do=_REBUILD
    )


class _OnlySchema(msgspec.Struct):
    schema: int


def _differences(
    built_for: MachineIdentity, here: MachineIdentity
) -> Iterator[tuple[str, str, str]]:
    """Yield what, as built, as it is here, of all that the plan is bound to."""
    titles = {
        "gpu": "GPU",
        "compute_capability": "compute capability",
        "driver": "driver",
        "cuda": "CUDA",
        "module": "module",
        "power_mode": "power mode",
    }
    for field in MachineIdentity.__struct_fields__:
        built = getattr(built_for, field)
        if built is not None:
            yield titles[field], built, getattr(here, field) or "unknown"


def _broken(path: Path, found: str) -> InputError:
    return InputError(where=path, expected="a whole plan", found=found, do=_REBUILD)
