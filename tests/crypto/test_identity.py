from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloister.crypto import Identity, PublicIdentity, ScryptCost, hpke_open, hpke_seal, keyring
from cloister.errors import CloisterError, InputError, IntegrityError, PassphraseError, StorageError


def edited(data: bytes, **changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(data) | changes)


def test_a_public_identity_survives_export(alice: Identity) -> None:
    copy = PublicIdentity.from_json(alice.public.to_json())
    assert copy == alice.public
    assert copy.fingerprint == alice.fingerprint
    assert len(copy.fingerprint) == 64
    assert alice.name == copy.name == "alice"
    copy.verify(alice.sign(b"message"), b"message")
    sealed = hpke_seal(copy.sealing_key, b"m", info=b"i", associated_data=b"a")
    assert hpke_open(alice.sealing, sealed, info=b"i", associated_data=b"a") == b"m"
    assert copy.agreement == alice.agreement.public
    assert keyring([copy]) == {alice.fingerprint: copy.verify_key}


def test_every_part_of_an_export_is_signed(alice: Identity, bob: Identity) -> None:
    data, other = alice.public.to_json(), msgspec.json.decode(bob.public.to_json())
    for field in ("name", "agreement", "sealing", "signing", "proof"):
        with pytest.raises(IntegrityError, match="signature"):
            PublicIdentity.from_json(edited(data, **{field: other[field]}))


def test_an_identity_without_a_valid_proof_cannot_be_constructed(alice: Identity) -> None:
    public = alice.public
    with pytest.raises(IntegrityError):
        PublicIdentity(public.name, public.signing, public.agreement, public.sealing, bytes(64))
    with pytest.raises(IntegrityError):
        msgspec.structs.replace(public, name="mallory")
    packed = msgspec.to_builtins(public, builtin_types=(bytes,)) | {"name": "mallory"}
    with pytest.raises(IntegrityError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=PublicIdentity)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../up"},
        {"name": ""},
        {"signing": ""},
        {"agreement": "AA=="},
        {"sealing": "AA=="},
        {"proof": "AA=="},
        {"extra": 1},
        {"type": "cloister/identity/v2"},
        {"name": 5},
    ],
)
def test_malformed_exports_are_refused(alice: Identity, change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PublicIdentity.from_json(edited(alice.public.to_json(), **change))


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"{}", b'{"type":' * 5000])
def test_what_is_no_export_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not an exported identity"):
        PublicIdentity.from_json(data)


def test_fingerprints_cover_name_and_keys(alice: Identity) -> None:
    assert Identity.generate("alice").fingerprint != alice.fingerprint
    assert alice.public.fingerprint == alice.fingerprint


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "a.b", "-a", "a" * 64, "ä"])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        Identity.generate(name)


def test_saved_and_loaded(tmp_path: Path, alice: Identity, cheap: ScryptCost) -> None:
    path = tmp_path / "home" / "identity.json"
    alice.save(path, "pass phrase", cost=cheap)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Identity.load(path, "pass phrase")
    assert loaded.public == alice.public == Identity.read_public(path)
    alice.public.verify(loaded.sign(b"m"), b"m")
    assert [item.name for item in path.parent.iterdir()] == ["identity.json"]


def test_wrong_passphrases_are_told(tmp_path: Path, alice: Identity, cheap: ScryptCost) -> None:
    path = tmp_path / "identity.json"
    with pytest.raises(PassphraseError):
        alice.save(path, "", cost=cheap)
    assert not path.exists()
    alice.save(path, "right", cost=cheap)
    for wrong in ("wrong", "Right", "right "):
        with pytest.raises(PassphraseError, match="does not open"):
            Identity.load(path, wrong)
    with pytest.raises(PassphraseError):
        Identity.load(path, "")


def test_an_existing_identity_is_not_overwritten(
    tmp_path: Path, alice: Identity, bob: Identity, cheap: ScryptCost
) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "p", cost=cheap)
    with pytest.raises(InputError, match="exists"):
        bob.save(path, "p", cost=cheap)
    assert Identity.load(path, "p").name == "alice"
    bob.save(path, "p", cost=cheap, replace=True)
    assert Identity.load(path, "p").name == "bob"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o602])
def test_a_file_open_to_others_is_refused(
    tmp_path: Path, alice: Identity, cheap: ScryptCost, mode: int
) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "p", cost=cheap)
    path.chmod(mode)
    for call in (lambda: Identity.load(path, "p"), lambda: Identity.read_public(path)):
        with pytest.raises(InputError, match="chmod 600"):
            call()
    path.chmod(0o400)
    assert Identity.load(path, "p").name == "alice"


def test_private_keys_cannot_be_put_under_another_identity(
    tmp_path: Path, alice: Identity, bob: Identity, cheap: ScryptCost
) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "p", cost=cheap)
    file = msgspec.json.decode(path.read_bytes())
    file["public"] = msgspec.json.decode(bob.public.to_json())
    path.write_bytes(msgspec.json.encode(file))
    with pytest.raises(PassphraseError):
        Identity.load(path, "p")


@pytest.mark.parametrize("field", ["cost", "salt", "sealed", "public", "type"])
def test_an_altered_file_does_not_open(
    tmp_path: Path, alice: Identity, cheap: ScryptCost, field: str
) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "p", cost=cheap)
    file = msgspec.json.decode(path.read_bytes())
    file[field] = {
        "cost": {"n": 32, "r": 1, "p": 1},
        "salt": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sealed": "AAAA",
        "public": file["public"] | {"name": "other"},
        "type": "another",
    }[field]
    path.write_bytes(msgspec.json.encode(file))
    with pytest.raises((PassphraseError, IntegrityError, InputError)):
        Identity.load(path, "p")


def test_keys_that_do_not_belong_together_are_found(
    tmp_path: Path, alice: Identity, bob: Identity, cheap: ScryptCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "identity.json"
    monkeypatch.setattr(alice, "_signing", bob._signing, raising=True)
    alice.save(path, "p", cost=cheap)
    with pytest.raises(IntegrityError, match="belong together"):
        Identity.load(path, "p")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"nonsense", b"x" * 70_000, b'{"public":' + b'{"type":' * 5000]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError):
        Identity.load(path, "p")
    with pytest.raises(InputError, match="cannot read"):
        Identity.load(tmp_path / "missing", "p")
    with pytest.raises(InputError, match="cannot read"):
        Identity.load(tmp_path, "p")


def test_a_forged_cost_does_not_exhaust_memory(tmp_path: Path, alice: Identity, cheap: ScryptCost) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "p", cost=cheap)
    file = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(file | {"cost": {"n": 2**30, "r": 8, "p": 1}}))
    with pytest.raises(InputError, match="out of bounds"):
        Identity.load(path, "p")


def test_a_folder_that_cannot_be_written_is_told(alice: Identity, cheap: ScryptCost, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        alice.save(tmp_path / "file" / "identity.json", "p", cost=cheap)


def test_no_error_names_the_passphrase(tmp_path: Path, alice: Identity, cheap: ScryptCost) -> None:
    path = tmp_path / "identity.json"
    alice.save(path, "correct horse", cost=cheap)
    with pytest.raises(CloisterError) as caught:
        Identity.load(path, "battery staple")
    assert "battery" not in str(caught.value)
    assert "battery" not in repr(caught.value)
