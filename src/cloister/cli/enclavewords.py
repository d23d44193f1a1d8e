"""What an appraisal looks like to people: the verdict first, then each claim, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cloister.enclave.appraise import Appraisal
    from cloister.enclave.claims import Claims

__all__ = ["in_words"]

_QUESTIONS: Final = {
    "signature": "signature verifies",
    "chain": "chain leads to a pinned root",
    "revocation_checked": "revocation lists checked",
    "collateral_fresh": "collateral in force",
    "tcb_consistent": "versions are the certificate's",
    "debug": "owner may look inside",
    "freshness": "carries what was asked",
    "bindings": "parts belong together",
    "event_log": "event log replays",
    "measurement_match": "measurement is a known one",
    "hardware_rooted": "rooted in hardware",
    "self_reported": "measured itself",
}
_SAID: Final = {True: "yes", False: "no", None: "not checked"}
_WIDTH: Final = max(map(len, _QUESTIONS.values()))
_DIGITS: Final = 32


def in_words(verdict: Appraisal) -> str:
    """Return the verdict, the claims of the machine and its devices, and the reasons."""
    lines = ["accepted" if verdict.accepted else "REFUSED"]
    lines += [f"  because {reason}" for reason in verdict.reasons]
    if verdict.claims.software_only:
        lines.append("NOT HARDWARE-PROTECTED: nothing but software vouches for this.")
    lines += ["", *_claims(verdict.claims)]
    for index, device in enumerate(verdict.claims.devices):
        lines += ["", f"device {index}", *_claims(device)]
    return "\n".join(lines)


def _claims(claims: Claims) -> list[str]:
    lines = [f"  {'kind':{_WIDTH}}  {claims.kind}"]
    for name, question in _QUESTIONS.items():
        value = getattr(claims, name)
        why = claims.reasons.get(name)
        lines.append(f"  {question:{_WIDTH}}  {_SAID[value]}{f' ({why})' if why else ''}")
    if claims.tcb_status is not None:
        lines.append(f"  {'maker says of the firmware':{_WIDTH}}  {claims.tcb_status}")
    if claims.advisories:
        lines.append(f"  {'advisories':{_WIDTH}}  {', '.join(claims.advisories)}")
    # registers that nothing was measured into say nothing
    told = {
        name: value
        for name, value in claims.measurements.items()
        if len(set(value)) > 1 and name not in claims.signers
    }
    lines += [f"  {name:{_WIDTH}}  {_short(value)}" for name, value in told.items()]
    lines += [f"  {name:{_WIDTH}}  {_short(value)}" for name, value in claims.signers.items()]
    if claims.platform:
        lines.append(f"  {'platform':{_WIDTH}}  {_short(claims.platform)}")
    return lines


def _short(value: str) -> str:
    return value if len(value) <= _DIGITS else f"{value[:_DIGITS]}..."
