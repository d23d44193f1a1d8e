from __future__ import annotations

import json

import msgspec
import pytest
from tests.vault.world import owner, schema

from cloister.crypto import sign_envelope
from cloister.errors import InputError, IntegrityError
from cloister.vault import Manifest, open_manifest
from cloister.vault.checkedfile import FileDigests
from cloister.vault.manifest import PAYLOAD_TYPE, sign_manifest

HEX = "0123456789abcdef" * 4


def manifest(**changes: object) -> Manifest:
    fields = {
        "version": 1,
        "name": "heart",
        "dataset_id": HEX[:32],
        "kek_id": "dataset.heart.1",
        "owner": owner().fingerprint,
        "created": "2026-01-02T03:04:05+00:00",
        "purposes": ("a study",),
        "consent": "",
        "schema": schema(),
        "schema_sha256": schema().digest().hex(),
        "rows": 10,
        "without_consent": 1,
        "quarantined": 2,
        "fingerprints_root": HEX,
        "file": FileDigests(100, HEX, HEX, HEX),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def envelope(payload: object, signer: str = "alice", kind: str = PAYLOAD_TYPE) -> bytes:
    return sign_envelope(kind, msgspec.json.encode(payload), [owner(signer)])


def test_it_comes_back_with_its_columns_in_order() -> None:
    signed = sign_manifest(manifest(), owner())
    opened = open_manifest(signed, owner().public)
    assert opened == manifest()
    assert list(opened.schema.columns) == list(schema().columns)


def test_only_its_owner_signs_it() -> None:
    with pytest.raises(InputError):
        sign_manifest(manifest(), owner("mallory"))


def test_signed_by_somebody_else() -> None:
    with pytest.raises(IntegrityError):
        open_manifest(envelope(manifest(), "mallory"), owner().public)


def test_signed_by_somebody_else_under_the_owners_key_id() -> None:
    tree = json.loads(envelope(manifest(), "mallory"))
    tree["signatures"][0]["keyid"] = owner().fingerprint
    with pytest.raises(IntegrityError):
        open_manifest(json.dumps(tree).encode(), owner().public)


def test_naming_another_owner() -> None:
    with pytest.raises(IntegrityError, match="contradicts"):
        open_manifest(envelope(manifest(owner=owner("mallory").fingerprint)), owner().public)


def test_a_signed_plan_is_no_manifest() -> None:
    with pytest.raises(IntegrityError):
        open_manifest(envelope(manifest(), kind="application/vnd.cloister.plan+json"), owner().public)


def test_a_schema_of_another_digest() -> None:
    with pytest.raises(IntegrityError, match="contradicts"):
        open_manifest(envelope(manifest(schema_sha256=HEX)), owner().public)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"rows": 0},
        {"rows": -1},
        {"rows": "10"},
        {"quarantined": -1},
        {"name": "../heart"},
        {"name": ""},
        {"dataset_id": "x"},
        {"kek_id": "k" * 129},
        {"purposes": []},
        {"purposes": ["a", "a"]},
        {"purposes": [""]},
        {"purposes": ["a\nb"]},
        {"purposes": ["x" * 201]},
        {"fingerprints_root": HEX + "00"},
        {"fingerprints_root": HEX.upper()},
        {"schema": {"columns": {}}},
        {"schema": {"columns": {"a": {"type": "number", "colour": "red"}}}},
        {"consent": "x" * 2001},
        {"file": {"size": -1, "sha256": HEX, "footer_sha256": HEX, "key_material_sha256": HEX}},
        {"file": {"size": 1}},
        {"extra": 1},
    ],
)
def test_malformed_though_signed(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        open_manifest(envelope({**msgspec.to_builtins(manifest()), **change}), owner().public)


@pytest.mark.parametrize("field", list(msgspec.to_builtins(manifest())))
def test_every_field_is_needed(field: str) -> None:
    tree = msgspec.to_builtins(manifest())
    del tree[field]
    with pytest.raises(IntegrityError, match="malformed"):
        open_manifest(envelope(tree), owner().public)


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b"x" * 100, b'{"payload": "\xff"}'])
def test_nonsense(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        open_manifest(data, owner().public)
