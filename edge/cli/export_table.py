"""What `edge export` shows: the forms side by side, how INT8 was made, and the worst samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.artefact import beside, new_file
from edge.bundle import FORM_FILES, CompileCheck, Manifest, Quantisation
from edge.cli.progress import typed
from edge.recording.contact_sheet import PNG_MAGIC
from edge.recording.format import Recording

if TYPE_CHECKING:
    from edge.model_spec import ModelSpec
    from edge.scorer import Scorer
    from export.forms import Form

_TIME = "One sample here"
_ROWS = (
    "Size",
    "Largest score error",
    "Verdict flips",
    "AUROC difference",
    "  95 % interval",
    "Budget",
    _TIME,
    "NVIDIA's builder",
    "  its plan",
    "  its layers",
)


def show(manifest: Manifest, out: Path, forms: Sequence[Form], sizes: dict[str, int]) -> None:
    """Print what was made, how near each form is to the run, and the next command."""
    from rich.console import Console
    from rich.table import Table

    from export.layer_report import report_lines

    checks = {check.file: check for check in manifest.compile_checks}
    table = Table("", *(_title(form, manifest) for form in forms))
    columns = [_column(form, sizes[form.name], checks) for form in forms]
    for title, *values in zip(_row_titles(manifest.spec), *columns, strict=True):
        table.add_row(title, *values)
    console = Console()
    console.print(table)
    remarks = {check.remark for check in checks.values() if check.status == "passed"}
    for remark in sorted(remarks, key=len)[-1:]:
        console.print(remark + ".", style="dim", highlight=False)
    check = checks.get(FORM_FILES[manifest.form])
    for line in report_lines(check) if check else ():
        console.print(line, highlight=False)
    if manifest.quantisation is not None:
        for line in _int8_lines(manifest.quantisation):
            console.print(line, highlight=False)
    reference = manifest.reference or "none: no normal part was held out, so no drift is seen"
    console.print(f"Reference: {reference}", highlight=False)
    console.print(f"Worst samples, drawn: {worst_path(out)}", highlight=False)
    console.print(f"Bundle: {out}", highlight=False)
    console.print(f"Next: {typed('edge', 'verify', out)}", highlight=False)


def worst_path(out: Path) -> Path:
    """Return where the worst samples are drawn: beside the bundle, for it may come to none."""
    return beside(out, ".worst.png")


def draw_worst(
    out: Path, recording: Recording, form: Form, checkpoint: Scorer, scorer: Scorer
) -> None:
    """Draw what the form judges worst, in place of an earlier such drawing."""
    from export.worst_sheet import worst_sheet

    sheet = worst_sheet(form.parity.worst, recording, checkpoint, scorer, form.name)
    with new_file(worst_path(out), force=True, magic=PNG_MAGIC) as path:
        sheet.save(path, format="PNG")


def _title(form: Form, manifest: Manifest) -> str:
    return f"{form.name} (ships)" if form.name == manifest.form else form.name


def _row_titles(spec: ModelSpec) -> tuple[str, ...]:
    """Return `_ROWS`; of the time, say of how many samples, and if without the resize."""
    time = _TIME if spec.batch == 1 else f"One run here, of {spec.batch} samples"
    before = "" if spec.frame is not None else ", resized before"
    return tuple(time + before if title == _TIME else title for title in _ROWS)


def _column(form: Form, size_bytes: int, checks: dict[str, CompileCheck]) -> tuple[str, ...]:
    """Return the figures of one form, in the order of `_ROWS`."""
    from export.parity import BUDGETS, budget_text

    parity, check = form.parity, checks.get(FORM_FILES[form.name])
    difference, interval = parity.auroc_difference, parity.auroc_interval
    return (
        f"{size_bytes / 1e6:.2f} MB",
        f"{parity.max_score_error:.2g} (mean {parity.mean_score_error:.2g})",
        f"{parity.verdict_flips} of {parity.samples}",
        "unknown: one class only" if difference is None else f"{difference:+.5f}",
        "-" if interval is None else f"{interval[0]:+.5f} to {interval[1]:+.5f}",
        budget_text(parity, BUDGETS[parity.form], form.judged),
        f"{form.score_ms:.1f} ms",
        *_builder_rows(check),
    )


def _builder_rows(check: CompileCheck | None) -> tuple[str, str, str]:
    if check is None:
        return ("-", "-", "-")
    return (
        check.status if check.seconds is None else f"{check.status} in {check.seconds:.1f} s",
        "-" if check.plan_bytes is None else f"{check.plan_bytes / 1e6:.1f} MB",
        "-" if check.layers is None else f"{check.layers}, {check.int8_layers} of them int8",
    )


def _int8_lines(made: Quantisation) -> list[str]:
    """Say how INT8 was made: what was chosen, and what went back to float."""
    smoothed = f"SmoothQuant {made.smoothing:g}" if made.smoothing else "no smoothing"
    lines = [f"INT8: ranges by {made.method}, {smoothed}, {len(made.layers)} layers"]
    if made.returned:
        lines.append(f"  back to float for the budget: {', '.join(made.returned)}")
    return lines
