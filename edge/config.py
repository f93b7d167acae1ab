"""Files written by a person (TOML), read strictly into frozen structs.

An unknown key is an error that names the nearest valid one; a value of the wrong type names the
key and what was expected. Nothing is guessed and nothing is filled in later.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from edge.errors import InputError, nearest_hint

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 (JetPack 6) has no TOML reader of its own.
    import tomli as tomllib

S = TypeVar("S", bound=msgspec.Struct)


def struct_from_toml(path: Path, kind: type[S], overrides: tuple[str, ...] = ()) -> S:
    """Read one TOML file into `kind`, after `key.sub=value` overrides. Raises InputError."""
    return struct_from_table(table_from_toml(path), kind, where=str(path), overrides=overrides)


def table_from_toml(path: Path) -> dict[str, Any]:
    """Return the TOML file as nested dictionaries. Raises InputError when it cannot be read."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return table
    except FileNotFoundError:
        raise InputError(
            where=path, expected="a TOML file", found="nothing", do="Check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            where=path, expected="a TOML file", found=str(error), do="Mend the line it names."
        ) from None
    except OSError as error:
        raise InputError(
            where=path,
            expected="a readable TOML file",
            found=str(error),
            do="Check the path and its rights.",
        ) from None


def struct_from_table(
    table: dict[str, Any], kind: type[S], *, where: str, overrides: tuple[str, ...] = ()
) -> S:
    """Turn nested dictionaries into `kind`, strictly. `where` names the source in errors."""
    for override in overrides:
        _apply_override(table, override, kind)
    _refuse_unknown_keys(table, kind, where, prefix="")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise InputError(
            where=where,
            expected=f"valid values for {kind.__name__}",
            found=str(error),
            do="Correct the value that the path names ($ is the top of the file).",
        ) from None


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
    except tomllib.TOMLDecodeError:
        return text


def _refuse_unknown_keys(
    table: dict[str, Any], kind: type[msgspec.Struct], where: str, prefix: str
) -> None:
    fields = _struct_fields(kind)
    for key, value in table.items():
        if key not in fields:
            raise InputError(
                where=where,
                expected=f"a key of {kind.__name__}",
                found=f"unknown key '{prefix}{key}'",
                do=nearest_hint(key, fields),
            )
        nested = fields[key]
        if nested is not None and isinstance(value, dict):
            _refuse_unknown_keys(value, nested, where, prefix=f"{prefix}{key}.")


def _struct_fields(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Map each field to the struct it nests (also behind `| None`), or to None."""
    return {name: _nested_struct(hint) for name, hint in get_type_hints(kind).items()}


def _nested_struct(hint: Any) -> type[msgspec.Struct] | None:
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _dotted_keys(kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, nested in _struct_fields(kind).items():
        keys.append(prefix + name)
        if nested is not None:
            keys.extend(_dotted_keys(nested, f"{prefix}{name}."))
    return keys
