"""What the proxy shows on `/`: what it verified, in words, for people and (by Accept) for programs.

The page runs no script, loads nothing and names nothing that was asked or answered.
"""

from __future__ import annotations

import html
from datetime import datetime
from typing import Any, Final

from cloister.enclave.claims import VERDICTS, Claims
from cloister.inference.client.verify import Verified

__all__ = ["BEHIND", "CONTENT_SECURITY", "facts", "html_page", "named_model", "vouched"]

CONTENT_SECURITY: Final = (
    b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_SAID: Final = {True: "yes", False: "no", None: "not checked"}
_HARDWARE: Final = (
    "Hardware vouches that the verified software, and no other, holds the keys that requests are sealed to."
)
_ANY_SOFTWARE: Final = (
    "NO KNOWN SOFTWARE: hardware vouches for a machine, and nothing says that its software is one you know: "
    "the evidence matches no reference value. Unless your policy names who signed it, whoever has such a "
    "machine can pass as this service."
)
_SOFTWARE: Final = (
    "NOT HARDWARE-PROTECTED: nothing but software vouches for the service. Whoever runs its machine can read "
    "requests and answers."
)
BEHIND: Final = (
    "The model runs in an engine behind the verified worker, which sees requests in the clear: the evidence "
    "names neither that engine nor its model."
)
"""Of a service that passes requests on."""
_PROTECTIONS: Final = (
    "Each request is sealed on this machine with ML-KEM-768 and X25519 to those keys; the network, the "
    "service's front and its operator's logs see ciphertext of padded size.",
    "Every answer comes through the same exchange and ends with a signed receipt; one that is cut or altered "
    "is refused. There is no way around the exchange.",
    "Not hidden: when requests are made, how large their padded bodies are, how many pieces an answer has.",
)
_RELAYED: Final = "A relay stands in between: the service sees its address in the place of this machine's."
_DIRECT: Final = "The service sees this machine's network address."


def facts(
    service: str,
    relay: str | None,
    verified: Verified | None,
    problem: str,
    counts: dict[str, int],
    readers: list[str],
    receipts: str | None,
) -> dict[str, Any]:
    """Return what there is to show.

    Args:
        service: its address.
        relay: the relay's, if there is one.
        verified: what was verified last.
        problem: why the last attempt to verify anew failed; empty where none did.
        counts: numbers of requests and of receipts that were checked.
        readers: names of those whom answers are sealed to.
        receipts: the file that keeps them.
    """
    found: dict[str, Any] = {
        "service": service,
        "relay": relay,
        "verified": verified is not None,
        "problem": problem or None,
        "sealed_to": readers,
        "receipts": {"checked": counts["receipts"], "file": receipts},
        "requests": counts["requests"],
    }
    if verified is None:
        return found
    keys = verified.keys
    return {
        **found,
        "model": keys.model,
        "model_digest": keys.model_digest,
        "keys": keys.digest.hex(),
        "keys_until": _time(keys.not_after),
        "policy": verified.policy_digest or None,
        "verified_at": _time(verified.at),
        "verify_again": _time(verified.until),
        "protection": verified.protection,
        "protections": [
            vouched(verified.claims),
            *(() if named_model(keys.model_digest) else (BEHIND,)),
            *_PROTECTIONS,
            _DIRECT if relay is None else _RELAYED,
        ],
        "evidence": _claims(verified.claims),
        "devices": [_claims(device) for device in verified.claims.devices],
    }


def named_model(digest: str) -> bool:
    """Tell whether a digest names a model; a service before another engine has none to show."""
    return digest.strip("0") != ""


def vouched(claims: Claims) -> str:
    """Return in a sentence what stands behind evidence that was accepted, and aloud what does not."""
    if claims.software_only:
        return _SOFTWARE
    return _HARDWARE if claims.measurement_match is True else _ANY_SOFTWARE


def html_page(found: dict[str, Any]) -> bytes:
    """Return the page."""
    digest = found.get("model_digest", "")
    rows = [
        ("Service", found["service"]),
        ("Relay", found["relay"] or "none"),
        ("Model", found.get("model", "")),
        ("Model's digest", digest if not digest or named_model(digest) else "none"),
        ("Key set", found.get("keys", "")),
        ("Verified at", found.get("verified_at", "")),
        ("Verified again", found.get("verify_again", "")),
        ("Enclave policy", found.get("policy") or ""),
        ("Answers sealed to", ", ".join(found["sealed_to"]) or "this application"),
        ("Requests", found["requests"]),
        ("Receipts checked", found["receipts"]["checked"]),
        ("Receipts kept in", found["receipts"]["file"] or "not kept"),
    ]
    protections = "".join(f"<li>{_safe(line)}</li>" for line in found.get("protections", ()))
    evidence = "".join(
        f"<h2>{_safe(title)}</h2>{_table(list(claims.items()))}"
        for title, claims in (
            ("Evidence", found.get("evidence", {})),
            *((f"Device {number}", each) for number, each in enumerate(found.get("devices", ()))),
        )
    )
    said = found.get("protections", ())
    good = found["verified"] and _HARDWARE in said and BEHIND not in said
    state = f"Verified: {found.get('protection')}" if found["verified"] else "Not verified"
    problem = f"<p class=bad>{_safe(found['problem'])}</p>" if found["problem"] else ""
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>cloister proxy</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td{{padding:.15rem 1rem .15rem 0;vertical-align:top;overflow-wrap:anywhere}}
td:first-child{{white-space:nowrap;color:#555}}.good{{color:#0a6b2d}}.bad{{color:#a51212}}</style>
<h1>cloister proxy</h1><p class={"good" if good else "bad"}><strong>{_safe(state)}</strong></p>{problem}
{_table(rows)}<h2>What protects a request</h2><ul>{protections}</ul>{evidence}</html>
""".encode()


def _claims(claims: Claims) -> dict[str, str]:
    found: dict[str, str] = {"kind": claims.kind}
    for name in VERDICTS:
        why = claims.reasons.get(name)
        found[name] = _SAID[getattr(claims, name)] + (f" ({why})" if why else "")
    if claims.tcb_status is not None:
        found["tcb_status"] = claims.tcb_status
    return {**found, **claims.measurements, **claims.signers}


def _table(rows: list[tuple[str, Any]]) -> str:
    lines = "".join(f"<tr><td>{_safe(name)}<td>{_safe(value)}" for name, value in rows)
    return f"<table>{lines}</table>"


def _safe(value: object) -> str:
    return html.escape(str(value))


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
