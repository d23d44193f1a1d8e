"""TPM quotes as they travel: our attester's document, and the message of Google's go-tpm-tools.

Ours is canonical JSON, {"pcrs": {bank: {index: hex}}, "quote": base64 of TPMS_ATTEST, "signature": base64 of
TPMT_SIGNATURE}; `pack` writes it. Theirs is the protocol buffer `attest.Attestation` (go-tpm-tools,
proto/attest.proto): an attestation key, quotes of several banks, the firmware's event log and certificates.
Fields of theirs that this package cannot check (instance information, canonical logs, TEE attestations) are
refused, not skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from cloister.crypto import canonical_bytes
from cloister.enclave.eventlog.replay import Pcrs
from cloister.enclave.kinds import tpmwire
from cloister.enclave.kinds.protobuf import fields, one_bytes, one_int
from cloister.errors import InputError

__all__ = ["Quote", "Quotes", "pack", "read_quotes"]

_REGISTERS: Final = 24
_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{2}){32,64}\Z")]
_Index = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])\Z")]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    quote: Annotated[bytes, msgspec.Meta(max_length=1024)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]
    pcrs: Annotated[
        dict[Literal["sha256", "sha384", "sha512"], dict[_Index, _Hex]],
        msgspec.Meta(min_length=1, max_length=3),
    ]


class Quote(NamedTuple):
    """One quote: what was signed, by which signature, and the registers it is said to cover."""

    attest: tpmwire.Attest
    signature: tpmwire.Signature
    pcrs: Pcrs


class Quotes(NamedTuple):
    """All that a document of quotes holds.

    Attributes:
        quotes: at least one.
        ak: TPMT_PUBLIC of the attestation key, where the document has it.
        event_log: likewise.
        ak_cert: the key's certificate, DER, likewise.
        ak_ca: the certificates above it.
    """

    quotes: tuple[Quote, ...]
    ak: bytes | None = None
    event_log: bytes | None = None
    ak_cert: bytes | None = None
    ak_ca: tuple[bytes, ...] = ()


def pack(quote: bytes, signature: bytes, pcrs: Pcrs) -> bytes:
    """Return our document of a quote: the `evidence` of kind "tpm".

    Args:
        quote: TPMS_ATTEST.
        signature: TPMT_SIGNATURE.
        pcrs: the quoted registers, by bank and index.
    """
    registers = {
        bank: {str(index): value.hex() for index, value in values.items()} for bank, values in pcrs.items()
    }
    return canonical_bytes(_Document(quote, signature, registers))  # type: ignore[arg-type]


def read_quotes(data: bytes) -> Quotes:
    """Return the quotes in a document of either form.

    Raises:
        InputError: malformed, or not in the one form that its writer gives it.
    """
    return _ours(data) if data.startswith(b"{") else _theirs(data)


def _ours(data: bytes) -> Quotes:
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"this is not a TPM quote: {error}") from None
    if canonical_bytes(document) != data:
        raise InputError("a TPM quote's document is not in canonical form")
    pcrs: dict[str, Mapping[int, bytes]] = {
        bank: {int(index): bytes.fromhex(value) for index, value in values.items()}
        for bank, values in document.pcrs.items()
    }
    return Quotes((_quote(document.quote, tpmwire.parse_signature(document.signature), pcrs),))


def _theirs(data: bytes) -> Quotes:
    message = fields(data, {1: bytes, 2: bytes, 3: bytes, 6: bytes, 7: bytes})
    quotes = tuple(_their_quote(each) for each in message.get(2, ()) if isinstance(each, bytes))
    if not 1 <= len(quotes) <= len(tpmwire.BANKS):
        raise InputError("an attestation has no quote, or too many", where="quotes")
    return Quotes(
        quotes,
        one_bytes(message.get(1), "ak_pub"),
        one_bytes(message[3], "event_log") if 3 in message else None,
        one_bytes(message[6], "ak_cert") if 6 in message else None,
        tuple(each for each in message.get(7, ()) if isinstance(each, bytes)),
    )


def _their_quote(data: bytes) -> Quote:
    message = fields(data, {1: bytes, 2: bytes, 3: bytes})
    registers = fields(one_bytes(message.get(3), "pcrs"), {1: int, 2: bytes})
    bank = tpmwire.BANKS.get(one_int(registers.get(1), "hash"))
    values: dict[int, bytes] = {}
    for each in registers.get(2, ()):
        entry = fields(each, {1: int, 2: bytes}) if isinstance(each, bytes) else {}
        index = one_int(entry.get(1), "index of a register")
        if index in values or index >= _REGISTERS:
            raise InputError("a register is there twice, or does not exist", where=f"register {index}")
        values[index] = one_bytes(entry.get(2), "value of a register")
    if bank is None:
        raise InputError("an attestation has a bank that is not known", where="hash")
    signature = tpmwire.parse_signature(one_bytes(message.get(2), "raw_sig"))
    return _quote(one_bytes(message.get(1), "quote"), signature, {bank: values})


def _quote(raw: bytes, signature: tpmwire.Signature, pcrs: Mapping[str, Mapping[int, bytes]]) -> Quote:
    """Return a quote whose registers are exactly those it selects."""
    attest = tpmwire.parse_attest(raw)
    if {bank: frozenset(values) for bank, values in pcrs.items()} != {
        bank: frozenset(indices) for bank, indices in attest.selection
    }:
        raise InputError("the registers that are given are not those that were quoted")
    if any(len(value) != tpmwire.SIZES[bank] for bank, values in pcrs.items() for value in values.values()):
        raise InputError("a register has not the length of its bank")
    return Quote(attest, signature, pcrs)
