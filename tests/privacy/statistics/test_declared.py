from __future__ import annotations

from typing import Any

import pytest

from cloister.errors import InputError
from cloister.privacy.statistics import Declarations, Declared


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "number", "bounds": (1.0, 1.0)},
        {"kind": "number", "bounds": (0.0, float("inf"))},
        {"kind": "number", "bounds": (0.0, 1e200)},
        {"kind": "integer", "bounds": (0.5, 2.0)},
        {"kind": "integer", "bounds": (0, 2**60)},
        {"kind": "category", "bounds": (0, 1)},
        {"kind": "number", "categories": ("a",)},
        {"kind": "category", "categories": ()},
        {"kind": "category", "categories": ("a", "a")},
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Declared(**fields)


def test_the_unit_is_no_column_to_be_asked_of() -> None:
    with pytest.raises(InputError, match="unit"):
        Declarations(columns={"who": Declared(kind="integer")}, rows=3, unit="who")
    with pytest.raises(InputError):
        Declarations(columns={}, rows=3)


def test_an_unknown_column_names_the_nearest() -> None:
    declared = Declarations(columns={"pressure": Declared(kind="number")}, rows=3)
    with pytest.raises(InputError, match="'pressure'"):
        declared.column("presure")
    with pytest.raises(InputError, match="no bounds"):
        declared.bounds("pressure")
