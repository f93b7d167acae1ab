"""Files written by a person (TOML), read strictly into frozen structs.

An unknown key is an error that names the nearest valid one; a value of the wrong type names the
key and what was expected. Nothing is guessed and nothing is filled in later.
"""

from __future__ import annotations

import math
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from edge.errors import InputError, nearest_hint

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 (JetPack 6) has no TOML reader of its own.
    import tomli as tomllib

S = TypeVar("S", bound=msgspec.Struct)
_LARGEST_FILE_BYTES = 1 << 20
_INTEGERS_END = 1 << 63
_DOUBLED = re.compile(r"Cannot overwrite a value \(at (?:line (\d+)|end)")  # tomllib's words
_KEY = re.compile(r"\s*([\w.\"'-]+)\s*=")
_TABLE = re.compile(r"\s*\[+([^\[\]]+)\]+\s*(?:#.*)?$")
_MISSING = "Object missing required field "
_TOML_WORDS = ((" | null", ""), ("object", "table"), ("array", "list"), ("str", "string"))


def struct_from_toml(path: Path, kind: type[S], overrides: tuple[str, ...] = ()) -> S:
    """Read one TOML file into `kind`, after `key.sub=value` overrides. Raises InputError."""
    table = table_from_toml(path)
    if not overrides:
        return struct_from_table(table, kind, where=str(path))
    struct_from_table(deepcopy(table), kind, where=str(path))  # the file's own faults are its own
    said = " ".join(f"--set {override}" for override in overrides)
    return struct_from_table(table, kind, where=said, overrides=overrides)


def table_from_toml(path: Path) -> dict[str, Any]:
    """Return the TOML file as nested dictionaries. Raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise ValueError("more than 1 MiB")
        table: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
        return table
    except FileNotFoundError:
        raise InputError(
            where=path, expected="a TOML file", found="nothing", do="Check the path."
        ) from None
    except RecursionError:
        raise InputError(
            where=path,
            expected="a TOML file",
            found="brackets nested without end",
            do="Close the brackets.",
        ) from None
    except OSError as error:
        raise InputError(
            where=path,
            expected="a readable TOML file",
            found=str(error),
            do="Check the path and its rights.",
        ) from None
    except ValueError as error:  # no TOML, no UTF-8, a number of thousands of digits
        found = str(error)[:300]
        if twice := _DOUBLED.search(found):
            lines = content.decode("utf-8").split("\n")
            raise _doubled_key(path, lines[: int(twice[1] or len(lines))]) from None
        raise InputError(
            where=path, expected="a TOML file", found=found, do="Mend the line it names."
        ) from None


def _doubled_key(path: Path, lines: list[str]) -> InputError:
    """Name the key whose second value ends the last of `lines`, and where its first one stands."""
    table, seen, second = "", dict[str, int](), ("", len(lines), len(lines))
    for number, line in enumerate(lines, start=1):
        if header := _TABLE.match(line):
            table, seen = f"{header[1].strip()}.", {}
            second = (table[:-1], number, number)
        elif key := _KEY.match(line):
            first = seen.setdefault(key[1], number)
            second = (table + key[1], first, number)
    name, first, last = second
    where = f"line {last}" if first == last else f"line {last}, after line {first}"
    return InputError(
        where=path,
        expected="each key once",
        found=f"'{name}' in {where}, where it has a value already",
        do="Keep one of the two.",
    )


def struct_from_table(
    table: dict[str, Any], kind: type[S], *, where: str, overrides: tuple[str, ...] = ()
) -> S:
    """Turn nested dictionaries into `kind`, strictly. `where` names the source in errors."""
    for override in overrides:
        _apply_override(table, override, kind)
    _refuse_unknown_keys(table, kind, where, prefix="")
    _refuse_impossible_values(table, where, key="")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise _wrong_value(error, table, kind, where, prefix="") from None


def _wrong_value(
    error: msgspec.ValidationError,
    table: dict[str, Any],
    kind: type[msgspec.Struct],
    where: str,
    prefix: str,
) -> InputError:
    """Say which key has a wrong value, what it is, and what it could be."""
    message, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    of_tables, by_name, _ = path.partition("[...]")
    if by_name:  # a table of tables: msgspec does not say in which of them
        nested = _struct_fields(kind).get(of_tables)
        for name, entry in table.get(of_tables, {}).items():
            try:
                msgspec.convert(entry, nested.kind if nested else Any)
            except msgspec.ValidationError as inner:
                if nested and isinstance(entry, dict):
                    inside = f"{prefix}{of_tables}.{name}."
                    return _wrong_value(inner, entry, nested.kind, where, inside)
                path = f"{of_tables}.{name}"
                break
    key = prefix + path
    found = _value_at(table, path)
    choices = _choices_at(kind, path)
    do = f"Correct {key}."
    if choices and isinstance(found, str):
        expected, do = f"one of {', '.join(choices)} for {key}", nearest_hint(found, choices)
    elif path and message.startswith("Expected"):
        wanted = message.removeprefix("Expected ").partition(", got")[0].replace("`", "")
        for theirs, tomls in _TOML_WORDS:
            wanted = wanted.replace(theirs, tomls)
        expected = f"{wanted} for {key}"
    elif message.startswith(_MISSING):
        missing = f"{key}.{message.removeprefix(_MISSING)}".replace("`", "").lstrip(".")
        return InputError(
            where=where, expected=f"the key {missing}", found="nothing", do=f"Add {missing}."
        )
    else:
        expected, found = f"valid values for {key or 'this file'}", None
    shown = message.replace("`", "'") if found is None else repr(found)[:200]
    return InputError(where=where, expected=expected, found=shown, do=do)


def _value_at(table: Any, path: str) -> Any:
    """Return the value that a path such as `broker.port` or `scale[1]` leads to; None: no value."""
    for step in path.replace("[", ".").replace("]", "").split(".") if path else ():
        if isinstance(table, dict):
            table = table.get(step)
        elif isinstance(table, list) and step.isdecimal() and int(step) < len(table):
            table = table[int(step)]
        else:
            return None
    return table


def _choices_at(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Return the words that the key allows, where it allows only some."""
    *parents, leaf = path.split(".")
    for parent in parents:
        nested = _struct_fields(kind).get(parent)
        if nested is None:
            return []
        kind = nested.kind
    hint = get_type_hints(kind).get(leaf)
    literals = [h for h in (hint, *get_args(hint)) if get_origin(h) is Literal]
    return [str(word) for literal in literals for word in get_args(literal)]


def _apply_override(table: dict[str, Any], override: str, kind: type[msgspec.Struct]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            where="--set",
            expected="key=value, such as train.epochs=5",
            found=f"'{override}'",
            do="Write the key, an equals sign and the value without spaces.",
        )
    target = table
    *parents, leaf = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise InputError(
                where="--set",
                expected=f"'{parent}' to be a table of keys",
                found=f"a single value, in '{override}'",
                do=nearest_hint(key, _dotted_keys(kind)),
            )
    target[leaf] = _toml_value(text)


def _toml_value(text: str) -> Any:
    """Read `text` as TOML would (5, 0.1, true, [1, 2], "x"); a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _refuse_unknown_keys(
    table: dict[str, Any], kind: type[msgspec.Struct], where: str, prefix: str
) -> None:
    fields = _struct_fields(kind)
    for key, value in table.items():
        if key not in fields:
            raise InputError(
                where=where,
                expected=f"a key of [{prefix[:-1]}]" if prefix else "a key of this file",
                found=f"unknown key '{prefix}{key}'",
                do=nearest_hint(key, fields),
            )
        nested = fields[key]
        if nested is None or not isinstance(value, dict):
            continue
        tables = {f"{key}.{name}": entry for name, entry in value.items()}
        for place, entry in tables.items() if nested.by_name else [(key, value)]:
            if isinstance(entry, dict):
                _refuse_unknown_keys(entry, nested.kind, where, prefix=f"{prefix}{place}.")


def _refuse_impossible_values(value: Any, where: str, key: str) -> None:
    """Refuse what TOML can write and no key can mean: it would only be found out much later."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_impossible_values(name, where, f"a name in {key}" if key else "a name")
            _refuse_impossible_values(inner, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _refuse_impossible_values(inner, where, f"{key}[{place}]")
    elif wanted := _what_it_must_be(value):
        huge = isinstance(value, int)  # Python refuses to write thousands of digits
        raise InputError(
            where=where,
            expected=f"{wanted} for {key}",
            found=f"one of {value.bit_length()} bits" if huge else repr(value)[:200],
            do=f"Correct {key}.",
        )


def _what_it_must_be(value: Any) -> str:
    if isinstance(value, str) and "\0" in value:
        return "text without the NUL character"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and abs(value) >= _INTEGERS_END:
        return "an integer of 64 bits"
    return ""


class _Nested(NamedTuple):
    """What a field holds: one table, or several `by_name` (`[sources.left]`)."""

    kind: type[msgspec.Struct]
    by_name: bool


def _struct_fields(kind: type[msgspec.Struct]) -> dict[str, _Nested | None]:
    """Map each field to the struct it nests (also behind `| None` or `dict[str, ...]`), or None."""
    return {name: _nested_struct(hint) for name, hint in get_type_hints(kind).items()}


def _nested_struct(hint: Any) -> _Nested | None:
    by_name = get_origin(hint) is dict
    for candidate in (hint, *get_args(hint)):
        is_class = isinstance(candidate, type) and get_origin(candidate) is None
        if is_class and issubclass(candidate, msgspec.Struct):
            return _Nested(candidate, by_name)
    return None


def _dotted_keys(kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, nested in _struct_fields(kind).items():
        keys.append(prefix + name)
        if nested is not None:
            inside = f"{prefix}{name}.NAME." if nested.by_name else f"{prefix}{name}."
            keys.extend(_dotted_keys(nested.kind, inside))
    return keys
