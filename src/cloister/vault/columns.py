"""What one column's raw values mean under its declaration, and which of them break it.

`check_values` takes raw values (bytes of a CSV field, or Arrow values of a Parquet file) and returns stored
values and faults. A fault is a boolean per row with a reason; a faulty value is null in the result. The
fast path is a handful of Arrow kernels over the whole column; which rows are at fault is worked out only
when something is.

Stored types: number float64, integer int64, category and text string, boolean bool. An empty field, or a
null, is missing. Spaces around a value are ignored, but in text they are kept.

A reason never holds a value from a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cloister.errors import SchemaError
from cloister.vault.schema import MAX_EXACT_INTEGER, Column

__all__ = ["MAX_TEXT_BYTES", "Checked", "check_values", "consents", "storage_type"]

MAX_TEXT_BYTES: Final = 1 << 20
"""Of one value: room for a long document or a conversation."""

_NUMBER: Final = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOT_FINITE: Final = r"^[+-]?(?i:nan|inf|infinity)$"
_INTEGER: Final = r"^-?[0-9]{1,18}$"
_TRUE: Final = pa.array(["true", "yes", "1"])
_FALSE: Final = pa.array(["false", "no", "0"])
_TYPES: Final = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "category": pa.string(),
    "text": pa.string(),
    "boolean": pa.bool_(),
}


def storage_type(column: Column) -> pa.DataType:
    """Return the Arrow type in which a column is stored; a pseudonym is text."""
    return pa.string() if column.pseudonym else _TYPES[column.type]


@dataclass
class Checked:
    """A column of n rows after the check.

    Attributes:
        values: n values of the stored type, null where missing or at fault.
        faults: reason to boolean[n]; empty where every value stands.
    """

    values: pa.Array
    faults: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def fault(self, reason: str, rows: pa.BooleanArray | NDArray[np.bool_]) -> None:
        """Record that `rows` are at fault and take their values out."""
        mask = rows if isinstance(rows, np.ndarray) else _mask(rows)
        if mask.any():
            self.faults[reason] = self.faults.get(reason, np.zeros(len(mask), dtype=np.bool_)) | mask
            self.values = pc.if_else(pa.array(mask), pa.scalar(None, self.values.type), self.values)


def check_values(name: str, column: Column, raw: pa.Array) -> Checked:
    """Return the stored values of a column and its faults.

    Args:
        name: the column's name, for errors.
        column: its declaration.
        raw: n values: binary (a CSV field each) or of an Arrow type.

    Raises:
        SchemaError: the Arrow type cannot hold what is declared (nested values, say).
    """
    if isinstance(raw, pa.DictionaryArray):
        raw = raw.dictionary_decode()
    checked = _from_bytes(column, raw) if pa.types.is_binary(raw.type) else _from_arrow(name, column, raw)
    if column.bounds is not None:
        low, high = column.bounds
        values = checked.values
        outside = pc.or_(pc.less(values, low), pc.greater(values, high))
        checked.fault(f"the value is outside its bounds [{low:.15g}, {high:.15g}]", outside)
    if column.categories is not None:
        known = pc.is_in(checked.values, value_set=pa.array(column.categories, pa.string()))
        checked.fault(
            "the value is none of the declared categories",
            pc.and_(pc.is_valid(checked.values), pc.invert(known)),
        )
    if pa.types.is_string(checked.values.type):
        long = pc.greater(pc.binary_length(checked.values), MAX_TEXT_BYTES)
        checked.fault(f"the text is longer than {MAX_TEXT_BYTES} bytes", long)
    if column.missing == "refuse":
        at_fault = np.zeros(len(raw), dtype=np.bool_)
        for mask in checked.faults.values():
            at_fault |= mask
        checked.fault("the value is missing", _mask(pc.is_null(checked.values)) & ~at_fault)
    return checked


def consents(raw: pa.Array) -> NDArray[np.bool_]:
    """Return boolean[n]: which rows say true, yes or 1, in any case; everything else is no consent."""
    if isinstance(raw, pa.DictionaryArray):
        raw = raw.dictionary_decode()
    text = _utf8(raw)[0] if pa.types.is_binary(raw.type) else _cast(raw, pa.string())
    if text is None:
        return np.zeros(len(raw), dtype=np.bool_)
    return _mask(pc.is_in(pc.ascii_lower(pc.utf8_trim_whitespace(text)), value_set=_TRUE))


def _mask(flags: pa.BooleanArray) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.fill_null(flags, False).to_numpy(zero_copy_only=False)
    return mask


def _cast(values: pa.Array, target: pa.DataType) -> pa.Array | None:
    """Return the cast values, or None: Arrow's own message quotes the value."""
    try:
        return values.cast(target)
    except (pa.ArrowException, ValueError):
        return None


def _utf8(raw: pa.Array) -> tuple[pa.Array, NDArray[np.bool_] | None]:
    """Return the text, and which rows are not UTF-8 (their text is empty), if any."""
    text = _cast(raw, pa.string())
    if text is not None:
        return text, None
    good = [_is_utf8(value) for value in raw.to_pylist()]
    bad = ~np.array(good, dtype=np.bool_)
    return pc.if_else(pa.array(good), raw, pa.scalar(b"", pa.binary())).cast(pa.string()), bad


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _from_bytes(column: Column, raw: pa.Array) -> Checked:
    text, bad = _utf8(raw)
    if column.type != "text":
        text = pc.utf8_trim_whitespace(text)
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    parse: dict[str, Callable[[pa.Array], Checked]] = {
        "number": _numbers,
        "integer": _integers,
        "boolean": _booleans,
    }
    checked = parse.get(column.type, Checked)(text)
    if bad is not None:
        checked.fault("the value is not UTF-8 text", bad)
    return checked


def _numbers(text: pa.Array) -> Checked:
    values = _cast(text, pa.float64())
    if values is not None:
        return _finite(Checked(values))
    finite = pc.match_substring_regex(text, _NUMBER)
    readable = pc.or_(finite, pc.match_substring_regex(text, _NOT_FINITE))
    checked = Checked(pc.if_else(readable, text, pa.scalar(None, pa.string())).cast(pa.float64()))
    checked.fault("the value is not a number", pc.invert(readable))
    return _finite(checked)


def _finite(checked: Checked) -> Checked:
    checked.fault("the value is not finite", pc.invert(pc.is_finite(checked.values)))
    return checked


def _integers(text: pa.Array) -> Checked:
    plain = pc.match_substring_regex(text, _INTEGER)
    if pc.all(plain).as_py() is not False:  # True, or None where every value is missing
        return Checked(text.cast(pa.int64()))
    return _whole(_numbers(text))


def _whole(checked: Checked) -> Checked:
    """Turn float64 into int64: many programs write 63.0 for 63."""
    values = checked.values
    exact = pc.and_(pc.equal(pc.round(values), values), pc.less(pc.abs(values), MAX_EXACT_INTEGER))
    checked.fault("the value is not a whole number within 2**53", pc.invert(exact))
    checked.values = checked.values.cast(pa.int64())
    return checked


def _booleans(text: pa.Array) -> Checked:
    lower = pc.ascii_lower(text)
    yes = pc.is_in(lower, value_set=_TRUE)
    known = pc.or_(yes, pc.is_in(lower, value_set=_FALSE))
    checked = Checked(pc.if_else(pc.is_valid(text), yes, pa.scalar(None, pa.bool_())))
    checked.fault(
        "the value is not true or false, yes or no, 1 or 0", pc.and_(pc.is_valid(text), pc.invert(known))
    )
    return checked


def _from_arrow(name: str, column: Column, raw: pa.Array) -> Checked:
    kind = raw.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_bytes(column, raw.cast(pa.binary()))
    numeric = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )
    fits = {
        "number": numeric,
        "integer": numeric,
        "boolean": pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind),
        "category": pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind),
        "text": not pa.types.is_nested(kind) and not pa.types.is_floating(kind),
    }
    if column.type in ("number", "integer") and fits[column.type]:
        values = _cast(raw, pa.int64()) if column.type == "integer" and pa.types.is_integer(kind) else None
        if values is not None:
            return Checked(values)
        values = _cast(raw, pa.float64())
        if values is not None:
            checked = _finite(Checked(values))
            return _whole(checked) if column.type == "integer" else checked
    text = _cast(raw, pa.string()) if fits[column.type] else None
    if text is None:
        raise SchemaError(
            f"the column holds {kind} where the schema says {column.type}",
            column=name,
            fix="Correct one of the two",
        )
    return _from_bytes(column, text.cast(pa.binary()))
