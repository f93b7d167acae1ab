"""The curves of a run on one picture, from the lines of its journal.

Drawn by matplotlib: what Pillow draws the other sheets with has no axes, and an axis with good
ticks, logarithms and a legend is most of this picture. The figure is made without pyplot, so that
no window system and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from numpy.typing import NDArray

_WIDTH_IN, _PANEL_IN, _DPI = 11.0, 2.6, 110
_SMOOTH_SHARE = 0.03  # of all told steps: what the bold line is a mean over
_LOG_FROM = 10.0  # largest over smallest value, from which a logarithmic axis shows more
_FAINT = 0.25
_NOTE = "#666666"

Line = dict[str, Any]
Values = NDArray[np.float64]


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Write a PNG: losses, learning rate, gradient norm, speed, and the experts where they are."""
    stages = _steps_by_stage(lines)
    with_experts = [line for line in lines if line["kind"] == "epoch" and line.get("experts")]
    panels = 5 if with_experts else 4
    figure = Figure(figsize=(_WIDTH_IN, _PANEL_IN * (panels + 1)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2.0] + [1.0] * (panels - 1)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(axes[0], stages, _unlearned(lines))
    _draw_one(axes[1], stages, "learning_rate", "learning rate")
    _draw_one(axes[2], stages, "gradient_norm", "gradient norm,\nbefore clipping")
    _draw_one(axes[3], stages, "parts_per_second", "parts per second")
    for panel in (axes[1], axes[3]):
        panel.set_ylim(bottom=0.0)
    if with_experts:
        _draw_experts(axes[4], with_experts)
    for number, panel in enumerate(axes):
        panel.grid(visible=True, alpha=0.2)
        _mark_stages(panel, lines, named=number == 0)
    axes[-1].set_xlabel("step of the run, over all stages")
    figure.savefig(path, format="png")


def _steps_by_stage(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the told steps, each stage's apart: no curve is drawn from one into the next."""
    names = dict.fromkeys(line["stage"] for line in lines if line["kind"] == "step")
    return [[ln for ln in lines if ln["kind"] == "step" and ln["stage"] == name] for name in names]


def _unlearned(lines: Sequence[Line]) -> set[tuple[str, str]]:
    """Return the (stage, loss) whose weight in the total is 0."""
    weights = {line["stage"]: line.get("weights", {}) for line in lines if line["kind"] == "stage"}
    return {(stage, name) for stage, own in weights.items() for name in own if not own[name]}


def _draw_losses(
    axes: Axes, stages: Sequence[Sequence[Line]], unlearned: set[tuple[str, str]]
) -> None:
    """Each part as it is (faint) and smoothed, where the stage learns it."""
    steps = [line for stage in stages for line in stage]
    names = list(dict.fromkeys(name for line in steps for name in line["losses"]))
    curves = {name: [_losses(stage, name, unlearned) for stage in stages] for name in names}
    curves = {name: parts for name, parts in curves.items() if np.any(np.isfinite(_all(parts)))}
    totals = [_column(stage, "total") for stage in stages]
    for name, parts in curves.items():
        _draw_smoothed(axes, zip(stages, parts, strict=True), name)
    _draw_smoothed(axes, zip(stages, totals, strict=True), "total, weighted", colour="black")
    every = _all([*totals, *(part for parts in curves.values() for part in parts)])
    said = "logarithmic" if _made_logarithmic(axes, every) else "linear"
    axes.set_ylabel(f"losses, before their weights\n({said})")
    windows = ", ".join(str(_window(len(stage))) for stage in stages)
    note = f"bold: mean over {windows} of {', '.join(str(len(s)) for s in stages)} told steps"
    if lost := int(np.count_nonzero(~np.isfinite(_all(totals)))):
        note += f"; gaps: {lost} steps without a finite loss"
    axes.set_title(note, loc="right", fontsize=8, color=_NOTE, pad=16)
    if steps:
        axes.legend(loc="best", fontsize=8, ncols=2)


def _draw_one(axes: Axes, stages: Sequence[Sequence[Line]], key: str, label: str) -> None:
    parts = [_column(stage, key) for stage in stages]
    _draw_smoothed(axes, zip(stages, parts, strict=True), label, smooth=key != "learning_rate")
    wanted = key == "gradient_norm" and _made_logarithmic(axes, _all(parts))
    axes.set_ylabel(label + ("\n(logarithmic)" if wanted else ""))


def _draw_experts(axes: Axes, epochs: Sequence[Line]) -> None:
    """The mean over the blocks after each epoch, all on one axis from 0 to 1."""
    at = _column(epochs, "run_step")
    for key, label in (
        ("taken_by_none", "tokens that no expert takes"),
        ("overlap", "tokens two experts share"),
        ("chance_overlap", "the same by chance"),
    ):
        means = [np.mean([use[key] for use in line["experts"]]) for line in epochs]
        axes.plot(at, means, marker=".", label=label)
    most = [max(max(use["weight_shares"]) for use in line["experts"]) for line in epochs]
    axes.plot(at, most, marker=".", label="largest weight of an expert in any block")
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("experts, share")
    axes.legend(loc="upper right", fontsize=8, ncols=2)


def _draw_smoothed(
    axes: Axes,
    stretches: Iterable[tuple[Sequence[Line], Values]],
    label: str,
    *,
    colour: ColorType | None = None,
    smooth: bool = True,
) -> None:
    """Draw one curve, a stretch of it for each stage."""
    for stage, values in stretches:
        at, marker = _column(stage, "run_step"), "." if len(stage) == 1 else ""
        bold = _smoothed(values) if smooth else values
        (drawn,) = axes.plot(at, bold, label=label, color=colour, linewidth=1.6, marker=marker)
        colour, label = drawn.get_color(), ""
        if smooth:
            axes.plot(at, values, color=colour, alpha=_FAINT, linewidth=0.8)


def _mark_stages(axes: Axes, lines: Sequence[Line], *, named: bool) -> None:
    """A line where a stage begins, a dotted one where a stopped run went on."""
    for line in lines:
        if line["kind"] != "stage":
            continue
        resumed = line["step"] > 0
        axes.axvline(line["run_step"], color=_NOTE, linewidth=0.9, ls=":" if resumed else "-")
        if named:
            text = (
                "resumed" if resumed else f"{line['number']} of {line['stages']}: {line['stage']}"
            )
            place = axes.get_xaxis_transform()
            axes.text(line["run_step"], 1.01, text, transform=place, fontsize=8, color=_NOTE)


def _made_logarithmic(axes: Axes, values: Values) -> bool:
    """Choose a logarithmic axis where it shows more and hides nothing; tell whether it was."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() <= 0.0 or finite.max() / finite.min() < _LOG_FROM:
        return False
    axes.set_yscale("log")
    return True


def _smoothed(values: Values) -> Values:
    """A centred mean that narrows towards the ends; gaps stay gaps and are in no mean."""
    half = _window(len(values)) // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    reach = np.minimum(half, np.minimum(places, len(values) - 1 - places))
    first, last = places - reach, places + reach + 1
    count = counts[last] - counts[first]
    mean = (sums[last] - sums[first]) / np.maximum(count, 1)
    return np.where(finite & (count > 0), mean, math.nan)


def _window(steps: int) -> int:
    """How many steps the bold line is a mean over: an odd number."""
    return 2 * int(steps * _SMOOTH_SHARE / 2) + 1


def _losses(stage: Sequence[Line], name: str, unlearned: set[tuple[str, str]]) -> Values:
    """Return one loss over a stage; gaps where it is not learned, or stays 0 without lessons."""
    values = _values([line["losses"].get(name) for line in stage])
    if (stage[0]["stage"], name) in unlearned or not np.any(np.nan_to_num(values)):
        return np.full_like(values, math.nan)
    return values


def _all(parts: Sequence[Values]) -> Values:
    return np.concatenate(parts) if parts else np.zeros(0)


def _column(lines: Sequence[Line], key: str) -> Values:
    return _values([line[key] for line in lines])


def _values(numbers: Sequence[float | None]) -> Values:
    """Not a number where the journal has null."""
    return np.array([math.nan if number is None else number for number in numbers], np.float64)
