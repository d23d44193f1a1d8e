"""Write a plain nested mapping as TOML: tables, arrays of tables, and the scalars a plan has.

It covers what plans need and refuses the rest: text, integers, finite floats, booleans, lists of these, and
arrays of tables within a table.
Absent optional fields (None) are left out, which reads back as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from cloister.errors import InputError

__all__ = ["write_toml"]


def write_toml(document: Mapping[str, object]) -> str:
    """Return TOML text that reads back as `document` without its None fields.

    Args:
        document: name to table (a mapping of scalars and lists), to a mapping or a list of tables, or to
            None, which is left out.

    Raises:
        InputError: a value has no form here.
    """
    parts: list[str] = []
    for name, value in document.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and value and all(isinstance(each, Mapping) for each in value.values()):
            parts.extend(_table(f"{_key(name)}.{_key(key)}", each) for key, each in value.items())
        elif isinstance(value, Mapping):
            parts.append(_table(_key(name), value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            parts.extend(_table(_key(name), each, listed=True) for each in value)
        else:
            raise InputError(f"{name} is not a table", fix="Put every field into a table")
    return "\n".join(parts)


def _table(name: str, fields: Mapping[str, object], *, listed: bool = False) -> str:
    parts = [f"[[{name}]]" if listed else f"[{name}]"]
    tables: list[str] = []
    for key, value in fields.items():
        if _is_tables(value):
            tables += [_table(f"{name}.{_key(key)}", each, listed=True) for each in value]
        elif value is not None:
            parts.append(f"{_key(key)} = {_value(value)}")
    return "\n".join(["\n".join(parts) + "\n", *tables])


def _is_tables(value: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(each, Mapping) for each in value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    raise InputError(f"a {type(value).__name__} cannot be written as TOML")


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves bare and TOML forbids
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
