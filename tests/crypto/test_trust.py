from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from cloister.crypto import (
    Identity,
    TrustStore,
    canonical_bytes,
    declare_successor,
    export_identity,
    read_export,
    sign_envelope,
)
from cloister.crypto.trust import SUCCESSION_TYPE
from cloister.errors import InputError, IntegrityError


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "trust")


@pytest.fixture(scope="module")
def line() -> list[Identity]:
    """Three generations of keys of one name."""
    return [Identity.generate("carol") for _ in range(3)]


def chain(line: list[Identity]) -> list[bytes]:
    return [declare_successor(old, new) for old, new in itertools.pairwise(line)]


def test_trusted_identities_are_found(store: TrustStore, alice: Identity, bob: Identity) -> None:
    assert store.list() == []
    store.add(bob.public)
    store.add(alice.public)
    store.add(alice.public)
    assert store.list() == [alice.public, bob.public]
    assert store.get("alice") == alice.public
    assert store.by_fingerprint(bob.fingerprint) == bob.public
    store.remove("alice")
    for call in (
        lambda: store.get("alice"),
        lambda: store.by_fingerprint(alice.fingerprint),
        lambda: store.remove("alice"),
    ):
        with pytest.raises(InputError, match="cloister keys trust"):
            call()


def test_another_identity_does_not_take_a_trusted_name(store: TrustStore, alice: Identity) -> None:
    impostor = Identity.generate("alice")
    store.add(alice.public)
    with pytest.raises(InputError, match="another identity is trusted as alice"):
        store.add(impostor.public)
    assert store.get("alice") == alice.public
    store.add(impostor.public, replace=True)
    assert store.get("alice") == impostor.public


def test_a_succession_is_followed_over_any_number_of_steps(store: TrustStore, line: list[Identity]) -> None:
    public, successions = read_export(export_identity(line[2].public, chain(line)))
    assert public == line[2].public
    store.add(line[0].public)
    store.add(public, successions)
    assert store.get("carol") == public
    store.add(line[1].public, replace=True)
    store.add(public, successions)
    assert store.get("carol") == public


def test_a_declared_successor_that_never_came_does_not_break_the_line(
    store: TrustStore, line: list[Identity]
) -> None:
    lost = Identity.generate("carol")
    store.add(line[0].public)
    store.add(line[2].public, [declare_successor(line[0], lost), *chain(line)])
    assert store.get("carol") == line[2].public


def test_a_succession_with_a_gap_or_backwards_is_not_followed(
    store: TrustStore, line: list[Identity]
) -> None:
    store.add(line[0].public)
    for successions in ([], chain(line)[1:], chain(line)[:1], list(reversed(chain(line)))):
        with pytest.raises(InputError, match="another identity"):
            store.add(line[2].public, successions)
    store.add(line[2].public, replace=True)
    with pytest.raises(InputError, match="another identity"):
        store.add(line[0].public, chain(line))


def test_a_thief_without_the_old_key_cannot_declare_a_successor(store: TrustStore, alice: Identity) -> None:
    """Signed by the new key alone, or by a stranger in the old one's place."""
    store.add(alice.public)
    mallory, other = Identity.generate("alice"), Identity.generate("alice")
    payload = canonical_bytes({"old": alice.public, "new": mallory.public})
    for signers in ([mallory], [mallory, other], [other]):
        forged = sign_envelope(SUCCESSION_TYPE, payload, signers)
        with pytest.raises(IntegrityError, match="signatures by known keys"):
            store.add(mallory.public, [forged])
    claimed = sign_envelope(SUCCESSION_TYPE, payload, [mallory, other])
    tree = msgspec.json.decode(claimed)
    tree["signatures"][1]["keyid"] = alice.fingerprint
    with pytest.raises(IntegrityError, match="signature"):
        store.add(mallory.public, [msgspec.json.encode(tree)])
    assert store.get("alice") == alice.public


def test_the_new_key_must_agree_too(store: TrustStore, alice: Identity) -> None:
    new = Identity.generate("alice")
    store.add(alice.public)
    one_sided = sign_envelope(
        SUCCESSION_TYPE, canonical_bytes({"old": alice.public, "new": new.public}), [alice]
    )
    with pytest.raises(IntegrityError, match="1 of 2"):
        store.add(new.public, [one_sided])


def test_a_successor_keeps_the_name(store: TrustStore, alice: Identity, bob: Identity) -> None:
    with pytest.raises(InputError, match="keeps the name"):
        declare_successor(alice, bob)
    payload = canonical_bytes({"old": alice.public, "new": bob.public})
    renaming = sign_envelope(SUCCESSION_TYPE, payload, [alice, bob])
    store.add(Identity.generate("bob").public)
    with pytest.raises(IntegrityError, match="changes the name"):
        store.add(bob.public, [renaming])


@pytest.mark.parametrize("garbage", [b"", b"{}", b"nonsense", b'{"a":' * 5000])
def test_garbage_among_successions_is_refused(
    store: TrustStore, line: list[Identity], garbage: bytes
) -> None:
    store.add(line[0].public)
    with pytest.raises(IntegrityError):
        store.add(line[2].public, [*chain(line), garbage])


def test_a_succession_of_another_kind_is_refused(store: TrustStore, line: list[Identity]) -> None:
    store.add(line[0].public)
    payload = canonical_bytes({"old": line[0].public, "new": line[1].public})
    with pytest.raises(IntegrityError, match="another type"):
        store.add(line[1].public, [sign_envelope("other", payload, line[:2])])


def test_plain_exports_are_read_too(alice: Identity) -> None:
    assert read_export(alice.public.to_json()) == (alice.public, ())
    assert export_identity(alice.public) == alice.public.to_json()
    for data in (b"", b"{}", b"[1]", b'{"type":"cloister/identity-export/v1"}'):
        with pytest.raises(InputError, match="not an exported identity"):
            read_export(data)


def test_an_export_nested_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="not an exported identity"):
        read_export(b'{"a":' * 5000)


def test_files_put_under_another_name_are_refused(store: TrustStore, alice: Identity) -> None:
    store.add(alice.public)
    (store.folder / "alice.json").rename(store.folder / "bob.json")
    with pytest.raises(IntegrityError, match="renamed"):
        store.get("bob")


@pytest.mark.parametrize("name", ["../alice", "a/b", "", "."])
def test_names_cannot_leave_the_folder(store: TrustStore, name: str) -> None:
    with pytest.raises(InputError, match="not allowed"):
        store.get(name)
