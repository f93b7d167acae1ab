"""`edge build`, as a person runs it: what is made, what is refused, and how."""

import subprocess

import pytest
from gpu_stand_in import Cudart
from orin_sysfs import write_orin
from small_station import edge, write_bundle

from device_agents.engine import gpu as gpu_module
from edge.cli import build as module
from edge.cli.main import main
from edge.plan import Plan
from export.tensorrt_library import flavours_here

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours_here(), reason="TensorRT-RTX is NOT here: no plan was built"
)
AHEAD = ("--builder", "tensorrt_rtx", "--compute-capability", "8.6")


def build(folder, *words, capsys):
    status = main(["build", str(folder / "bundle"), "--out", str(folder / "m.plan"), *words])
    told = capsys.readouterr()
    return status, told.out, told.err


@needs_rtx
def test_plan_is_built_from_the_command_line_and_told_of(tmp_path):
    write_bundle(tmp_path / "bundle")
    process = edge(
        *("build", tmp_path / "bundle", "--out", tmp_path / "m.plan", *AHEAD),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "'tiny' int8" in out
    assert "Built by tensorrt_rtx" in out
    assert "Bound to: compute capability 8.6." in out
    assert out.rstrip().endswith(
        "Next: copy it to a machine with that GPU, and there: edge bench m.plan"
    )
    assert Plan.open(tmp_path / "m.plan").stamp.form == "int8"


@needs_rtx
def test_existing_plan_is_kept_unless_told(tmp_path, capsys):
    write_bundle(tmp_path / "bundle")
    (tmp_path / "m.plan").write_bytes(b"mine")
    assert build(tmp_path, *AHEAD, capsys=capsys)[0] == 2
    status, _, said = build(tmp_path, *AHEAD, "--force", capsys=capsys)
    assert status == 2
    assert "--force deletes nothing that this command did not write" in said
    assert (tmp_path / "m.plan").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 3, "GPU to build for"),
        (("--builder", "tensorrt"), 3, "only tensorrt_rtx"),
        ((*AHEAD, "--form", "fp16"), 2, "no entry for 'model.fp16.onnx'"),
        ((*AHEAD, "--timing-cache", "x"), 2, "which keeps none"),
    ],
)
@needs_rtx
def test_what_cannot_be_built_is_one_paragraph(tmp_path, capsys, words, status, said):
    write_bundle(tmp_path / "bundle")
    found, out, err = build(tmp_path, *words, capsys=capsys)
    assert (found, out) == (status, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "m.plan").exists()


@pytest.mark.parametrize(
    "words", [("--workspace-mb", "0"), ("--dla-core", "-1"), ("--workspace-mb", "9" * 14)]
)
def test_numbers_that_mean_nothing_are_refused_at_once(tmp_path, capsys, words):
    write_bundle(tmp_path / "bundle")
    with pytest.raises(SystemExit) as ended:
        build(tmp_path, *words, capsys=capsys)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "is below" in said or "is above" in said


def test_path_that_is_no_bundle_is_refused(tmp_path, capsys):
    (tmp_path / "bundle").mkdir()
    status, _, said = build(tmp_path, capsys=capsys)
    assert status == 2
    assert "edge export" in said


@needs_rtx
def test_jetson_whose_power_mode_cannot_be_read_builds_nothing(tmp_path, capsys, monkeypatch):
    write_bundle(tmp_path / "bundle")
    root = write_orin(tmp_path / "orin")
    (root / "var/lib/nvpmodel/status").unlink()
    real = gpu_module.gpu_and_identity
    monkeypatch.setattr(gpu_module, "cudart", Cudart)
    monkeypatch.setattr(gpu_module, "gpu_and_identity", lambda: real(root))
    status, _, said = build(tmp_path, capsys=capsys)
    assert status == 3
    assert "power mode of NVIDIA Jetson AGX Orin" in said
    assert "nvpmodel" in said


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    with module._BuildProgress() as progress:
        for event in (
            {"phase": "Building engine", "parent": None, "steps": 6},
            {"phase": "Tactics", "parent": "Building engine", "steps": 3000},
            {"phase": "Tactics", "step": 1500},
            {"phase": "Tactics", "ended": True},
            {"phase": "a phase that never began", "step": 2},
            {"phase": "Building engine", "ended": True},
        ):
            progress.see(event)
    assert capsys.readouterr().err == "Tactics: 1,500 of 3,000\n"


def test_progress_on_a_terminal_shows_bars_and_leaves_none(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with module._BuildProgress() as progress:
        progress.see({"phase": "Building engine", "parent": None, "steps": 2})
        progress.see({"phase": "Building engine", "step": 1})
        assert [task.completed for task in progress._bars.tasks] == [1]
        progress.see({"phase": "Building engine", "ended": True})
        assert progress._bars.tasks == []
