from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import (
    Identity,
    PublicIdentity,
    aead,
    hkdf,
    open_bytes,
    open_content_key,
    open_file,
    open_with_content_key,
    seal_bytes,
    seal_file,
    sealed_recipients,
    sealedfile,
    sha256,
)
from cloister.errors import InputError, IntegrityError

CHUNK = 256 << 10
SEALED_CHUNK = CHUNK + aead.TAG_BYTES


def start_of_chunks(sealed: bytes) -> int:
    return 22 + int.from_bytes(sealed[18:22], "big")


def with_header(sealed: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    header = msgspec.json.decode(sealed[22 : start_of_chunks(sealed)])
    change(header)
    data = msgspec.json.encode(header)
    return sealed[:18] + len(data).to_bytes(4, "big") + data + sealed[start_of_chunks(sealed) :]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5])
def test_every_size_opens_for_every_recipient(size: int, alice: Identity, bob: Identity) -> None:
    plaintext = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed = seal_bytes(plaintext, [alice.public, bob.public])
    assert open_bytes(sealed, alice) == plaintext
    assert open_bytes(sealed, bob) == plaintext
    chunks = max(1, -(-size // CHUNK))
    assert len(sealed) - start_of_chunks(sealed) == size + chunks * aead.TAG_BYTES


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=20)
def test_round_trip(alice: Identity, plaintext: bytes) -> None:
    assert open_bytes(seal_bytes(plaintext, [alice.public]), alice) == plaintext


def test_files_stream(tmp_path: Path, alice: Identity) -> None:
    source, sealed, opened = (tmp_path / name for name in ("rows.csv", "rows.sealed", "rows.opened"))
    source.write_bytes(b"age,sex\n" * 100_000)
    seal_file(source, sealed, [alice.public])
    open_file(sealed, opened, alice)
    assert opened.read_bytes() == source.read_bytes()
    assert opened.stat().st_mode & 0o777 == 0o600
    assert sealed_recipients(sealed) == (alice.fingerprint,)
    assert b"age,sex" not in sealed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.opened", "rows.sealed"]


def test_others_cannot_open(alice: Identity, bob: Identity) -> None:
    with pytest.raises(InputError, match="not sealed to bob"):
        open_bytes(seal_bytes(b"x", [alice.public]), bob)


def test_a_recipients_entry_does_not_work_under_another_name(alice: Identity, bob: Identity) -> None:
    def rename(header: dict[str, object]) -> None:
        header["recipients"][0]["fingerprint"] = bob.fingerprint  # type: ignore[index]

    with pytest.raises(IntegrityError):
        open_bytes(with_header(seal_bytes(b"x", [alice.public]), rename), bob)


def test_every_byte_counts(alice: Identity) -> None:
    sealed = seal_bytes(b"forty-two", [alice.public])
    for position in range(0, len(sealed), 1 if len(sealed) < 400 else 13):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises((IntegrityError, InputError)):
            open_bytes(bytes(changed), alice)


def test_every_cut_is_found(alice: Identity) -> None:
    sealed = seal_bytes(bytes(2 * CHUNK + 3), [alice.public])
    first = start_of_chunks(sealed)
    cuts = [
        0,
        5,
        18,
        20,
        22,
        100,
        first - 1,
        first,
        first + 5,
        first + SEALED_CHUNK - 1,
        first + SEALED_CHUNK,
    ]
    for cut in [*cuts, first + SEALED_CHUNK + 1, first + 2 * SEALED_CHUNK, len(sealed) - 1]:
        with pytest.raises((IntegrityError, InputError)):
            open_bytes(sealed[:cut], alice)


def test_appended_bytes_are_found(alice: Identity) -> None:
    for size in (3, CHUNK):
        sealed = seal_bytes(bytes(size), [alice.public])
        for extra in (b"\x00", bytes(16), bytes(SEALED_CHUNK), sealed[start_of_chunks(sealed) :]):
            with pytest.raises(IntegrityError):
                open_bytes(sealed + extra, alice)


def test_chunks_cannot_be_swapped_repeated_or_left_out(alice: Identity) -> None:
    sealed = seal_bytes(bytes(3 * CHUNK), [alice.public])
    start = start_of_chunks(sealed)
    head, body = sealed[:start], sealed[start:]
    one, two, three = (body[i * SEALED_CHUNK : (i + 1) * SEALED_CHUNK] for i in range(3))
    for order in (
        [two, one, three],
        [one, one, three],
        [one, three],
        [two, three],
        [one, two],
        [one, two, three, three],
    ):
        with pytest.raises(IntegrityError):
            open_bytes(head + b"".join(order), alice)
    assert open_bytes(head + one + two + three, alice) == bytes(3 * CHUNK)


def test_chunks_of_another_file_do_not_fit(alice: Identity) -> None:
    one, two = seal_bytes(b"one", [alice.public]), seal_bytes(b"two", [alice.public])
    with pytest.raises(IntegrityError):
        open_bytes(one[: start_of_chunks(one)] + two[start_of_chunks(two) :], alice)


def test_a_recipient_cannot_be_added_or_removed_unnoticed(alice: Identity, bob: Identity) -> None:
    sealed = seal_bytes(b"x", [alice.public, bob.public])

    def drop(header: dict[str, object]) -> None:
        header["recipients"] = header["recipients"][:1]  # type: ignore[index]

    with pytest.raises(IntegrityError):
        open_bytes(with_header(sealed, drop), alice)


def test_two_recipients_cannot_be_shown_different_contents(
    alice: Identity, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender who gives each recipient another file key is found by the commitment, whatever the ciphertext does."""
    seal = sealedfile.hpke_seal

    def other_key_for_bob(public: object, key: bytes, *, info: bytes, associated_data: bytes) -> bytes:
        chosen = bytes(32) if associated_data == bob.fingerprint.encode() else key
        return seal(public, chosen, info=info, associated_data=associated_data)  # type: ignore[arg-type]

    monkeypatch.setattr(sealedfile, "hpke_seal", other_key_for_bob)
    sealed = seal_bytes(b"x", [alice.public, bob.public])
    assert open_bytes(sealed, alice) == b"x"
    with pytest.raises(IntegrityError, match="committed"):
        open_bytes(sealed, bob)


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 5])
def test_a_files_key_opens_it_without_the_identity(size: int, alice: Identity, bob: Identity) -> None:
    sealed = seal_bytes(bytes(size), [bob.public, alice.public])
    key = open_content_key(sealed, alice)
    assert len(key) == 32
    assert key == open_content_key(sealed, bob) == open_content_key(sealed[: start_of_chunks(sealed)], bob)
    assert open_with_content_key(sealed, key) == bytes(size)


def test_a_files_key_is_for_its_recipients_and_for_that_file(alice: Identity, bob: Identity) -> None:
    sealed, other = seal_bytes(b"one", [alice.public]), seal_bytes(b"two", [alice.public])
    with pytest.raises(InputError, match="not sealed to bob"):
        open_content_key(sealed, bob)
    for data in (b"", b"age,sex\n", sealed[:21]):
        with pytest.raises(InputError):
            open_content_key(data, alice)
    key = open_content_key(sealed, alice)
    with pytest.raises(IntegrityError, match="committed"):
        open_with_content_key(other, key)
    for wrong in (b"", key[:-1], key + b"x"):
        with pytest.raises(InputError, match="32 bytes"):
            open_with_content_key(sealed, wrong)


def test_with_a_files_key_every_byte_counts_too(alice: Identity) -> None:
    sealed = seal_bytes(b"x" * 40, [alice.public])
    key = open_content_key(sealed, alice)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises((InputError, IntegrityError)):
            open_with_content_key(bytes(changed), key)
    for end in range(len(sealed)):
        with pytest.raises((InputError, IntegrityError)):
            open_with_content_key(sealed[:end], key)


def test_recipients_are_read_from_bytes_as_from_a_file(
    tmp_path: Path, alice: Identity, bob: Identity
) -> None:
    sealed = seal_bytes(b"x", [bob.public, alice.public])
    (tmp_path / "sealed").write_bytes(sealed)
    both = (bob.fingerprint, alice.fingerprint)
    assert sealed_recipients(sealed) == sealed_recipients(tmp_path / "sealed") == both


def test_nothing_is_released_before_all_has_verified(tmp_path: Path, alice: Identity) -> None:
    sealed = bytearray(seal_bytes(bytes(2 * CHUNK), [alice.public]))
    sealed[-1] ^= 1
    source, target = tmp_path / "sealed", tmp_path / "opened"
    source.write_bytes(sealed)
    target.write_bytes(b"what was there")
    with pytest.raises(IntegrityError):
        open_file(source, target, alice)
    assert target.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opened", "sealed"]


def test_the_format_is_as_documented(alice: Identity) -> None:
    """The second opinion: opened by hand from the docstring, without `sealedfile`."""
    plaintext = bytes(CHUNK) + b"tail"
    sealed = seal_bytes(plaintext, [alice.public])
    assert sealed.startswith(b"CLOISTER-SEALED-1\n")
    first = start_of_chunks(sealed)
    [recipient] = msgspec.json.decode(sealed[22:first])["recipients"]
    from cloister.crypto import hpke_open

    key = hpke_open(
        alice.sealing,
        msgspec.convert(recipient["sealed"], bytes),
        info=b"cloister sealed file v1",
        associated_data=alice.fingerprint.encode(),
    )
    chunk_key = hkdf(key, info=b"cloister sealed file v1 payload", salt=sha256(sealed[:first]))
    body, opened = sealed[first:], b""
    for number, end in enumerate(range(0, len(body), SEALED_CHUNK)):
        chunk = body[end : end + SEALED_CHUNK]
        label = b"cloister sealed chunk, " + (b"last" if end + SEALED_CHUNK >= len(body) else b"more")
        opened += aead.decrypt(chunk_key, number.to_bytes(12, "big") + chunk, label)
    assert opened == plaintext


def test_recipients_are_counted_once_and_needed(alice: Identity, tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    path.write_bytes(seal_bytes(b"x", [alice.public, alice.public]))
    assert sealed_recipients(path) == (alice.fingerprint,)
    people: list[PublicIdentity] = []
    with pytest.raises(InputError, match="recipients"):
        seal_bytes(b"x", people)


@pytest.mark.parametrize(
    "data", [b"", b"CLOISTER-SEALED-1\n", b"PK\x03\x04" + bytes(40), b"CLOISTER-SEALED-1\n\xff\xff\xff\xff"]
)
def test_other_files_are_refused(data: bytes, alice: Identity) -> None:
    with pytest.raises(InputError, match="not a sealed file"):
        open_bytes(data, alice)


def test_missing_files_and_folders_are_told(tmp_path: Path, alice: Identity) -> None:
    for source in (tmp_path / "missing", tmp_path):
        for call in (
            lambda path: seal_file(path, tmp_path / "out", [alice.public]),
            lambda path: open_file(path, tmp_path / "out", alice),
            sealed_recipients,
        ):
            with pytest.raises(InputError, match="cannot read"):
                call(source)
    assert not (tmp_path / "out").exists()
