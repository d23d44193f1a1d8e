"""Rules that say no with reasons, and strict TOML, plain or signed.

A policy is one method: `check(subject)` returns the reasons to refuse, and none means accepted. `AllOf` adds
the reasons of its parts; `AnyOf` accepts what one part accepts. An `AllOf` or `AnyOf` of nothing refuses
everything: an empty file must not open a gate.

`decode_toml` reads a plan, a schema or a policy into its struct and refuses what it does not know, naming the
nearest thing that it does.

A signed file is TOML with a DSSE envelope beside it (NAME.toml.dsse). `load_signed_toml`, in this order:
1. both files are read, within their sizes;
2. the envelope is signed by enough of the trusted keys, as this type of policy;
3. its payload is the TOML file, byte for byte: what people read is what was signed;
4. the TOML decodes strictly.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from cloister.crypto.dsse import Signer, open_envelope, sign_envelope
from cloister.crypto.signing import VerifyKey
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.files import read_bytes, write_atomic

__all__ = ["AllOf", "AnyOf", "Policy", "decode_toml", "load_signed_toml", "load_toml", "require", "sign_toml"]

MAX_TOML: Final = 4 << 20
_MAX_ENVELOPE: Final = 8 << 20
_TYPE_PREFIX: Final = "application/vnd.cloister.policy+toml; kind="

S = TypeVar("S", bound=msgspec.Struct)
T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Policy(Protocol[T_contra]):
    """A rule about subjects of one type."""

    def check(self, subject: T_contra, /) -> list[str]:
        """Return the reasons to refuse `subject`, each a sentence without a full stop; empty to accept."""


@dataclass(frozen=True)
class AllOf(Policy[T]):
    """Accepts what every part accepts; adding a part only tightens."""

    parts: tuple[Policy[T], ...]

    def check(self, subject: T, /) -> list[str]:
        """Return the reasons of all parts, in order."""
        if not self.parts:
            return ["the policy has no rule, and an empty policy accepts nothing"]
        return [reason for part in self.parts for reason in part.check(subject)]


@dataclass(frozen=True)
class AnyOf(Policy[T]):
    """Accepts what at least one part accepts."""

    parts: tuple[Policy[T], ...]

    def check(self, subject: T, /) -> list[str]:
        """Return nothing if a part accepts, else the reasons of all parts."""
        if not self.parts:
            return ["the policy has no rule, and an empty policy accepts nothing"]
        refusals = [part.check(subject) for part in self.parts]
        return [] if not all(refusals) else [reason for reasons in refusals for reason in reasons]


def require(policy: Policy[T], subject: T, *, what: str = "the request") -> None:
    """Return if `policy` accepts `subject`. Raises PolicyRefused with all reasons if it does not."""
    reasons = policy.check(subject)
    if reasons:
        raise PolicyRefused(
            f"{what} is refused: {'; '.join(reasons)}", fix="Change it, or ask the policy's owner"
        )


def decode_toml(data: bytes, kind: type[S], what: str) -> S:
    """Return the struct that TOML text spells out.

    Args:
        data: UTF-8 TOML, at most 4 MiB.
        kind: a msgspec.Struct type; it should forbid unknown fields, and so should those within it.
        what: what is being read, for messages: "plan", "schema", "site policy".

    Raises:
        InputError: not TOML (with line and column), an unknown field (with the nearest known one), a missing
            field, or a wrong type or range (with the field's path and its choices).
    """
    if len(data) > MAX_TOML:
        raise InputError(f"the {what} is larger than {MAX_TOML} bytes", fix="Check which file it is")
    try:
        tree = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise InputError(f"the {what} is not UTF-8 text", fix="Save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # a ValueError for a number of thousands of digits
        raise InputError(f"the {what} is not TOML: {error}", fix="Correct the line") from None
    for path, unknown, known in _unknown_fields(tree, msgspec.inspect.type_info(kind), ""):
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)
        advice = f"Did you mean {nearest[0]!r}?" if nearest else "Remove it"
        raise InputError(
            f"the {what} has an unknown field {unknown!r}", where=path or "top level", fix=advice
        )
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        where = _with_key(tree, kind, path.strip("`").removeprefix("$").lstrip("."))
        choices = ", ".join(map(repr, _choices(msgspec.inspect.type_info(kind), tree, where)))
        raise InputError(
            f"the {what} is not valid: {text}",
            where=where or "top level",
            fix=f"Choose one of {choices}" if choices else "Correct the field",
        ) from None


def _with_key(tree: dict[str, Any], kind: type[msgspec.Struct], path: str) -> str:
    """Return a field's path with the name of the table that msgspec writes as `[...]`."""
    table, dots, rest = path.partition("[...]")
    if not dots or not isinstance(tree.get(table), dict):
        return path
    for key, value in tree[table].items():
        try:
            msgspec.convert({**tree, table: {key: value}}, kind, strict=True)
        except msgspec.ValidationError:
            return f"{table}.{key}{rest}"
    return path


def _choices(info: msgspec.inspect.Type, value: Any, path: str) -> Sequence[object]:
    """Return what may stand in the field at a path, where its type lists that; else nothing."""
    info = _without_none(info)
    if not path and isinstance(info, msgspec.inspect.EnumType):
        return [option.value for option in info.cls]
    if not path and isinstance(info, msgspec.inspect.LiteralType):
        return info.values
    for step, inner, item in _within(info, value):
        if path == step or path.startswith((f"{step}.", f"{step}[")):
            return _choices(inner, item, path[len(step) :].removeprefix("."))
    return ()


def _unknown_fields(
    value: Any, info: msgspec.inspect.Type, path: str
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, unknown field, known fields), outermost first."""
    info = _without_none(info)
    if (
        isinstance(info, msgspec.inspect.StructType)
        and isinstance(value, dict)
        and info.forbid_unknown_fields
    ):
        known = [field.encode_name for field in info.fields] + ([info.tag_field] if info.tag_field else [])
        yield from ((path, key, known) for key in value if key not in known)
    for step, inner, item in _within(info, value):
        below = f"{path}{step}" if step.startswith("[") else f"{path}.{step}".lstrip(".")
        yield from _unknown_fields(item, inner, below)


def _without_none(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Return T for `T | None`."""
    if not isinstance(info, msgspec.inspect.UnionType):
        return info
    options = [option for option in info.types if not isinstance(option, msgspec.inspect.NoneType)]
    return options[0] if len(options) == 1 else info


def _within(info: msgspec.inspect.Type, value: Any) -> Iterator[tuple[str, msgspec.inspect.Type, Any]]:
    """Yield (step of a path, type, value) for what a value holds."""
    if isinstance(info, msgspec.inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in info.fields}
        yield from ((key, fields[key], item) for key, item in value.items() if key in fields)
    elif isinstance(info, msgspec.inspect.DictType) and isinstance(value, dict):
        yield from ((key, info.value_type, item) for key, item in value.items())
    elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType) and isinstance(
        value, list
    ):
        yield from ((f"[{index}]", info.item_type, item) for index, item in enumerate(value))


def load_toml(path: Path, kind: type[S], what: str) -> S:
    """Return the struct in a TOML file. Raises InputError as `decode_toml`, or where it cannot be read."""
    return decode_toml(read_bytes(path, limit=MAX_TOML, what=what), kind, what)


def _signature_path(path: Path) -> Path:
    return path.with_name(path.name + ".dsse")


def sign_toml(path: Path, kind: type[S], what: str, signers: Sequence[Signer]) -> Path:
    """Sign the TOML file at `path`, after checking that it decodes; return the path of the signature.

    Raises:
        InputError: it does not decode, or there is no signer.
        StorageError: the signature cannot be written.
    """
    data = read_bytes(path, limit=MAX_TOML, what=what)
    decode_toml(data, kind, what)
    target = _signature_path(path)
    write_atomic(target, sign_envelope(_TYPE_PREFIX + what, data, signers))
    return target


def load_signed_toml(
    path: Path, kind: type[S], what: str, keys: Mapping[str, VerifyKey], *, required: int = 1
) -> S:
    """Return the struct in a TOML file that trusted keys have signed.

    Args:
        path: the TOML file; its signature is beside it as NAME.toml.dsse.
        kind: the struct.
        what: the kind of policy, which is part of what is signed: a site policy is no release policy.
        keys: fingerprint to key, the caller's trust (see `keyring`).
        required: how many of them must have signed.

    Raises:
        InputError: a file is missing, or the TOML does not decode.
        IntegrityError: the signature is not by enough of `keys`, or over other bytes or another kind.
    """
    data = read_bytes(path, limit=MAX_TOML, what=what)  # 1
    envelope = read_bytes(_signature_path(path), limit=_MAX_ENVELOPE, what=f"{what}'s signature")
    payload = open_envelope(envelope, _TYPE_PREFIX + what, keys, required=required)  # 2
    if payload != data:  # 3
        raise IntegrityError(
            f"the {what} was changed after it was signed", where=str(path), fix="Sign it again"
        )
    return decode_toml(data, kind, what)  # 4
