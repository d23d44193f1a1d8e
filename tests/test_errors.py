from __future__ import annotations

import copy
import inspect
import re

import pytest

from cloister import errors
from cloister.errors import CloisterError, PolicyRefused, ProtocolError, SchemaError


def tree() -> list[tuple[int, str, int | None]]:
    """Depth, name and stated exit code of every line of the docstring's tree."""
    found = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+)(?: +exit (\d))?(?:  +.*)?$", line)
        if match and match[2] in errors.__all__:
            found.append((len(match[1]) // 4, match[2], int(match[3]) if match[3] else None))
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = tree()
    assert {name for _, name, _ in drawn} == set(errors.__all__)
    above: list[str] = []
    for depth, name, _ in drawn:
        kind = getattr(errors, name)
        above[depth:] = [name]
        parent = Exception if depth == 0 else getattr(errors, above[depth - 1])
        assert kind.__bases__ == (parent,), name


def test_exit_codes_are_the_stated_ones() -> None:
    code = None
    for depth, name, stated in tree():
        if depth <= 1:
            code = stated
        if depth > 0:
            assert getattr(errors, name).exit_code == code, name


def test_every_class_is_exported() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, CloisterError)
    }
    assert classes == set(errors.__all__)


def test_a_message_says_what_where_and_what_to_do() -> None:
    assert str(CloisterError("the plan is too long")) == "the plan is too long."
    full = CloisterError("the plan is too long", where="plan.toml", fix="Shorten it")
    assert str(full) == "the plan is too long (plan.toml). Shorten it."
    assert (full.what, full.where, full.fix) == ("the plan is too long", "plan.toml", "Shorten it")


def test_lines_columns_and_peers_are_named() -> None:
    assert (
        str(SchemaError("a value is out of bounds", line=3, column="age"))
        == "a value is out of bounds (line 3, column age)."
    )
    assert str(SchemaError("a column is missing", column="age")) == "a column is missing (column age)."
    assert str(SchemaError("the header is missing")) == "the header is missing."
    assert (
        str(ProtocolError("a message is too long", peer="site-1")) == "a message is too long (from site-1)."
    )
    assert str(ProtocolError("a message is too long")) == "a message is too long."


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_are_caught_as_one(name: str) -> None:
    with pytest.raises(CloisterError, match="what"):
        raise getattr(errors, name)("what")


def test_an_error_survives_copying_between_processes() -> None:
    same = copy.copy(PolicyRefused("no", where="here", fix="Ask"))
    assert str(same) == "no (here). Ask."
    assert same.exit_code == 3
