"""The picture of the curves: what it hides, joins or leaves out would be a lie about the run."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from distill.journal.curves import (
    _losses,
    _made_logarithmic,
    _smoothed,
    _steps_by_stage,
    _unlearned,
    draw_curves,
)


def line(run_step: int, stage: str = "line", **changed: object) -> dict:
    return {
        "kind": "step",
        "stage": stage,
        "run_step": run_step,
        "losses": {"map": 1.0 / run_step, "labels": 0.0},
        "total": 1.0 / run_step,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "parts_per_second": 30.0,
        **changed,
    }


def begin(run_step: int, stage: str = "line", step: int = 0) -> dict:
    place = {"run_step": run_step, "step": step, "number": 1, "stages": 2}
    return {"kind": "stage", "stage": stage, **place}


EXPERTS = {
    "taken_by_none": 0.1,
    "overlap": 0.3,
    "chance_overlap": 0.25,
    "weight_shares": [0.5, 0.5],
}
RUNS = {
    "nothing yet": [],
    "a stage that has only begun": [begin(0)],
    "one step": [begin(0), line(1)],
    "two stages, one resumed": [
        begin(0, "general"),
        *(line(n, "general") for n in range(1, 40)),
        begin(39, "line"),
        begin(60, "line", 21),
        *(line(n) for n in range(40, 90)),
    ],
    "nothing finite": [begin(0), *(line(n, total=None, gradient_norm=None) for n in range(1, 9))],
    "experts": [begin(0), line(1), {**line(1), "kind": "epoch", "experts": [EXPERTS, EXPERTS]}],
}


@pytest.mark.parametrize("run", RUNS)
def test_a_picture_is_drawn_of(run: str, tmp_path: Path):
    draw_curves(RUNS[run], tmp_path / "curves.partial")
    with Image.open(tmp_path / "curves.partial") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    coloured = np.ptp(pixels.astype(int), axis=1) > 60
    assert bool(coloured.sum() > 20) == any(e["kind"] == "step" for e in RUNS[run])


def test_stages_are_curves_of_their_own():
    stages = _steps_by_stage(RUNS["two stages, one resumed"])
    assert [(stage[0]["stage"], len(stage)) for stage in stages] == [("general", 39), ("line", 50)]


def test_smoothing_keeps_gaps_and_takes_nothing_from_them():
    noisy = np.array([1.0, 3.0] * 100)
    noisy[50] = math.nan
    smooth = _smoothed(noisy)
    assert math.isnan(smooth[50])
    assert np.isfinite(np.delete(smooth, 50)).all()
    assert smooth[10:190][np.isfinite(smooth[10:190])] == pytest.approx(2.0, abs=0.5)
    assert smooth[0] == noisy[0]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([1.0, 200.0], True), ([1.0, 2.0], False), ([0.0, 200.0], False), ([-1.0, 99.0], False)],
)
def test_an_axis_is_logarithmic_only_where_that_hides_nothing(values, logarithmic: bool):
    axes = Figure().subplots()
    assert _made_logarithmic(axes, np.array([*values, math.nan])) is logarithmic
    assert axes.get_yscale() == ("log" if logarithmic else "linear")


def test_a_loss_is_drawn_only_where_it_is_learned():
    weights = {"map": 10.0, "labels": 0.5, "summary": 0.0}
    lines = [{**begin(0), "weights": weights}]
    lines += [line(n, losses={"map": 1.0, "labels": 0.0, "summary": 1.0}) for n in range(1, 5)]
    (steps,) = _steps_by_stage(lines)
    shown = {name: _losses(steps, name, _unlearned(lines)) for name in weights}
    assert [name for name, values in shown.items() if np.isfinite(values).any()] == ["map"]
