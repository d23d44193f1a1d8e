"""The bytes of an Intel quote: SGX version 3, TDX versions 4 and 5, signed with ECDSA P-256.

Layout: header | body | length | signature, key, quoting enclave's report, its certificates. Source: Intel SGX
ECDSA QuoteLibReference DCAP API rev 1.23, appendix A; Intel TDX DCAP Quoting Library API rev 0.9, appendix A.

Nothing is checked here but the form: fixed fields have their values, lengths fill each other exactly, and
after the quote there are zeros or nothing (guests get it in a buffer of fixed size). The certificates must be
text in the one canonical form, so that no byte of a quote can change without changing what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cloister.enclave.kinds.binding import Cursor
from cloister.errors import InputError

__all__ = ["Quote", "parse_quote"]

_HEADER: Final = 48
_SGX_REPORT: Final = 384
_BODY_SIZES: Final = {2: 584, 3: 648}
"""Of version 5, by type: TD report of TDX 1.0 and of TDX 1.5."""
_ECDSA_P256: Final = 2
_SGX: Final = 0
_TDX: Final = 0x81
_INTEL: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_REPORT: Final = 6
_PCK_CHAIN: Final = 5
_MAX_AUTH: Final = 1024

_TD_FIELDS: Final = (
    ("tee_tcb_svn", 16),
    ("mrseam", 48),
    ("mrsignerseam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mrtd", 48),
    ("mrconfigid", 48),
    ("mrowner", 48),
    ("mrownerconfig", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
_TD15_FIELDS: Final = (("tee_tcb_svn2", 16), ("mrservicetd", 48))
_SGX_FIELDS: Final = (
    ("cpu_svn", 16),
    ("misc_select", 4),
    ("reserved1", 28),
    ("attributes", 16),
    ("mrenclave", 32),
    ("reserved2", 32),
    ("mrsigner", 32),
    ("reserved3", 96),
    ("isv_prod_id", 2),
    ("isv_svn", 2),
    ("reserved4", 60),
    ("report_data", 64),
)


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote in its parts; nothing of it is checked but its form.

    Attributes:
        kind: what produced it.
        version: of the format: 3, 4 or 5.
        exact: the quote without the zeros that may follow it.
        signed: header and body: what `signature` is over.
        fields: of the body, by name.
        signature: r and s, 64 bytes, by `attestation_key`.
        attestation_key: x and y of a point of P-256, 64 bytes.
        qe_report: the quoting enclave's SGX report, 384 bytes.
        qe_fields: of that report, by name.
        qe_signature: over it, 64 bytes, by the PCK certificate's key.
        qe_auth: what the quoting enclave hashed beside the attestation key.
        pck_chain: PEM certificates, the PCK first, the root last.
    """

    kind: Literal["tdx", "sgx"]
    version: int
    exact: bytes
    signed: bytes
    fields: Mapping[str, bytes]
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_fields: Mapping[str, bytes]
    qe_signature: bytes
    qe_auth: bytes
    pck_chain: bytes


def parse_quote(data: bytes) -> Quote:
    """Return the parts of a quote.

    Raises:
        InputError: cut short, with fields that are out of range, or with more after it than zeros.
    """
    cursor = Cursor(data, "the quote")
    version, kind = _header(cursor)
    fields = _body(cursor, version, kind)
    signed = data[: cursor.at]
    authentication = Cursor(cursor.take(cursor.little(4)), "the quote's signature data")
    exact = data[: cursor.at]
    if any(cursor.rest()):
        raise InputError("after the quote's end there is more than zeros")
    signature, key = authentication.take(64), authentication.take(64)
    if version > 3:  # from version 4 on the quoting enclave's report is itself certification data
        authentication = _certification(authentication, _QE_REPORT, "the quoting enclave's report")
    qe_report, qe_signature = authentication.take(_SGX_REPORT), authentication.take(64)
    size = authentication.little(2)
    if size > _MAX_AUTH:
        raise InputError(f"a quote has at most {_MAX_AUTH} bytes of authentication data, not {size}")
    auth = authentication.take(size)
    chain = _certification(authentication, _PCK_CHAIN, "the quote's certificates").rest()
    qe_fields = _split(Cursor(qe_report, "the quoting enclave's report"), _SGX_FIELDS)
    return Quote(
        kind=kind,
        version=version,
        exact=exact,
        signed=signed,
        fields=fields,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_fields=qe_fields,
        qe_signature=qe_signature,
        qe_auth=auth,
        pck_chain=chain,
    )


def _header(cursor: Cursor) -> tuple[int, Literal["tdx", "sgx"]]:
    version, key_type, tee = cursor.little(2), cursor.little(2), cursor.little(4)
    cursor.take(4)  # versions of the quoting and the provisioning enclave, in version 3
    if cursor.take(16) != _INTEL:
        raise InputError("this is not a quote of Intel's quoting enclave")
    cursor.take(20)
    if key_type != _ECDSA_P256:
        raise InputError(f"the quote's key is of type {key_type}; only ECDSA P-256 is known")
    if (version, tee) == (3, _SGX):
        return version, "sgx"
    if version in (4, 5) and tee == _TDX:
        return version, "tdx"
    raise InputError(f"quotes of version {version} for environment {tee:#x} are not known")


def _body(cursor: Cursor, version: int, kind: Literal["tdx", "sgx"]) -> Mapping[str, bytes]:
    if kind == "sgx":
        return _split(cursor, _SGX_FIELDS)
    if version == 4:
        return _split(cursor, _TD_FIELDS)
    body, size = cursor.little(2), cursor.little(4)
    if _BODY_SIZES.get(body) != size:
        raise InputError(f"a quote's body of type {body} and {size} bytes is not known")
    return _split(cursor, _TD_FIELDS + (_TD15_FIELDS if body == 3 else ()))


def _split(cursor: Cursor, fields: tuple[tuple[str, int], ...]) -> Mapping[str, bytes]:
    return {name: cursor.take(size) for name, size in fields}


def _certification(cursor: Cursor, wanted: int, what: str) -> Cursor:
    """Return what certification data of one type holds; it must be the last thing there is."""
    found = cursor.little(2)
    if found != wanted:
        raise InputError(f"certification data of type {found} is not supported where {what} should be")
    inner = Cursor(cursor.take(cursor.little(4)), what)
    cursor.end()
    return inner
