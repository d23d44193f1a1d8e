"""A request's body as an object, checked field by field, with refusals that name the field.

Three kinds of fields besides those that a structure takes: fields that cannot matter here are dropped; fields
that this service knows and does not support are refused unless they hold the one value that asks for nothing;
anything else is unknown and refused. A null counts as absent.

Steps: 1 the body is JSON; 2 it is an object; 3 nulls and fields that cannot matter go; 4 what is not
supported is refused; 5 the rest is converted strictly: no number for a text, no text for a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from cloister.inference.openai.errors import Refusal

__all__ = ["Fields", "read_fields", "read_object"]

_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`\Z")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`\Z", re.DOTALL)


class Fields(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a request holds. Its `repr` shows none of it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


_Kind = TypeVar("_Kind", bound=Fields)


def read_object(body: bytes) -> dict[str, object]:
    """Return the object in a body.

    Raises:
        Refusal: it is not JSON, or not an object.
    """
    try:
        value = msgspec.json.decode(body)  # 1
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refusal("The body of the request is not valid JSON.", code="invalid_json") from None
    if not isinstance(value, dict):  # 2
        raise Refusal("The body of the request must be a JSON object.", code="invalid_json")
    return value


def read_fields(
    body: bytes, kind: type[_Kind], *, ignored: frozenset[str], only: Mapping[str, tuple[object, ...]]
) -> _Kind:
    """Return what a body asks, as `kind`.

    Args:
        body: as sent.
        kind: the structure to read.
        ignored: fields that cannot matter.
        only: fields that are not supported, each with the values that ask for nothing.

    Raises:
        Refusal: 400, naming the field in `param`.
    """
    values: dict[str, object] = {}
    for name, value in read_object(body).items():
        if value is None or name in ignored:  # 3
            continue
        if name not in only:
            values[name] = value
        elif value not in only[name]:  # 4
            raise Refusal(
                f"{name} is not supported by this service.", param=name, code="unsupported_parameter"
            )
    try:
        return msgspec.convert(values, kind)  # 5
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except RecursionError:
        raise Refusal("The body of the request is nested too deeply.", code="invalid_json") from None


def _refusal(message: str) -> Refusal:
    """Return the refusal for a message of msgspec: what - at `$.place`."""
    found = _PLACE.search(message)
    place = found.group(1) if found else ""
    what = message[: found.start()] if found else message
    for pattern, words, code in (
        (_UNKNOWN, "Unrecognized request argument supplied: {}.", "unknown_parameter"),
        (_MISSING, "Missing required parameter: {}.", "missing_required_parameter"),
    ):
        named = pattern.match(what)
        if named:
            param = f"{place}.{named.group(1)}" if place else named.group(1)
            return Refusal(words.format(param), param=param, code=code)
    return Refusal(
        f"Invalid value for {place}: {what[:1].lower()}{what[1:]}.", param=place, code="invalid_value"
    )
