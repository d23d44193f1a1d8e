"""Files encrypted to people: any size, any number of recipients, streamed.

    magic                CLOISTER-SEALED-1 and a line feed
    length of header     4 bytes, big-endian
    header               JSON: a commitment to the file key; per recipient fingerprint and sealed file key
    chunks               256 KiB of plaintext each (the last: 0 to 256 KiB) under AES-256-GCM, 16 bytes longer

The file key is fresh. Each recipient gets it by HPKE with ML-KEM-768 and X25519, bound to the recipient's
fingerprint. Chunks are encrypted under HKDF(file key, salt = SHA-256 of everything before them), the nonce
being the chunk's number and the associated data saying whether it is the last (the STREAM construction;
Hoang, Reyhanitabar, Rogaway, Vizar 2015). So a changed header, a chunk that is changed, moved, repeated or
left out, a cut and an appended byte all fail; and since AES-GCM does not commit to its key, the commitment
prevents a file that opens to different contents for different recipients.

A sealed file does not say who sealed it, and it shows length and recipients' fingerprints. `open_file` puts
the target in its place only when the last chunk has verified; until then nothing is released.

Who holds an identity and does not want to see the content opens the file key alone (`open_content_key`) and
gives it to a process that may (`open_with_content_key`): it opens this file and no other.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec

from cloister.crypto._base import check_length
from cloister.crypto.aead import KEY_BYTES, TAG_BYTES, Opener, Sealer
from cloister.crypto.hashing import constant_time_equal, sha256
from cloister.crypto.hpke import hpke_open, hpke_seal
from cloister.crypto.identity import Identity, PublicIdentity
from cloister.crypto.kdf import hkdf
from cloister.errors import InputError, IntegrityError
from cloister.files import atomic_file

__all__ = [
    "open_bytes",
    "open_content_key",
    "open_file",
    "open_with_content_key",
    "seal_bytes",
    "seal_file",
    "sealed_recipients",
]

_MAGIC: Final = b"CLOISTER-SEALED-1\n"
_CHUNK: Final = 256 << 10
_MAX_RECIPIENTS: Final = 1000
_MAX_HEADER: Final = 4 << 20
_INFO: Final = b"cloister sealed file v1"
_COMMIT: Final = b"cloister sealed file v1 commitment"
_PAYLOAD: Final = b"cloister sealed file v1 payload"


class _Recipient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    sealed: Annotated[bytes, msgspec.Meta(max_length=2048)]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    commitment: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    recipients: Annotated[tuple[_Recipient, ...], msgspec.Meta(min_length=1, max_length=_MAX_RECIPIENTS)]


def seal_file(source: Path, target: Path, recipients: Sequence[PublicIdentity]) -> None:
    """Encrypt the file `source` to `recipients`, into `target` as one step.

    Raises:
        InputError: no recipient, or `source` cannot be read.
        StorageError: `target` cannot be written; nothing is left half-written.
    """
    with _open_source(source) as reader, atomic_file(target) as writer:
        _seal(reader, writer, recipients)


def open_file(source: Path, target: Path, identity: Identity) -> None:
    """Decrypt the file `source` into `target` (mode 0600), which appears only when all of it has verified.

    Raises:
        InputError: not a sealed file, or not sealed to `identity`.
        IntegrityError: it was altered or cut.
        StorageError: `target` cannot be written.
    """
    with _open_source(source) as reader, atomic_file(target, mode=0o600) as writer:
        _open(reader, writer, identity)


def seal_bytes(plaintext: bytes, recipients: Sequence[PublicIdentity]) -> bytes:
    """Return `plaintext` encrypted to `recipients`, in the same format. Raises InputError for none."""
    writer = io.BytesIO()
    _seal(io.BytesIO(plaintext), writer, recipients)
    return writer.getvalue()


def open_bytes(sealed: bytes, identity: Identity) -> bytes:
    """Return what is sealed to `identity`. Raises InputError or IntegrityError as `open_file`."""
    writer = io.BytesIO()
    _open(io.BytesIO(sealed), writer, identity)
    return writer.getvalue()


def open_content_key(sealed: bytes, identity: Identity) -> bytes:
    """Return the file key of what is sealed to `identity`, 32 bytes; none of the content is opened.

    Args:
        sealed: a sealed file, or its header at least.
        identity: one of its recipients.

    Raises:
        InputError: not a sealed file, or not sealed to `identity`.
        IntegrityError: its header was altered.
    """
    header, _ = _read_header(io.BytesIO(sealed))
    return _file_key(header, identity)


def open_with_content_key(sealed: bytes, content_key: bytes) -> bytes:
    """Return what is sealed, by the file key that `open_content_key` gave. It belongs to this file alone.

    Raises:
        InputError: not a sealed file, or no key by its length.
        IntegrityError: the key is another file's, or the file was altered or cut.
    """
    check_length(content_key, KEY_BYTES, "a sealed file's key")
    reader, writer = io.BytesIO(sealed), io.BytesIO()
    header, salt = _read_header(reader)
    _check_committed(header, content_key)
    _open_chunks(reader, writer, content_key, salt)
    return writer.getvalue()


def sealed_recipients(source: Path | bytes) -> tuple[str, ...]:
    """Return the fingerprints that a sealed file, or its bytes, names as its recipients; nothing is
    verified."""
    with io.BytesIO(source) if isinstance(source, bytes) else _open_source(source) as reader:
        header, _ = _read_header(reader)
    return tuple(recipient.fingerprint for recipient in header.recipients)


def _open_source(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"cannot read the file: {error.strerror}", where=str(path), fix="Check the path"
        ) from error


def _read(reader: BinaryIO, count: int) -> bytes:
    try:
        return reader.read(count)
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", fix="Check the path") from error


def _final(last: bool) -> bytes:
    return b"cloister sealed chunk, " + (b"last" if last else b"more")


def _seal(reader: BinaryIO, writer: BinaryIO, recipients: Sequence[PublicIdentity]) -> None:
    people = {person.fingerprint: person for person in recipients}
    if not 1 <= len(people) <= _MAX_RECIPIENTS:
        raise InputError(f"a file is sealed to 1 to {_MAX_RECIPIENTS} recipients", fix="Name at least one")
    file_key = os.urandom(KEY_BYTES)
    wrapped = tuple(
        _Recipient(name, hpke_seal(person.sealing_key, file_key, info=_INFO, associated_data=name.encode()))
        for name, person in people.items()
    )
    header = msgspec.json.encode(_Header(hkdf(file_key, info=_COMMIT), wrapped))
    preamble = b"".join((_MAGIC, len(header).to_bytes(4, "big"), header))
    writer.write(preamble)
    sealer = Sealer(hkdf(file_key, info=_PAYLOAD, salt=sha256(preamble)), _CHUNK)
    chunk = _read(reader, _CHUNK)
    last = False
    while not last:
        following = _read(reader, _CHUNK)
        last = not following
        writer.write(sealer.seal(chunk, _final(last)))
        chunk = following


def _read_header(reader: BinaryIO) -> tuple[_Header, bytes]:
    """Return the header and the hash of everything up to its end."""
    start = _read(reader, len(_MAGIC) + 4)
    length = int.from_bytes(start[len(_MAGIC) :], "big")
    if not start.startswith(_MAGIC) or len(start) != len(_MAGIC) + 4 or length > _MAX_HEADER:
        raise InputError("this is not a sealed file", fix="Check which file it is")
    data = _read(reader, length)
    try:
        return msgspec.json.decode(data, type=_Header), sha256(start, data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IntegrityError("a sealed file's header cannot be read", fix="Get the file again") from None


def _file_key(header: _Header, identity: Identity) -> bytes:
    for recipient in header.recipients:
        if recipient.fingerprint == identity.fingerprint:
            name = identity.fingerprint.encode()
            key = hpke_open(identity.sealing, recipient.sealed, info=_INFO, associated_data=name)
            _check_committed(header, key)
            return key
    raise InputError(
        f"the file is not sealed to {identity.name}", fix="Ask its sender to seal it to your identity"
    )


def _check_committed(header: _Header, file_key: bytes) -> None:
    if not constant_time_equal(hkdf(file_key, info=_COMMIT), header.commitment):
        raise IntegrityError(
            "a sealed file's key is not the committed one", fix="Ask its sender to seal it again"
        )


def _open(reader: BinaryIO, writer: BinaryIO, identity: Identity) -> None:
    header, salt = _read_header(reader)
    _open_chunks(reader, writer, _file_key(header, identity), salt)


def _open_chunks(reader: BinaryIO, writer: BinaryIO, file_key: bytes, salt: bytes) -> None:
    opener = Opener(hkdf(file_key, info=_PAYLOAD, salt=salt), _CHUNK)
    chunk = _read(reader, _CHUNK + TAG_BYTES)
    last = False
    while not last:
        following = _read(reader, _CHUNK + TAG_BYTES)
        last = not following
        writer.write(opener.open(chunk, _final(last)))
        chunk = following
