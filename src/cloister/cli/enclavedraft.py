"""`cloister enclave policy draft`: a first policy for a service or a machine, from what it shows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.common import say
from cloister.cli.enclavewords import in_words
from cloister.cli.serviceoptions import CaOption, RelayOption, in_reach, tls_of
from cloister.errors import InputError
from cloister.text import printable

if TYPE_CHECKING:
    from cloister.enclave.appraise import Appraisal
    from cloister.enclave.evidence import Evidence

__all__ = ["draft"]

_REFUSED = 1


def draft(
    source: Annotated[
        str, typer.Argument(metavar="URL|EVIDENCE", help="A service, or a file that `attest` wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="P.toml", help="Where it goes; printed without it.")
    ] = None,
    relay: RelayOption = None,
    tls_ca: CaOption = None,
) -> None:
    """Draft a policy that accepts what a service shows now, to be compared, edited and signed.

    It says what there is, not that it is what you want: compare the values with what the operator
    publishes, or with a build of your own. Exit 1 where the service is refused even so.
    """
    from cloister.enclave.appraise import judge
    from cloister.enclave.policy import EnclavePolicy, Policies
    from cloister.enclave.policydraft import draft_text, drafted
    from cloister.files import write_atomic

    if out is not None and out.exists():
        raise InputError("the target exists", where=str(out), fix="Choose another one with --out")
    now = datetime.now(UTC)
    expected: bytes | None
    if source.startswith(("http://", "https://")):
        evidence, expected, notes = _of_service(source, relay, tls_ca)
    else:
        evidence, expected, notes = _of_file(Path(source))

    def verdict_of(policy: EnclavePolicy) -> Appraisal:
        return judge(evidence, Policies((policy,)), at=now, expected=expected)

    shown = verdict_of(EnclavePolicy())
    policy = drafted(shown.claims, f"as seen {now:%Y-%m-%d}")
    # a file answers nobody's nonce, which is no reason to draft anything wider
    left = [each for each in verdict_of(policy).reasons if expected or not each.startswith("freshness")]
    notes = [
        f"Drafted on {now:%Y-%m-%d} from what {notes[0]} showed.",
        "It accepts that, and as little else as can be said.",
        "Nothing says yet that it is what you want: compare the values with what its operator publishes,",
        "or with a build of your own. Then use it with --policy; or put it into policy/enclave.toml of your",
        "home and sign it with `cloister enclave policy sign`. After each update of the service, draft anew.",
        *notes[1:],
        *(f"STILL REFUSED, and rightly so until you know why: {each}" for each in left),
    ]
    text = draft_text(policy, [_line(each) for each in notes])
    say(in_words(shown).replace("REFUSED", "Without a policy of yours: REFUSED", 1))
    if out is None:
        print(text, end="")
    else:
        write_atomic(out, text.encode(), replace=False)
        say(f"Wrote {out}. Compare its values; then use it with --policy {out}.")
    if left:
        say(f"The draft refuses it still: {'; '.join(map(_line, left))}")
        raise typer.Exit(_REFUSED)


def _of_service(url: str, relay: str | None, tls_ca: Path | None) -> tuple[Evidence, bytes, list[str]]:
    """Ask a service for fresh evidence. Nothing is sent to it but a nonce, and nothing is trusted yet."""
    from cloister.enclave.appraise import appraise
    from cloister.enclave.claims import Claims
    from cloister.inference.client import PrivateClient
    from cloister.inference.client.verify import Verifier

    seen: list[tuple[Evidence, bytes]] = []

    def look(evidence: Evidence, at: datetime, expected: bytes | None) -> tuple[Claims, list[str]]:
        assert expected is not None  # noqa: S101  # a verifier of services always asks
        seen.append((evidence, expected))
        return appraise(evidence, at=at, expected=expected), []

    with (
        PrivateClient(url, Verifier(look), relay=relay, verify=tls_of(tls_ca)) as client,
        in_reach(relay or url),
    ):
        keys = client.attest().keys
    ((evidence, expected),) = seen
    return evidence, expected, [
        url,
        f"It serves {keys.model}: pin that with --model-digest {keys.model_digest}.",
    ]  # fmt: skip


def _of_file(path: Path) -> tuple[Evidence, None, list[str]]:
    from cloister.enclave.evidence import MAX_EVIDENCE, Evidence
    from cloister.files import read_bytes

    return Evidence.from_json(read_bytes(path, limit=MAX_EVIDENCE, what="evidence")), None, [str(path)]


def _line(text: str) -> str:
    """Return text that may hold somebody else's words as one line."""
    return printable(text[:2000])
