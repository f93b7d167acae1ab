"""Packing: the files of a bundle get their manifest, and the bundle is opened once to prove it."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edge.bundle import (
    Bundle,
    CompileCheck,
    GoldenSample,
    Manifest,
    Parity,
    Provenance,
    Quantisation,
    entries_of,
    problems_of,
    write_manifest,
)
from edge.model_spec import ModelSpec
from edge.reference import Reference
from export.calibration import CalibrationSet
from export.compile_check import BUILDER_PACKAGES

_TOOLS = (
    "orin-inspect",
    "torch",
    "torchao",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Proof:
    """What was found out about the files, and about normal parts, before packing."""

    parity: tuple[Parity, ...]
    compile_checks: tuple[CompileCheck, ...]
    golden: tuple[GoldenSample, ...]
    reference: Reference | None = None
    form: str = "int8"  # that ships, see FORM_FILES
    quantisation: Quantisation | None = None


def bundle_from(folder: Path, spec: ModelSpec, proof: Proof, provenance: Provenance) -> Bundle:
    """Seal `folder`, which holds all files but the manifest (see `artefact.new_folder`)."""
    assert spec.rule is not None, "a student without a threshold cannot judge: train made no rule"
    manifest = Manifest(
        spec=spec,
        files=entries_of(folder),
        parity=proof.parity,
        compile_checks=proof.compile_checks,
        golden=proof.golden,
        provenance=provenance,
        reference=proof.reference,
        form=proof.form,
        quantisation=proof.quantisation,
    )
    write_manifest(folder, manifest)
    bundle = Bundle.open(folder)
    assert not problems_of(bundle)
    return bundle


def provenance_of(
    *,
    checkpoint_digest: str,
    training_digest: str,
    calibration: CalibrationSet,
    calibration_differences: dict[str, float] | None = None,
) -> Provenance:
    """Say what the bundle was made from, and with which tools."""
    return Provenance(
        checkpoint_digest=checkpoint_digest,
        training_digest=training_digest,
        calibration_digest=calibration.digest(),
        calibration_samples=len(calibration.rows),
        tools=tool_versions(),
        calibration_differences=calibration_differences,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def tool_versions() -> dict[str, str]:
    """Return the version of every tool whose change may change the bundle."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in (*_TOOLS, *BUILDER_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
