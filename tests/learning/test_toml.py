from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.learning.toml import write_toml

scalars = (
    st.text()
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
flat = st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=3)
inner = st.lists(flat, min_size=1, max_size=2)
tables = st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3) | inner, max_size=4)


@given(st.dictionaries(st.text(), tables | st.lists(tables, min_size=1, max_size=3), max_size=4))
def test_what_is_written_reads_back(document: dict[str, object]) -> None:
    encodable = repr(document).isprintable() or True
    try:
        str(document).encode()
    except UnicodeEncodeError:
        encodable = False
    if encodable:
        assert tomllib.loads(write_toml(document)) == document


def test_absent_fields_are_left_out() -> None:
    assert tomllib.loads(write_toml({"a": {"x": None, "y": 1}})) == {"a": {"y": 1}}


@pytest.mark.parametrize(
    "document", [{"a": 1}, {"a": {"x": float("nan")}}, {"a": {"x": object()}}, {"a": {"x": {"y": {"z": 1}}}}]
)
def test_what_has_no_form_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(InputError):
        write_toml(document)
