"""The bundle: the one artefact that goes down the wire, and its manifest.

    BUNDLE/manifest.json       everything below, in one file, with a digest and size for each file
    BUNDLE/model.fp32.onnx     the student as trained
    BUNDLE/model.int8.onnx     the same with its quantisation written in the graph (Q/DQ)
    BUNDLE/model.fp16.onnx     in its place, where `edge export` shipped that form
    BUNDLE/model.int4.onnx     or this one, its weights int4, all else float
    BUNDLE/golden/*.npz        golden samples: input tensors and the scores they must give

Opening a bundle reads the manifest; `problems_of` holds every file against it. No path outside the
folder is ever read: names in the manifest are checked before they are used, and no link is
followed. The manifest's own bytes are held by its `seal`: a changed threshold would change verdicts
as surely as a changed weight. The seal is against accidents, it is no signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edge.artefact import digest_of_bytes, digest_of_file
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.recording.format import is_safe_relative
from edge.reference import Reference, misfit_of

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
FP32_FILE = "model.fp32.onnx"
INT8_FILE = "model.int8.onnx"
FORM_FILES = {
    "fp32": FP32_FILE,
    "int8": INT8_FILE,
    "fp16": "model.fp16.onnx",
    "int4-weights": "model.int4.onnx",
}
_MANIFEST_LIMIT_BYTES = 8 << 20


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file's SHA-256 (64 hexadecimal digits) and size."""

    sha256: str
    size_bytes: int


class GoldenSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sample with known scores: `file` is an .npz with the input tensors by name."""

    sample_id: str
    file: str
    decision: str
    anomaly_score: float
    class_scores: tuple[float, ...]


class WorstSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A held-out sample that a form judges otherwise than the checkpoint, or nearly so."""

    sample_id: str
    image: str  # its picture's file in the recording; empty where it has none
    checkpoint_score: float
    form_score: float
    threshold: float
    flipped: bool


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far one form of the model is from the checkpoint, on the same `samples` samples."""

    form: str  # "onnx-" and one of FORM_FILES
    samples: int
    max_score_error: float
    mean_score_error: float
    verdict_flips: int
    auroc_difference: float | None  # None where only one class was present
    auroc_interval: tuple[float, float] | None = None  # 95 %, of the difference
    worst: tuple[WorstSample, ...] = ()  # flipped verdicts first, then the scores that moved most


class CompiledLayers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the builder made of the graph, by the names of its nodes and the student's modules."""

    kernels: int
    kernels_by_block: dict[str, int]  # of blocks with an attention
    int8: tuple[str, ...]  # products that were meant to be INT8 and are Int8 gemms
    not_int8: dict[str, str]  # those that are not, and what they became
    fused_attentions: tuple[str, ...]  # by their softmax
    not_fused: dict[str, str]  # attentions in several kernels, and in which
    float_kernels: dict[str, str]  # modules that stayed FP32: how many kernels, and why


class CompileCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What NVIDIA's builder said of one ONNX file. `status` is "passed" or "not run"."""

    file: str
    status: str
    builder: str
    remark: str
    seconds: float | None = None
    plan_bytes: int | None = None
    int8_layers: int | None = None
    layers: int | None = None
    compiled: CompiledLayers | None = None  # None: not run, or the builder reported otherwise


class LayerEffect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the anomaly score moves (mean, log odds) with this layer alone in int8."""

    layer: str
    movement: float


class Quantisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the INT8 form was made. Movements are of the anomaly score: mean, log odds."""

    method: str  # by which the ranges were read from the calibration samples
    method_movements: dict[str, float]  # of every method; empty where the method was given
    smoothing: float  # SmoothQuant's strength, 0 where none was folded
    smoothing_movements: dict[str, float]
    layers: tuple[str, ...]  # that are int8
    kept_float: tuple[str, ...]  # because the student asks for it
    returned: tuple[str, ...]  # to float, because the parity budget did not hold otherwise
    effects: tuple[LayerEffect, ...]  # the worst first; empty where the budget held at once
    watched_in: str = "float32"  # products while ranges were read: bfloat16 for large students


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the bundle was made from: digests (SHA-256) and tool versions."""

    checkpoint_digest: str
    training_digest: str
    calibration_digest: str
    calibration_samples: int
    tools: dict[str, str]
    created_at: str
    # Between normal parts of the calibration and of the training recording, in deviations, by
    # figure; empty where the two are one recording, None where they were not compared.
    calibration_differences: dict[str, float] | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a device needs to know before it loads a model."""

    spec: ModelSpec
    files: dict[str, FileEntry]
    parity: tuple[Parity, ...]  # of FP32, of the form that ships, and of others within budget
    compile_checks: tuple[CompileCheck, ...]
    golden: tuple[GoldenSample, ...]
    provenance: Provenance
    schema: int = SCHEMA
    seal: str = ""  # SHA-256 of the manifest's bytes as they are while the seal is empty
    form: str = "int8"  # which of FORM_FILES was chosen to run on the device
    quantisation: Quantisation | None = None  # None: not INT8, or an older export
    reference: Reference | None = None  # None: no normal part was held out, or an older export


class Bundle:
    """A bundle whose manifest was read and understood."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest  # SHA-256 of the manifest: it names the whole content

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the manifest of `folder`. Raises InputError naming what is wrong with it."""
        path = folder / MANIFEST_FILE
        content = _manifest_bytes(path)
        manifest = _manifest_from(content, path)
        if manifest.spec.rule is None:
            raise _broken(path, "a spec without a decision rule")
        return cls(folder, manifest, digest_of_bytes(content))

    def path_of(self, name: str) -> Path:
        """Return the path of a file that the manifest lists, after checking digest and size."""
        if name not in self.manifest.files:
            raise InputError(
                where=self.folder / MANIFEST_FILE,
                expected="a bundle that has what is asked for",
                found=f"no entry for '{name}', but {', '.join(sorted(self.manifest.files))}",
                do="Ask for a form that it has, or export it so (`edge export --precision`).",
            )
        problem = _problem_with(self.folder, name, self.manifest.files[name])
        if problem is not None:
            raise InputError(
                where=self.folder / name,
                expected="the file that the manifest names",
                found=problem,
                do="Copy the bundle again from where it was exported, then `edge verify` it.",
            )
        return self.folder / name


def problems_of(bundle: Bundle) -> list[str]:
    """Hold every file against the manifest; return one sentence per problem, none when whole."""
    listed = bundle.manifest.files
    problems = [
        f"{name}: {problem}"
        for name, entry in listed.items()
        if (problem := _problem_with(bundle.folder, name, entry)) is not None
    ]
    for path in sorted(bundle.folder.rglob("*")):
        name = path.relative_to(bundle.folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and name != MANIFEST_FILE and name not in listed:
            problems.append(f"{name}: not listed in the manifest")
    problems += [
        f"{golden.file}: a golden sample that the manifest's files do not list"
        for golden in bundle.manifest.golden
        if golden.file not in listed
    ]
    reference = bundle.manifest.reference
    misfit = "" if reference is None else misfit_of(reference, bundle.manifest.spec)
    return [*problems, f"{MANIFEST_FILE}: {misfit}"] if misfit else problems


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, which holds the files it lists, and seal it."""
    blank = msgspec.structs.replace(manifest, seal="")
    content = msgspec.json.format(msgspec.json.encode(blank)) + b"\n"
    sealed = content.replace(_seal_line(""), _seal_line(digest_of_bytes(content)))
    (folder / MANIFEST_FILE).write_bytes(sealed)


def entries_of(folder: Path) -> dict[str, FileEntry]:
    """Return digest and size of every file under `folder`, the manifest left out."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(digest_of_file(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }


def _problem_with(folder: Path, name: str, entry: FileEntry) -> str | None:
    path = folder / name
    try:
        if path.resolve() != folder.resolve() / name:
            return "a link, which may lead out of the bundle"
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
        if size != entry.size_bytes:
            return f"{size} bytes where the manifest says {entry.size_bytes}"
        digest = digest_of_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # no rights, no possible name, a loop
        return f"unreadable ({error})"
    if digest != entry.sha256:
        return f"SHA-256 {digest[:12]}... where the manifest says {entry.sha256[:12]}..."
    return None


def _seal_line(seal: str) -> bytes:
    return b'"seal": ' + msgspec.json.encode(seal)


def _manifest_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise InputError(
            where=path.parent,
            expected=f"a bundle (a folder with {MANIFEST_FILE})",
            found=f"a folder without {MANIFEST_FILE}"
            if path.parent.is_dir() and isinstance(error, FileNotFoundError)
            else error.strerror or str(error),
            do="Check the path, or make one with `edge export`.",
        ) from None
    if len(content) > _MANIFEST_LIMIT_BYTES:
        raise _broken(path, f"more than {_MANIFEST_LIMIT_BYTES} bytes")
    return content


def _manifest_from(content: bytes, path: Path) -> Manifest:
    try:
        document: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(
            where=path,
            expected=f"bundle schema {SCHEMA}",
            found=f"schema {schema}",
            do="Install the orin-inspect that wrote it, or export the checkpoint again.",
        )
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise _broken(path, str(error)) from None
    sealed = _seal_line(manifest.seal)
    blank = content.replace(sealed, _seal_line(""))
    if content.count(sealed) != 1 or digest_of_bytes(blank) != manifest.seal:
        raise _broken(path, "a seal that does not fit: some byte was changed")
    for name in manifest.files:
        if not is_safe_relative(name):
            raise _broken(path, f"a file name that leaves the bundle: '{name}'")
    return manifest


def _broken(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="a manifest as `edge export` writes it",
        found=found,
        do="Copy the bundle again from where it was exported.",
    )
