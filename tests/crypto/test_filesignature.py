from __future__ import annotations

from pathlib import Path

import pytest

from cloister.crypto import Identity, keyring, sha512, sign_envelope, sign_file, verify_file
from cloister.crypto.filesignature import FILE_SIGNATURE_TYPE
from cloister.errors import InputError, IntegrityError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"content")
    return path


def test_signed_and_verified_under_any_name(file: Path, alice: Identity, bob: Identity) -> None:
    signature = sign_file(file, [alice, bob])
    renamed = file.rename(file.with_name("other.pdf"))
    verify_file(renamed, signature, keyring([alice.public, bob.public]), required=2)


def test_a_changed_file_is_found(file: Path, alice: Identity) -> None:
    signature = sign_file(file, [alice])
    file.write_bytes(b"Content")
    with pytest.raises(IntegrityError, match="not the one that was signed"):
        verify_file(file, signature, keyring([alice.public]))


def test_another_signer_is_found(file: Path, alice: Identity, bob: Identity) -> None:
    with pytest.raises(IntegrityError, match="0 of 1"):
        verify_file(file, sign_file(file, [alice]), keyring([bob.public]))


def test_a_signature_of_another_form_is_refused(file: Path, alice: Identity) -> None:
    for payload in (
        b"{}",
        b'{"sha512":"00"}',
        b"nonsense",
        b'{"sha512":"' + sha512(b"content").hex().encode() + b'","x":1}',
    ):
        signature = sign_envelope(FILE_SIGNATURE_TYPE, payload, [alice])
        with pytest.raises(IntegrityError, match="cannot be read"):
            verify_file(file, signature, keyring([alice.public]))
    with pytest.raises(InputError, match="cannot read"):
        sign_file(file.with_name("missing"), [alice])
