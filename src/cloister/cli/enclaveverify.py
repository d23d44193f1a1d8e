"""`cloister enclave verify` and `pack`: what evidence shows, and whether a policy accepts it.

Offline: everything that is needed travels with the evidence. The time is that of `--at`; without it, now.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.cli.enclavewords import in_words
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.enclave.appraise import Appraisal
    from cloister.enclave.policy import Policies

__all__ = ["PURPOSE", "NonceOption", "PurposeOption", "nonce_bytes", "pack", "verify"]

PURPOSE: Final = "cloister/attest/v1"
"""What evidence is for that a person asks for."""
_REFUSED: Final = 1
_MAX_POLICY: Final = 1 << 20

NonceOption = Annotated[
    str | None, typer.Option("--nonce", metavar="HEX", help="The verifier's own fresh bytes, 16 to 64.")
]
PurposeOption = Annotated[str, typer.Option("--purpose", help="What the evidence is for.")]


def verify(
    evidence: Annotated[Path, typer.Argument(metavar="EVIDENCE", help="What `attest` or `pack` wrote.")],
    policy: Annotated[
        list[Path] | None,
        typer.Option(
            "--policy",
            metavar="P.toml",
            help="What is accepted; more than one only tightens. Without it: sound, fresh hardware.",
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="RFC 3339, such as 2026-11-01T00:00:00Z.")
    ] = None,
    nonce: NonceOption = None,
    purpose: PurposeOption = PURPOSE,
    key: Annotated[
        str | None,
        typer.Option("--key-digest", metavar="HEX", help="SHA-256 of the key that the evidence vouches for."),
    ] = None,
    raw_nonce: Annotated[
        bool, typer.Option("--raw-nonce", help="The evidence carries the nonce as it is: another tool's.")
    ] = False,
    token: Annotated[
        Path | None, typer.Option("--token", metavar="FILE", help="Write a signed token of the result.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Appraise evidence offline: named claims, and whether the policy accepts it. Exit 1 where not."""
    from cloister.enclave.appraise import judge
    from cloister.enclave.evidence import MAX_EVIDENCE, Evidence
    from cloister.files import read_bytes, write_atomic

    document = Evidence.from_json(read_bytes(evidence, limit=MAX_EVIDENCE, what="evidence"))
    expected = _expected(nonce, purpose, key, raw=raw_nonce)
    verdict = judge(document, _policies(policy or []), at=_time(at), expected=expected)
    if token is not None:
        from cloister.enclave.token import issue_token

        write_atomic(token, issue_token(verdict, common.load_identity()))
    emit(_as_json(verdict), as_json=as_json, text=in_words(verdict))
    if not verdict.accepted:
        raise typer.Exit(_REFUSED)


def pack(
    kind: Annotated[str, typer.Argument(help="snp, tdx, sgx, tpm, nitro, nvidia-gpu, ...")],
    report: Annotated[Path, typer.Argument(metavar="FILE", help="The report, quote or document itself.")],
    out: Annotated[Path, typer.Option("--out", help="Where the evidence goes.")],
    endorse: Annotated[
        list[str] | None,
        typer.Option("--endorse", metavar="NAME=FILE", help="A certificate or collateral, by name."),
    ] = None,
    event_log: Annotated[Path | None, typer.Option("--event-log", metavar="FILE")] = None,
    runtime_data: Annotated[Path | None, typer.Option("--runtime-data", metavar="FILE")] = None,
    device: Annotated[
        list[Path] | None, typer.Option("--device", metavar="EVIDENCE", help="Evidence of a device.")
    ] = None,
) -> None:
    """Put what another tool collected into one document of evidence."""
    from cloister.enclave.evidence import KINDS, MAX_EVIDENCE, Evidence
    from cloister.files import read_bytes, write_atomic

    if kind not in KINDS:
        raise InputError(f"there is no kind of evidence {kind!r}", fix=f"Choose one of {', '.join(KINDS)}")

    def part(path: Path) -> bytes:
        return read_bytes(path, limit=MAX_EVIDENCE, what="part of the evidence")

    packed = Evidence(
        kind,
        part(report),
        dict(_named(text, part) for text in endorse or []),
        None if event_log is None else part(event_log),
        None if runtime_data is None else part(runtime_data),
        tuple(Evidence.from_json(part(path)) for path in device or []),
    )
    write_atomic(out, packed.to_json())
    common.say(f"Wrote {out}. Appraise it with: cloister enclave verify {out}")


def _named(text: str, read: Any) -> tuple[str, bytes]:
    name, found, path = text.partition("=")
    if not found or not name or not path:
        raise InputError(f"{text!r} is not NAME=FILE", fix="Write such as --endorse vcek=vcek.der")
    return name, read(Path(path))


def nonce_bytes(text: str | None) -> bytes:
    """Return the bytes of a nonce on the command line; none for None. Raises InputError, also where it is
    given and empty: a variable that is not set must not ask for nothing."""
    if text is not None and not text.strip():
        raise InputError("the nonce is empty", where="--nonce", fix="Give 16 to 64 bytes in hexadecimal")
    try:
        return bytes.fromhex(text or "")
    except ValueError:
        raise InputError("the nonce is not hexadecimal", fix="Give 16 to 64 bytes in hexadecimal") from None


def _expected(nonce: str | None, purpose: str, key: str | None, *, raw: bool) -> bytes | None:
    """Return what the evidence must carry; None where nobody asked for anything."""
    from cloister.enclave.evidence import report_data

    asked = nonce_bytes(nonce)
    if raw or not asked:
        return asked or None
    try:
        digest = bytes.fromhex(key) if key else bytes(32)
    except ValueError:
        raise InputError("the key digest is not hexadecimal", fix="Give 64 hexadecimal digits") from None
    return report_data(purpose, asked, digest)


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is not a time", fix="Write such as 2026-11-01T00:00:00Z") from None
    if found.tzinfo is None:
        raise InputError(f"{text!r} has no zone", fix="Add Z for UTC")
    return found


def _policies(paths: list[Path]) -> Policies:
    from cloister.enclave.policy import EnclavePolicy, Policies
    from cloister.enclave.policyfile import read_enclave_policy
    from cloister.files import read_bytes

    parts = [
        read_enclave_policy(read_bytes(path, limit=_MAX_POLICY, what="enclave policy")) for path in paths
    ]
    return Policies(tuple(parts) or (EnclavePolicy(),))


def _as_json(verdict: Appraisal) -> dict[str, Any]:
    """Return the named claims at the top level, and the verdict beside them."""
    import msgspec

    claims: dict[str, Any] = msgspec.to_builtins(verdict.claims)
    why = claims.pop("reasons")
    return {
        "accepted": verdict.accepted,
        "refused_because": list(verdict.reasons),
        "protection": verdict.protection,
        "at": verdict.at.isoformat(),
        "policy": verdict.policy,
        "evidence": verdict.evidence.hex(),
        **claims,
        "why": why,
    }
