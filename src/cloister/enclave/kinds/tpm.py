"""Evidence of a TPM 2.0: quotes of its registers, and the event logs that replay to them.

`evidence` is our attester's document or a go-tpm-tools attestation (`tpmquote`). Endorsements:

- `ak`: the attestation key, TPMT_PUBLIC or SubjectPublicKeyInfo in DER; needed where the document has none;
- `parent`: TPMT_PUBLIC of a primary key of the endorsement hierarchy that the AK is below, if it is;
- `ak_cert` and `ak_ca`: a certificate of the AK, as clouds issue, and those above it, the root last;
- `ek_cert`, `ek_ca` and `activation`: the EK's certificate, those above it, and a verifier's statement that
  AK and EK are in one TPM (`activation`);
- `software`: text; the TPM is a program (swtpm), and nothing of this is protected by hardware.

Steps:
1. signature: every quote verifies under the AK;
2. bindings: the AK is a restricted signing key of its TPM and is the one the quotes name; registers are those
   that were signed; all quotes are of one start and answer one nonce;
3. chain: AK or EK to a pinned root; hardware_rooted: EK chain, no cloud's virtual TPM, and activation stated
   by a trusted verifier;
4. freshness: qualifyingData is what the verifier asked for, its first 32 bytes where it has 32;
5. event_log: replays (`eventlog.replay`); entries of a start log become measurements "start:NAME", and make
   self_reported true: user space measured itself.

Registers of SHA-1 are verified but not reported. There is no verdict on a TPM's firmware: tcb_status is null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cloister.crypto import constant_time_equal
from cloister.enclave.claims import Claims
from cloister.enclave.eventlog.replay import Pcrs, Replayed, replays
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds import tpmwire
from cloister.enclave.kinds.binding import carries
from cloister.enclave.kinds.tpmquote import Quote, Quotes, read_quotes
from cloister.enclave.kinds.tpmroots import NOBODY, TpmTrust, Verdict, chain_and_hardware, platform
from cloister.errors import InputError

__all__ = [
    "UNAUTHENTICATED",
    "event_log_claim",
    "pcr_digest_holds",
    "registers",
    "verify",
]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""Ranges of a document that no signature covers: none of its own. In event logs there are such ranges, which
depend on the log: `eventlog.tcg.TcgLog.unauthenticated` lists them. Certificates without a chain count for
nothing, whatever is in them."""

_ENDORSEMENTS: Final = frozenset(
    {"ak", "parent", "ak_cert", "ak_ca", "ek_cert", "ek_ca", "activation", "software"}
)
_PREFERRED: Final = ("sha256", "sha384", "sha512")


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None, trust: TpmTrust = NOBODY) -> Claims:
    """Return what a TPM's evidence shows.

    Args:
        evidence: of kind "tpm", as the module says.
        at: the time of appraisal, with a time zone.
        expected: the 64 bytes the verifier asked for, or a raw nonce; None where nobody asked.
        trust: further makers' roots, and verifiers of activation.

    Raises:
        InputError: malformed, an endorsement that is not known, or no attestation key.
    """
    _refuse_strangers(evidence)
    quotes = read_quotes(evidence.evidence)
    ak, area = _attestation_key(evidence.endorsements, quotes)
    log = evidence.event_log if evidence.event_log is not None else quotes.event_log
    first = quotes.quotes[0].attest
    pcrs = _together(quotes)
    replayed = replays(log, pcrs) if log is not None else None
    signed = all(each.signature.verifies(ak, each.attest.raw) for each in quotes.quotes)
    bindings = _bindings(quotes, area, evidence.endorsements.get("parent"))
    chain, rooted = chain_and_hardware(evidence.endorsements, quotes, ak, area, at=at, trust=trust)
    if rooted[0] and not (signed and bindings[0]):
        rooted = False, "signature or bindings do not hold"
    verdicts: dict[str, Verdict] = {
        "signature": (signed, "" if signed else "a quote is not signed by the attestation key"),
        "bindings": bindings,
        "chain": chain,
        "hardware_rooted": rooted,
        "freshness": _freshness(first.extra, expected),
        "event_log": event_log_claim(replayed),
    }
    found: dict[str, Any] = {claim: verdict for claim, (verdict, _) in verdicts.items()}
    return Claims(
        kind="tpm",
        self_reported="software" in evidence.endorsements or (replayed is not None and replayed.own),
        measurements={**registers(pcrs), **_started(replayed)},
        platform=platform(evidence.endorsements, chain[0]),
        properties={
            "tpm_firmware": f"{first.firmware:016x}",
            "tpm_resets": str(first.resets[0]),
            "tpm_restarts": str(first.resets[1]),
        },
        reasons={claim: reason for claim, (_, reason) in verdicts.items() if reason},
        **found,
    )


def registers(pcrs: Pcrs) -> dict[str, str]:
    """Return measurements "pcr0" and so on of the first bank there is among SHA-256, -384 and -512."""
    bank = next((bank for bank in _PREFERRED if bank in pcrs), None)
    values = pcrs[bank] if bank else {}
    return {f"pcr{index}": values[index].hex() for index in sorted(values)}


def pcr_digest_holds(quote: Quote) -> bool:
    """Tell whether the registers of a quote are those whose digest was signed."""
    values = b"".join(quote.pcrs[bank][index] for bank, chosen in quote.attest.selection for index in chosen)
    return constant_time_equal(hashlib.new(quote.signature.hash, values).digest(), quote.attest.digest)


def event_log_claim(replayed: Replayed | None) -> Verdict:
    """Return the claim "event_log" with its reason."""
    return (None, "no event log was given") if replayed is None else (replayed.holds, replayed.reason)


def _refuse_strangers(evidence: Evidence) -> None:
    unknown = sorted(set(evidence.endorsements) - _ENDORSEMENTS)
    if unknown:
        raise InputError("evidence of a TPM has an endorsement that is not known", where=unknown[0])
    if evidence.runtime_data is not None:
        raise InputError("evidence of a TPM has no runtime data", where="runtime_data")


def _attestation_key(
    endorsements: Mapping[str, bytes], quotes: Quotes
) -> tuple[tpmwire.PublicKey, tpmwire.PublicArea | None]:
    given = endorsements.get("ak")
    if given is not None and quotes.ak is not None and given != quotes.ak:
        raise InputError("there are two attestation keys", where="ak")
    data = given if given is not None else quotes.ak
    if data is None:
        raise InputError(
            "a TPM quote comes without its attestation key", where="ak", fix="Send the key along"
        )
    if data.startswith(b"\x30"):
        return tpmwire.load_spki(data), None
    area = tpmwire.parse_public(data)
    return area.key, area


def _together(quotes: Quotes) -> Pcrs:
    """Return the registers of all quotes; each bank is quoted once, and SHA-1 is not the only one."""
    pcrs: dict[str, Mapping[int, bytes]] = {}
    for each in quotes.quotes:
        if set(each.pcrs) & set(pcrs):
            raise InputError("two quotes are of one bank")
        pcrs.update(each.pcrs)
    if not set(pcrs) & set(_PREFERRED):
        raise InputError("only registers of SHA-1 were quoted", fix="Quote those of SHA-256")
    return pcrs


def _bindings(quotes: Quotes, area: tpmwire.PublicArea | None, parent: bytes | None) -> Verdict:
    first = quotes.quotes[0].attest
    if not all(pcr_digest_holds(each) for each in quotes.quotes):
        return False, "the registers are not those that were signed"
    for each in quotes.quotes[1:]:
        other = each.attest
        if (other.extra, other.resets, other.signer) != (first.extra, first.resets, first.signer):
            return False, "the quotes are not of one key, one start and one nonce"
    if area is None:
        return True, ""
    if not area.restricted:
        return False, "the attestation key is not a restricted signing key that stays in its TPM"
    if not any(constant_time_equal(first.signer, name) for name in _possible_names(area, parent)):
        return False, "the quote names another key"
    return True, ""


def _possible_names(area: tpmwire.PublicArea, parent: bytes | None) -> list[bytes]:
    """Return the qualified names the key can have: as a primary key, or below the parent that is given."""
    above = [handle.to_bytes(4) for handle in tpmwire.HIERARCHIES.values()]
    if parent is not None:
        name = tpmwire.parse_public(parent).name
        above += [tpmwire.qualified_name(handle, name) for handle in list(above)]
    return [tpmwire.qualified_name(each, area.name) for each in above]


def _freshness(extra: bytes, expected: bytes | None) -> Verdict:
    fresh = carries(extra, expected)
    if fresh is None:
        return None, "nobody asked for a nonce"
    return fresh, "" if fresh else "qualifyingData is not what was asked for"


def _started(replayed: Replayed | None) -> dict[str, str]:
    return {f"start:{name}": digest for name, digest in (replayed.start if replayed else {}).items()}
