"""The canonical row is written down a second time here, value by value, from the description."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import framed, hkdf
from cloister.log import MerkleTree
from cloister.vault.fingerprint import Fingerprints

SECRET = b"f" * 32
FIELDS = pa.schema([("n", pa.float64()), ("t", pa.string()), ("b", pa.bool_()), ("i", pa.int64())])
INFO = framed(b"cloister row fingerprint v1", b"b\nbool", b"i\nint64", b"n\ndouble", b"t\nstring")


def canonical(row: dict[str, Any]) -> bytes:
    parts = []
    for name in sorted(row):
        value = row[name]
        if value is None:
            parts.append(bytes(33 if name == "t" else 9))
        elif isinstance(value, str):
            parts.append(b"\x01" + hashlib.sha256(value.encode()).digest())
        elif isinstance(value, float):
            parts.append(b"\x01" + struct.pack(">d", 0.0 if value == 0 else value))
        else:
            parts.append(b"\x01" + struct.pack(">q", int(value)))
    return b"".join(parts)


def root(rows: list[dict[str, Any]], *, secret: bytes = SECRET, at_once: int = 1000) -> bytes:
    fingerprints = Fingerprints(secret, FIELDS)
    for batch in pa.Table.from_pylist(rows, schema=FIELDS).to_batches(at_once):
        fingerprints.add(batch)
    return fingerprints.root()


_ROW = st.fixed_dictionaries(
    {
        "n": st.none() | st.floats(allow_nan=False),
        "t": st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
        "b": st.none() | st.booleans(),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
    }
)


@given(st.lists(_ROW, max_size=20), st.integers(1, 7))
def test_against_the_description(rows: list[dict[str, Any]], at_once: int) -> None:
    tree, key = MerkleTree(), hkdf(SECRET, info=INFO)
    for row in rows:
        tree.append(hmac.digest(key, canonical(row), "sha256"))
    assert root(rows) == root(rows, at_once=at_once) == tree.root()


def test_order_values_and_secret_matter() -> None:
    one, two = {"n": 1.0, "t": "a", "b": True, "i": 1}, {"n": 2.0, "t": "a", "b": True, "i": 1}
    missing, zero = {"n": None, "t": None, "b": None, "i": None}, {"n": 0.0, "t": "", "b": False, "i": 0}
    roots = [root([one, two]), root([two, one]), root([one]), root([one, one]), root([missing]), root([zero])]
    roots.append(root([one, two], secret=b"g" * 32))
    assert len(set(roots)) == len(roots)


def test_the_order_of_columns_does_not_matter() -> None:
    rows = [{"n": 1.0, "t": "a", "b": True, "i": 1}]
    fields = pa.schema(list(reversed(list(FIELDS))))
    fingerprints = Fingerprints(SECRET, fields)
    for batch in pa.Table.from_pylist(rows, schema=fields).to_batches():
        fingerprints.add(batch)
    assert fingerprints.root() == root(rows)


def test_names_and_kinds_matter() -> None:
    roots = []
    for name, kind in (("a", pa.int64()), ("b", pa.int64()), ("a", pa.float64())):
        fields = pa.schema([(name, kind)])
        fingerprints = Fingerprints(SECRET, fields)
        fingerprints.add(pa.record_batch([pa.array([0], kind)], schema=fields))
        roots.append(fingerprints.root())
    assert len(set(roots)) == 3
