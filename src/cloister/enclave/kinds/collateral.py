"""What Intel publishes about its platforms: TCB info, identity of the quoting enclave, revocation lists.

It travels as an endorsement, in one of two forms:

- `collateral`: the JSON document of Phala's tools and of caching services: `tcb_info`, `qe_identity`, their
  signatures and issuer chains, `root_ca_crl`, `pck_crl` (hexadecimal DER) and its issuer chain;
- pieces: `tcb_info` and `qe_identity` as Intel's service answers them, `tcb_chain` (the PEM chain that signed
  both), `pck_crl` and `root_crl` (DER). The issuers of the lists are those in the quote.

Before anything in it is believed, at the time of appraisal (`stale`, `revoked`):

1. every piece is in force: neither from the future nor expired;
2. Intel signed it: chains to the pinned root, signatures over the exact text;
3. the revocation lists, themselves in force and signed, name none of the certificates in use.

It decides nothing about levels; `dcap-qvl` does that, on collateral that passed all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.enclave.crl import check_crl, load_crl
from cloister.enclave.kinds.binding import ecdsa
from cloister.enclave.roots import INTEL_SGX
from cloister.enclave.x509 import check_chain, load_certificates
from cloister.errors import InputError

__all__ = ["COLLATERAL_NAMES", "Collateral", "load_collateral"]

COLLATERAL_NAMES: Final = frozenset(
    {"collateral", "tcb_info", "qe_identity", "tcb_chain", "pck_crl", "root_crl"}
)
_PIECES: Final = COLLATERAL_NAMES - {"collateral"}
_IDS: Final = {"tdx": ("TDX", "TD_QE"), "sgx": ("SGX", "QE")}
_SIGNER: Final = "Intel SGX TCB Signing"
_T = TypeVar("_T")

_Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-fA-F]{2})+\Z", max_length=1 << 20)]
_Signature = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{128}\Z")]
_Text = Annotated[str, msgspec.Meta(max_length=1 << 20)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pck_crl_issuer_chain: _Text
    root_ca_crl: _Hex
    pck_crl: _Hex
    tcb_info_issuer_chain: _Text
    tcb_info: _Text
    tcb_info_signature: _Signature
    qe_identity_issuer_chain: _Text
    qe_identity: _Text
    qe_identity_signature: _Signature
    pck_certificate_chain: _Text | None = None


class _TcbAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tcbInfo: msgspec.Raw  # noqa: N815 - the name in Intel's answer
    signature: _Signature


class _IdentityAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enclaveIdentity: msgspec.Raw  # noqa: N815 - the name in Intel's answer
    signature: _Signature


class Stated(msgspec.Struct, frozen=True):
    """What both signed documents say of themselves; their levels are read elsewhere."""

    id: Annotated[str, msgspec.Meta(max_length=20)]
    issueDate: datetime  # noqa: N815 - the names in Intel's documents
    nextUpdate: datetime  # noqa: N815
    tcbEvaluationDataNumber: int  # noqa: N815
    fmspc: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{12}\Z")] | None = None
    pceId: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{4}\Z")] | None = None  # noqa: N815


@dataclass(frozen=True, slots=True)
class Signed:
    """One of Intel's signed JSON documents.

    Attributes:
        name: for messages.
        text: exactly what is signed.
        signature: r and s, 64 bytes.
        chain: the signer's certificate first, the root last.
        stated: what the text says of itself.
    """

    name: str
    text: str
    signature: bytes
    chain: tuple[x509.Certificate, ...]
    stated: Stated


@dataclass(frozen=True, slots=True)
class Collateral:
    """Collateral of one platform, in its parts. Nothing in it is believed before it was checked."""

    tcb_info: Signed
    qe_identity: Signed
    pck_crl: x509.CertificateRevocationList
    root_crl: x509.CertificateRevocationList
    pck_crl_chain: tuple[x509.Certificate, ...]

    @property
    def issued(self) -> datetime:
        """When the older of the two documents was issued."""
        return min(self.tcb_info.stated.issueDate, self.qe_identity.stated.issueDate)

    @property
    def expires(self) -> datetime:
        """When the first of its parts is no longer in force."""
        lists = (self.pck_crl.next_update_utc, self.root_crl.next_update_utc)
        dates = (self.tcb_info.stated.nextUpdate, self.qe_identity.stated.nextUpdate, *lists)
        return min(date for date in dates if date is not None)

    def stale(self, at: datetime) -> str:
        """Return what of it is not in force at a time or not signed by Intel, or nothing; steps 1 and 2."""
        return next(iter((*self._out_of_force(at), *self._unsigned(at))), "")

    def revoked(self, chain: Sequence[x509.Certificate], at: datetime, *, signers: bool) -> str:
        """Return why its lists do not clear the certificates in use, or nothing; step 3.

        Args:
            chain: the quote's PCK certificate, its issuer and the root, which the caller has checked.
            at: the time of appraisal.
            signers: whether those who signed the documents are looked up, too: where `stale` is silent.
        """
        found, why = check_crl(self.pck_crl, chain[1], [chain[0]], at=at)
        if not found:
            return why
        issued = [*chain[1:]]
        if signers:
            issued += [self.tcb_info.chain[0], self.qe_identity.chain[0]]
        return check_crl(self.root_crl, chain[-1], issued, at=at)[1]

    def is_for(self, fmspc: bytes, pceid: bytes, kind: Literal["tdx", "sgx"]) -> bool:
        """Tell whether it is about one sort of platform and one kind of quote."""
        stated = self.tcb_info.stated
        named = ((stated.fmspc or "").lower(), (stated.pceId or "").lower())
        ids = (stated.id, self.qe_identity.stated.id)
        return named == (fmspc.hex(), pceid.hex()) and ids == _IDS[kind]

    def _out_of_force(self, at: datetime) -> Iterator[str]:  # 1
        for document in (self.tcb_info, self.qe_identity):
            stated = document.stated
            if at < stated.issueDate:
                yield f"the {document.name} is from the future: issued {_day(stated.issueDate)}"
            if at > stated.nextUpdate:
                yield f"the {document.name} expired at {_day(stated.nextUpdate)}"
        for name, crl in (("PCK", self.pck_crl), ("root", self.root_crl)):
            if at < crl.last_update_utc:
                yield f"the {name} revocation list is from the future: issued {_day(crl.last_update_utc)}"
            if crl.next_update_utc is None or at > crl.next_update_utc:
                yield f"the {name} revocation list has expired"

    def _unsigned(self, at: datetime) -> Iterator[str]:  # 2
        for document in (self.tcb_info, self.qe_identity):
            leaf, *issuers = document.chain
            trusted, why = check_chain(leaf, issuers, pins=INTEL_SGX, at=at)
            if not trusted:
                yield f"the signer of the {document.name}: {why}"
            elif _common_name(leaf) != _SIGNER:
                yield f"the {document.name} is signed by a certificate that may not sign it"
            elif not ecdsa(leaf.public_key(), document.signature, document.text.encode(), size=32):
                yield f"the signature of the {document.name} does not verify"

    def pieces(self) -> tuple[str, bytes, bytes, str, str, bytes, str, str, bytes]:
        """Return it as the arguments of `dcap_qvl.QuoteCollateralV3`, in order."""
        tcb, identity = self.tcb_info, self.qe_identity
        return (
            _pem(self.pck_crl_chain),
            self.root_crl.public_bytes(Encoding.DER),
            self.pck_crl.public_bytes(Encoding.DER),
            _pem(tcb.chain),
            tcb.text,
            tcb.signature,
            _pem(identity.chain),
            identity.text,
            identity.signature,
        )


def load_collateral(
    endorsements: Mapping[str, bytes], quote_chain: Sequence[x509.Certificate]
) -> Collateral | None:
    """Return the collateral among endorsements, or None where there is none.

    Args:
        endorsements: by name, as evidence carries them; other names are passed over.
        quote_chain: the PCK certificate's chain in the quote: the issuers of lists that come in pieces.

    Raises:
        InputError: malformed, in both forms at once, or lacking a piece.
    """
    if "collateral" in endorsements:
        if _PIECES & endorsements.keys():
            raise InputError("collateral comes as one document or in pieces, not both")
        return _from_document(endorsements["collateral"])
    given = _PIECES & endorsements.keys()
    if not given:
        return None
    if missing := _PIECES - given:
        raise InputError(f"collateral in pieces lacks {', '.join(sorted(missing))}", where="endorsements")
    if len(quote_chain) < 2:
        raise InputError("the quote has no chain that could have issued the revocation lists")
    signers = load_certificates(endorsements["tcb_chain"], "tcb_chain")
    tcb = _decode(endorsements["tcb_info"], _TcbAnswer, "tcb_info")
    identity = _decode(endorsements["qe_identity"], _IdentityAnswer, "qe_identity")
    return Collateral(
        tcb_info=_signed("TCB info", bytes(tcb.tcbInfo).decode(), tcb.signature, signers),
        qe_identity=_signed(
            "QE identity", bytes(identity.enclaveIdentity).decode(), identity.signature, signers
        ),
        pck_crl=load_crl(endorsements["pck_crl"], "pck_crl"),
        root_crl=load_crl(endorsements["root_crl"], "root_crl"),
        pck_crl_chain=tuple(quote_chain[1:]),
    )


def _from_document(data: bytes) -> Collateral:
    given = _decode(data, _Document, "collateral")
    tcb_chain = load_certificates(given.tcb_info_issuer_chain.encode(), "tcb_info_issuer_chain")
    qe_chain = load_certificates(given.qe_identity_issuer_chain.encode(), "qe_identity_issuer_chain")
    crl_chain = load_certificates(given.pck_crl_issuer_chain.encode(), "pck_crl_issuer_chain")
    return Collateral(
        tcb_info=_signed("TCB info", given.tcb_info, given.tcb_info_signature, tcb_chain),
        qe_identity=_signed("QE identity", given.qe_identity, given.qe_identity_signature, qe_chain),
        pck_crl=load_crl(bytes.fromhex(given.pck_crl), "pck_crl"),
        root_crl=load_crl(bytes.fromhex(given.root_ca_crl), "root_ca_crl"),
        pck_crl_chain=crl_chain,
    )


def _signed(name: str, text: str, signature: str, chain: tuple[x509.Certificate, ...]) -> Signed:
    stated = _decode(text.encode(), Stated, name)
    if stated.issueDate.tzinfo is None or stated.nextUpdate.tzinfo is None:
        raise InputError("a date has no time zone", where=name)
    return Signed(name, text, bytes.fromhex(signature), chain, stated)


def _decode(data: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"it is not what Intel publishes: {error}", where=name) from None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _pem(chain: Sequence[x509.Certificate]) -> str:
    return b"".join(each.public_bytes(Encoding.PEM) for each in chain).decode()


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
