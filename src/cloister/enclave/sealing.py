"""Data that only this machine opens, only in the state it was sealed in, and only in its newest copy.

File format "cloister/tpm-sealed/v1", all of it authenticated:

    line 1     canonical JSON: type, protection, label, registers and their values, counter, the sealed key
    the rest   nonce | AES-256-GCM ciphertext | tag, the whole first line being associated data

The AES key is sealed by the TPM under a policy (`attester.policy`): registers have these values, and the
counter has exactly this one. So another machine, other software, an altered file and an older copy are
refused by the TPM itself, or by the cipher, and not by this code's goodwill.

Order of `seal_file`, so that a crash at any instant leaves one copy that opens:
1. seal for the value after the counter's present one; 2. replace the file; 3. increment the counter.
Killed before 2, the old copy opens. Killed before 3, `unseal` finds a copy for the next value, increments,
and opens it. Until 3 either copy counts as the newest; after it only the new one does.

What "protection" says is written by whoever sealed: "TPM", or that a software TPM did it, which is not
hardware-protected. Without a counter an older copy opens too; the file says "counter": null.

Not covered: who sealed. Whoever may use the TPM can seal something else to the same state and name.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import canonical_bytes, decrypt, encrypt
from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.attester.policy import Condition, SealedKey, is_for, seal_key, unseal_key
from cloister.enclave.attester.tpm import Tpm
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.files import read_bytes, write_atomic

__all__ = [
    "DEFAULT_PCRS",
    "MAX_SEALED",
    "SealedHeader",
    "read_header",
    "seal",
    "seal_file",
    "unseal",
    "unseal_file",
]

DEFAULT_PCRS: Final = (0, 2, 4, 7, 11, 12)
"""Firmware and its options' code, boot loader, secure boot's keys; this program and what it depends on."""
MAX_SEALED: Final = 64 << 20
"""Bytes of a sealed file."""
_MAX_HEADER: Final = 16 << 10
_SOFTWARE: Final = "not hardware-protected: a software TPM (swtpm)"

_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Base64 = Annotated[str, msgspec.Meta(max_length=4096)]
_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Counted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: _Label
    value: Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class SealedHeader(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/tpm-sealed/v1", tag_field="type"
):
    """What a sealed file says about itself; true if it opens.

    Attributes:
        protection: "TPM", or that a software TPM sealed it, which is not hardware-protected.
        label: what it is, in its sealer's words.
        pcrs: registers of the SHA-256 bank it is sealed to, values in hexadecimal, by number.
        counter: name and value of the counter that makes older copies useless; null without one.
        public: TPM2B_PUBLIC of the sealed key, base64.
        private: TPM2B_PRIVATE of it, base64.
    """

    protection: Literal["TPM", "not hardware-protected: a software TPM (swtpm)"]
    label: _Label
    pcrs: dict[Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])\Z")], _Hex]
    counter: _Counted | None
    public: _Base64
    private: _Base64


def seal(
    tpm: Tpm, data: bytes, *, label: str, pcrs: Sequence[int] = DEFAULT_PCRS, counter: str | None
) -> bytes:
    """Return data sealed to this TPM, its registers as they are, and the next value of a counter.

    From now on nothing that was sealed with this counter before opens. To replace a file, use `seal_file`,
    which survives a crash.

    Args:
        tpm: this machine's.
        data: at most 64 MiB.
        label: what it is; whoever unseals must ask for the same.
        pcrs: registers; at least one.
        counter: name of the counter that shall make older copies useless; one a thing that is sealed. None:
            older copies open.

    Raises:
        InputError: too much, no registers, or the TPM failed.
    """
    named = None if counter is None else NvCounter(tpm, counter)
    return _sealed(tpm, data, label, pcrs, named, 0 if named is None else named.increment())


def seal_file(
    tpm: Tpm,
    path: Path,
    data: bytes,
    *,
    label: str,
    pcrs: Sequence[int] = DEFAULT_PCRS,
    counter: str | None,
) -> None:
    """Seal data into a file, in place of an older one, in an order that survives a crash. See `seal`.

    Raises:
        InputError: as `seal`.
        StorageError: the file cannot be written; the older one still opens.
    """
    named = None if counter is None else NvCounter(tpm, counter)
    if named is None:
        write_atomic(path, _sealed(tpm, data, label, pcrs, None, 0), mode=0o600)
        return
    if not named.exists():
        named.increment()
    _finish(tpm, path)
    value = named.read()
    write_atomic(path, _sealed(tpm, data, label, pcrs, named, value + 1), mode=0o600)
    named.increment()


def unseal(tpm: Tpm, sealed: bytes, *, label: str) -> bytes:
    """Return what was sealed.

    Args:
        tpm: the one that sealed it.
        sealed: what `seal` returned.
        label: what it must be.

    Raises:
        PolicyRefused: what runs here is not what it was sealed to, or this is an older copy.
        IntegrityError: it was altered, is something else, or was sealed by another TPM.
        InputError: it is no sealed data, or the TPM failed.
    """
    header, line = _split(sealed)
    if header.label != label:
        raise IntegrityError("this is sealed data of another name", where=header.label)
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in header.pcrs.items()}
    key = SealedKey(_bytes(header.public), _bytes(header.private))
    condition = Condition(pcrs, _counter(tpm, header, key, pcrs))
    return decrypt(unseal_key(tpm, key, condition), sealed[len(line) :], line)


def unseal_file(tpm: Tpm, path: Path, *, label: str) -> bytes:
    """Return what a file holds. Raises as `unseal`."""
    return unseal(tpm, read_bytes(path, limit=MAX_SEALED + _MAX_HEADER, what="sealed file"), label=label)


def read_header(sealed: bytes) -> SealedHeader:
    """Return what sealed data says about itself; nothing of it is checked. Raises InputError."""
    return _split(sealed)[0]


def _finish(tpm: Tpm, path: Path) -> None:
    """End an earlier `seal_file` that was killed before its last step: no two copies may have one number."""
    try:
        header, _ = _split(read_bytes(path, limit=MAX_SEALED + _MAX_HEADER))
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in header.pcrs.items()}
        _counter(tpm, header, SealedKey(_bytes(header.public), _bytes(header.private)), pcrs)
    except (InputError, IntegrityError, PolicyRefused):
        return  # what is there is none of ours, damaged, or old: it is replaced


def _sealed(
    tpm: Tpm, data: bytes, label: str, pcrs: Sequence[int], counter: NvCounter | None, value: int
) -> bytes:
    if not pcrs or not set(pcrs) <= set(range(24)):
        raise InputError("data is sealed to one or more of registers 0 to 23", fix="Name them")
    if len(data) > MAX_SEALED - 64:
        raise InputError(f"more than {MAX_SEALED >> 20} MiB cannot be sealed", fix="Seal a key to it instead")
    values = tpm.pcrs(sorted(set(pcrs)))
    key = os.urandom(32)
    sealed = seal_key(tpm, key, Condition(values, None if counter is None else (counter, value)))
    header = SealedHeader(
        protection=_SOFTWARE if tpm.software else "TPM",
        label=label,
        pcrs={str(pcr): each.hex() for pcr, each in values.items()},
        counter=None if counter is None else _Counted(counter.name, value),
        public=base64.b64encode(sealed.public).decode(),
        private=base64.b64encode(sealed.private).decode(),
    )
    line = canonical_bytes(header) + b"\n"
    _split(line)  # a label that could not be read again is refused now
    return line + encrypt(key, data, line)


def _split(sealed: bytes) -> tuple[SealedHeader, bytes]:
    """Return the header and the bytes of its line. Raises InputError where it is none, or not canonical."""
    end = sealed.find(b"\n", 0, _MAX_HEADER) + 1
    try:
        header = msgspec.json.decode(sealed[:end], type=SealedHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError("this is not sealed data, or it was altered", fix="Check which file it is") from None
    if canonical_bytes(header) + b"\n" != sealed[:end] or not header.pcrs:
        raise InputError("sealed data was altered: its first line is not in canonical form")
    return header, sealed[:end]


def _counter(
    tpm: Tpm, header: SealedHeader, key: SealedKey, pcrs: dict[int, bytes]
) -> tuple[NvCounter, int] | None:
    """Return the counter and the value it must have; end a `seal_file` that was killed before its last step.

    That the next value is meant is believed only where this TPM made the key for it: an altered file must not
    move the counter past the copy that is good.
    """
    if header.counter is None:
        return None
    counter = NvCounter(tpm, header.counter.name)
    if not counter.exists():
        raise IntegrityError(
            "sealed data names a counter that this TPM does not have",
            fix="Another TPM sealed it, or this one was cleared since",
        )
    value = header.counter.value
    present = counter.read()
    if value == present + 1 and is_for(tpm, key, Condition(pcrs, (counter, value))):
        present = counter.increment()
    if value != present:
        raise PolicyRefused(
            f"this is not the newest copy of sealed data: it is number {value}, the counter says {present}",
            fix="Bring back the newest copy",
        )
    return counter, value


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError("sealed data was altered: a part of it is not base64") from None
