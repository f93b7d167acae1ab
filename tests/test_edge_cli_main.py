"""The `edge` command as a person meets it: help, unknown words, errors, exit status."""

import importlib
import subprocess
import sys
import time

import pytest

from edge.cli import main as cli
from edge.errors import AnswerIsNo, InputError, MachineError


def run_edge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli.main", *words], capture_output=True, text=True, check=False
    )


def test_help_names_every_command():
    result = run_edge("--help")
    assert result.returncode == 0
    for command in cli.COMMANDS:
        assert f" {command.name} " in result.stdout or f" {command.name}\n" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from edge.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'PIL', 'torch', 'onnx', 'onnxruntime', 'rich', 'msgspec', 'paho'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_command_has_its_module_and_its_own_help(command):
    module = importlib.import_module(f"edge.cli.{command.module}")
    assert module.__doc__
    assert callable(module.run)
    result = run_edge(command.name, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage: edge " + command.name in result.stdout


def test_no_command_prints_help_and_says_the_input_is_wrong():
    result = run_edge()
    assert result.returncode == 2
    assert "usage: edge" in result.stdout


def test_unknown_command_is_wrong_input():
    result = run_edge("distil")
    assert result.returncode == 2
    assert "distill" in result.stderr


@pytest.mark.parametrize(("kind", "status"), [(AnswerIsNo, 1), (InputError, 2), (MachineError, 3)])
def test_error_becomes_one_paragraph_and_its_exit_status(kind, status, monkeypatch, capsys):
    def refuse(_arguments):
        raise kind(where="a.toml", expected="a number", found="'x'", do="Write a number.")

    monkeypatch.setattr("edge.cli.verify.run", refuse)
    assert cli.main(["verify", "BUNDLE"]) == status
    assert (
        capsys.readouterr().err == "edge: a.toml: expected a number, found 'x'. Write a number.\n"
    )


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(_arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("edge.cli.verify.run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["verify", "BUNDLE"])


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edge.cli.main import main\n"
        f"out = {str(tmp_path / 'bundle')!r}\n"
        "sys.exit(main(['export', 'run', '--calibration', 'rec', '--out', out]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 3
    assert "'torch'" in result.stderr
    assert "orin-inspect[host]" in result.stderr


def test_a_full_disk_behind_standard_output_is_the_machines_lack(simulated_line):
    words = [sys.executable, "-m", "edge.cli.main", "recordings", "show", simulated_line.folder]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            list(map(str, words)), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 3, result.stderr
    assert "edge: standard output: expected room" in result.stderr
    assert "Traceback" not in result.stderr


def test_sigterm_ends_a_command_as_ctrl_c_does_and_leaves_nothing_half_written(tmp_path):
    words = ["simulate", "--parts", "100000", "--out", str(tmp_path / "line")]
    command = [sys.executable, "-m", "edge.cli.main", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until_s = time.monotonic() + 60
        while not any(tmp_path.glob(".line.*.partial/*/*")) and time.monotonic() < until_s:
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert said.splitlines()[-1] == "edge: stopped."
    assert list(tmp_path.iterdir()) == []
