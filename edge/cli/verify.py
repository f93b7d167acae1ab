"""`edge verify`: is a bundle whole, and does its model still say what it said when exported?"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.bundle import FORM_FILES, MANIFEST_FILE, Bundle, problems_of
from edge.errors import AnswerIsNo, EdgeError, InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument(
        "--plan", type=Path, help="a plan of it: the golden samples are scored by it too"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check manifest, files, tensors and golden samples; exit 1 naming every problem."""
    bundle = _opened(arguments.bundle)
    problems = problems_of(bundle)
    _report(
        f"{len(bundle.manifest.files)} files: digest and size, none missing, none besides", problems
    )
    problems = problems + _model_problems(bundle, problems)
    if arguments.plan is not None and not problems:
        problems = _plan_problems(bundle, arguments.plan)
    if problems:
        raise AnswerIsNo(
            where=arguments.bundle,
            expected="a whole bundle whose model scores as recorded",
            found=f"{len(problems)} problem{'s' * (len(problems) > 1)}: " + "; ".join(problems),
            do="Copy the bundle again from where it was exported, or export it again.",
        )
    print(
        f"Whole: {arguments.bundle} ('{bundle.manifest.spec.name}', digest {bundle.digest[:12]})."
    )
    return 0


def _opened(folder: Path) -> Bundle:
    """Open the bundle. A path that is none is bad input; a manifest that is broken is a "no"."""
    try:
        bundle = Bundle.open(folder)
    except InputError as error:
        if not (folder / MANIFEST_FILE).is_file():
            raise
        raise AnswerIsNo(
            where=error.where, expected=error.expected, found=error.found, do=error.do
        ) from None
    _report(f"{MANIFEST_FILE}: schema {bundle.manifest.schema}, every field known, seal fits", [])
    return bundle


def _model_problems(bundle: Bundle, file_problems: list[str]) -> list[str]:
    """Load both forms, which holds their tensors against the spec, and score the golden samples."""
    from device_agents.engine.load import engine_from_bundle
    from device_agents.engine.trial import try_onnx
    from edge.onnx_weights import model_path
    from export.golden import SCORE_TOLERANCE, golden_problems

    problems = []
    for form, file in FORM_FILES.items():
        if file not in bundle.manifest.files:
            continue
        if any(problem.startswith(f"{file}:") for problem in file_problems):
            continue  # it is not the file that was exported, and is not loaded at all
        try:
            try_onnx(model_path(bundle, file), bundle.manifest.spec)
            engine = engine_from_bundle(bundle, form=form)
        except EdgeError as error:
            problems.append(f"{file}: expected {error.expected}, found {error.found}")
            _report(f"{file}: loads, its tensors are those of the spec", problems[-1:])
            continue
        _report(f"{file}: loads, its tensors are those of the spec", [])
        if form == bundle.manifest.form:
            with engine:
                wrong = golden_problems(bundle, engine)
            count = len(bundle.manifest.golden)
            _report(
                f"{count} golden samples: same decision, scores within {SCORE_TOLERANCE}", wrong
            )
            problems += wrong
    return problems


def _plan_problems(bundle: Bundle, path: Path) -> list[str]:
    """Load the plan, which holds it against this machine, and score the golden samples by it."""
    from device_agents.engine.load import engine_from_bundle
    from edge.plan import Plan
    from export.golden import SCORE_TOLERANCE, golden_problems

    stamp = Plan.open(path).stamp
    with engine_from_bundle(bundle, stamp.flavour, form=stamp.form, plan=path) as engine:
        problems = golden_problems(bundle, engine)
        count = len(bundle.manifest.golden)
        _report(
            f"{count} golden samples by {engine.name}: same decision, scores within "
            f"{SCORE_TOLERANCE}",
            problems,
        )
    return problems


def _report(title: str, problems: list[str]) -> None:
    """Print one line for a check, and one for each problem it found."""
    print(f"{'no' if problems else 'ok'}  {title}")
    for problem in problems:
        print(f"    {problem}")
