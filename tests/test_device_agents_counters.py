"""The table of counters against the code that counts: neither knows one that the other does not."""

from __future__ import annotations

import ast
from pathlib import Path

from device_agents.counters import COUNTERS, DECISIONS, EVENTS, INVALID, LOSSES, PEAKS_MS

ROOM = Path(__file__).resolve().parent.parent / "device_agents"
COUNTING = {"count", "_count", "raise_to", "_raise_to"}


def trees() -> list[ast.AST]:
    return [
        ast.parse(path.read_text(), str(path))
        for path in sorted(ROOM.rglob("*.py"))
        if path.name != "counters.py"
    ]


def counted() -> set[str]:
    """Every name that is counted where it stands, in a call such as `count("refused")`."""
    found = set()
    for node in [node for tree in trees() for node in ast.walk(tree)]:
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in COUNTING and isinstance(first, ast.Constant) and type(first.value) is str:
                found.add(first.value)
    return found


def words() -> set[str]:
    """Every text in the code: names that are put together or handed on stand among them."""
    return {
        node.value
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_counter_that_is_counted_is_explained():
    assert len(counted()) > 10
    assert counted() - COUNTERS.keys() == set()


def test_every_reason_of_an_invalid_part_is_explained():
    spelled_out = {word for word in words() if word.startswith("invalid_") and word.isidentifier()}
    assert spelled_out - {"invalid_"} - COUNTERS.keys() == set()


def test_every_counter_that_is_explained_is_counted_somewhere():
    known = words()
    for name in COUNTERS:
        ends = {name.removeprefix("invalid_"), name.removeprefix("image_only_")}
        assert {name, *ends} & known, name


def test_each_counter_stands_in_one_group_only():
    groups = (DECISIONS, LOSSES, INVALID, EVENTS, PEAKS_MS)
    assert sum(map(len, groups)) == len(COUNTERS)
    assert all(name.startswith("invalid_") for name in INVALID)
    assert all(name.endswith("_ms") for name in PEAKS_MS)
    assert all(meaning and meaning[0] != " " for meaning in COUNTERS.values())
