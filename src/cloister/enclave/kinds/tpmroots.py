"""What vouches for a TPM: certificates of its keys, credential activation, or nothing.

A TPM's maker certifies its endorsement key (EK); a cloud certifies the attestation keys (AK) of the virtual
TPMs that its own software makes. Only the first is hardware, and only with a verifier's statement that the AK
that signed is in the TPM of that EK. No TPM maker's root is pinned in this package: an appraiser names those
it believes (`TpmTrust`). A software TPM has nobody who vouches for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.crypto import VerifyKey
from cloister.enclave.kinds import tpmwire
from cloister.enclave.kinds.activation import is_activated, key_digest
from cloister.enclave.kinds.tpmquote import Quotes
from cloister.enclave.roots import GCP_EK_AK
from cloister.enclave.x509 import check_chain, fingerprint, load_certificate, load_certificates

__all__ = ["NOBODY", "TpmTrust", "Verdict", "chain_and_hardware", "platform"]

_ALTERNATIVE_NAME: Final = "2.5.29.17"  # critical in AK and EK certificates: names the TPM's maker and model
Verdict = tuple[bool | None, str]
"""A claim's value and, where it is not true, why."""


@dataclass(frozen=True)
class TpmTrust:
    """Whom an appraiser believes about TPMs, beside the roots that are pinned in `roots`.

    Attributes:
        makers: SHA-256 (hexadecimal) of the DER of TPM makers' root certificates, with a name.
        verifiers: keys, by fingerprint, of those whose statements of credential activation count.
    """

    makers: Mapping[str, str] = field(default_factory=dict)
    verifiers: Mapping[str, VerifyKey] = field(default_factory=dict)


NOBODY: Final = TpmTrust()


def chain_and_hardware(
    endorsements: Mapping[str, bytes],
    quotes: Quotes,
    ak: tpmwire.PublicKey,
    area: tpmwire.PublicArea | None,
    *,
    at: datetime,
    trust: TpmTrust,
) -> tuple[Verdict, Verdict]:
    """Return the verdicts on chain and on hardware.

    Args:
        endorsements: of the evidence.
        quotes: its document, which may hold certificates of its own.
        ak: the key that signed.
        area: its public area, where that was given.
        at: the time of appraisal.
        trust: whom the appraiser believes.

    Raises:
        InputError: a certificate cannot be read.
    """
    pins = {**GCP_EK_AK, **trust.makers}
    chain: Verdict = None, "no certificate of the attestation or endorsement key was given"
    activated: Verdict = None, "no endorsement key with a chain and credential activation"
    if "ek_cert" in endorsements:
        leaf = load_certificate(endorsements["ek_cert"], "ek_cert")
        chain = _chain(leaf, _above(endorsements.get("ek_ca"), (), "ek_ca"), pins, at)
        activated = _activated(endorsements, leaf, area, at, trust) if chain[0] else chain
    ak_cert = endorsements.get("ak_cert", quotes.ak_cert)
    if ak_cert is not None:
        leaf = load_certificate(ak_cert, "ak_cert")
        own = _chain(leaf, _above(endorsements.get("ak_ca"), quotes.ak_ca, "ak_ca"), pins, at)
        if own[0] and leaf.public_key() != ak:
            own = False, "the certificate is of another key than the one that signed"
        chain = own if chain[0] is not False else chain
        if own[0] and activated[0] is None:
            activated = False, "a virtual TPM, which the cloud's own software makes"
    elif chain[0] and activated[0] is not True:
        chain = None, "the endorsement key has a chain, and nothing shows that the attestation key is with it"
    if "software" in endorsements:
        activated = False, "a software TPM (swtpm)"
    return chain, activated


def _above(given: bytes | None, inside: tuple[bytes, ...], name: str) -> list[x509.Certificate]:
    if given is not None:
        return list(load_certificates(given, name))
    return [load_certificate(each, name) for each in inside]


def _chain(
    leaf: x509.Certificate, above: list[x509.Certificate], pins: Mapping[str, str], at: datetime
) -> Verdict:
    if not above:
        return False, "the certificates above the key's own were not given"
    return check_chain(leaf, above, pins=pins, at=at, critical=(_ALTERNATIVE_NAME,))


def _activated(
    endorsements: Mapping[str, bytes],
    leaf: x509.Certificate,
    area: tpmwire.PublicArea | None,
    at: datetime,
    trust: TpmTrust,
) -> Verdict:
    """Return whether AK and EK are in one TPM of a maker that the appraiser trusts."""
    above = load_certificates(endorsements["ek_ca"], "ek_ca")
    if fingerprint(above[-1]) in GCP_EK_AK:
        return False, "a virtual TPM, which the cloud's own software makes"
    if area is None or "activation" not in endorsements:
        return None, "nobody states that the attestation key was activated with the endorsement key"
    ek = tpmwire.accepted(leaf.public_key())
    return is_activated(endorsements["activation"], trust.verifiers, ak_name=area.name, ek=ek, at=at)


def platform(endorsements: Mapping[str, bytes], chain: bool | None) -> str | None:
    """Return a digest of the endorsement key, if its certificate holds."""
    if not chain or "ek_cert" not in endorsements:
        return None
    leaf = load_certificate(endorsements["ek_cert"], "ek_cert")
    return key_digest(tpmwire.accepted(leaf.public_key()))
