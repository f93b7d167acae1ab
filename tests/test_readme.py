"""The README is true: every command, module, target and extra it names exists, and back."""

import ast
import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from device_agents.counters import LOSSES
from device_agents.station import Broker, Source, StationFile
from distill.recipe import RECIPES, load_recipe
from edge.cli.main import COMMANDS, _parser_for
from edge.config import struct_from_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = (ROOT / "device_agents" / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "distill" / "README.md").read_text(encoding="utf-8")
PACKAGES = ("edge", "distill", "export", "device_agents")


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def edge_lines(text: str = README) -> list[str]:
    """Every `edge ...` line of the text's shell blocks, without its comment."""
    lines = [line for block in code_blocks("sh", text) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("edge ")]


def module_lines() -> dict[str, str]:
    """What the README's table of modules says: path -> purpose."""
    return dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", README, flags=re.MULTILINE))


def documented_modules() -> dict[str, str]:
    """What the modules say of themselves: path -> first line of the docstring."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.relative_to(ROOT).as_posix()] = docstring.splitlines()[0]
    return found


def test_every_module_stands_in_the_readme_with_its_own_first_line():
    assert module_lines() == documented_modules()


@pytest.mark.parametrize("line", edge_lines() + edge_lines(MANUAL) + edge_lines(TRAINING))
def test_readme_command_is_accepted_by_the_parser(line):
    words = shlex.split(line)[1:]
    parser, module = _parser_for(words[0])
    assert module is not None, f"{line}: no such command"
    parser.parse_args(words)  # exits, and so fails, on an unknown option


def test_every_command_stands_in_the_readme():
    used = {shlex.split(line)[1] for line in edge_lines()}
    assert used == {command.name for command in COMMANDS}


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code_blocks("sh"))))
    named |= set(re.findall(r"`make ([a-z]+)`", README))
    assert named <= targets
    assert {"demo", "test", "check", "bench"} <= named


@pytest.mark.parametrize("block", code_blocks("toml"))
def test_readme_station_file_is_one_that_the_agents_read(block):
    station = struct_from_table(tomllib.loads(block), StationFile, where="README.md")
    assert station.station.station


@pytest.mark.parametrize("block", code_blocks("toml", TRAINING))
def test_every_stage_of_the_training_readme_is_one_that_a_recipe_takes(block, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text((RECIPES / "tiny.toml").read_text(encoding="utf-8") + block)
    assert len(load_recipe(str(own)).all_stages()) == len(tomllib.loads(block)["stages"]) + 1


@pytest.mark.parametrize("block", code_blocks("toml", MANUAL))
def test_every_key_of_the_stations_readme_is_one_that_the_agents_read(block):
    tables = {"source": Source, "broker": Broker}
    for name, keys in tomllib.loads(block).items():
        assert keys.keys() <= {field.name for field in msgspec.structs.fields(tables[name])}


def test_the_stations_readme_explains_every_loss():
    table = MANUAL.split("<!-- losses")[1].split("<!-- /losses")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, flags=re.MULTILINE)) == LOSSES


def test_no_placeholder_was_left_standing():
    assert not re.findall(r"@[A-Z]+@|TODO|FIXME|TBD", README + MANUAL)
    assert "synthetic pairing" in README


def test_every_extra_stands_in_the_readme():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in README, extra
