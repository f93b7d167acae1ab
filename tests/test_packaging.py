"""What `pip install 'orin-inspect[device]'` brings: the whole wheel, and only light packages."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnx", "onnxscript", "transformers", "scikit-image", "scikit-learn", "pyarrow")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = copied.stdout.split()
    assert names, "this test builds from a git checkout"
    for name in names:
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "-w", str(folder), str(folder / "source")], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def requirements(wheel: Path, extra: str | None) -> set[str]:
    """Names of the packages that the wheel asks for, outside extras or in one of them."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        lines = re.findall(r"^Requires-Dist: (.+)$", archive.read(name).decode(), flags=re.M)
    wanted = [
        line
        for line in lines
        if (f'extra == "{extra}"' in line if extra else "extra ==" not in line)
    ]
    return {re.split(r"[ \[<>=!~;]", line)[0].lower() for line in wanted}


def test_wheel_holds_every_module_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for package in ("edge", "distill", "export", "device_agents"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".toml") or path.name == "py.typed":
                assert path.relative_to(ROOT).as_posix() in inside


def test_wheel_runs_on_every_machine(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_device_needs_no_torch_and_no_onnx(wheel):
    asked = requirements(wheel, None) | requirements(wheel, "device")
    assert "numpy" in asked
    assert "paho-mqtt" in asked
    assert not asked & set(HEAVY)
    assert len(asked) <= 8


def test_agpl_jetson_stats_is_asked_for_by_its_own_extra_only(wheel):
    assert requirements(wheel, "health") == {"jetson-stats"}
    for extra in (None, "device", "host", "dev", "tensorrt"):
        assert "jetson-stats" not in requirements(wheel, extra)
