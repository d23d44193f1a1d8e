"""Approvals: what an owner decides by hand, one plan at a time.

One file for each plan that was asked about, APPROVALS/DIGEST.json: canonical JSON with the plan itself, who
sent it, why it is asked about, and the owner's signed decision once there is one. The plan is kept so that
what the owner reads is what the owner approves: its digest is calculated anew whenever the file is read.

Invariants:
- an approval is the owner's signature over one plan digest; it says nothing about any other plan;
- a file that is not as it was written refuses by an error: another digest, another signer, no canonical form;
- the first request for a plan counts; a repeated one changes nothing, whatever was decided;
- a hub can have `MAX_OF_HUB` plans waiting, all hubs together `MAX_PENDING`; more are refused, so a hub that
  invites without end fills neither the disk nor the owner's list;
- approval by hand is for what the policy asks about: what it refuses stays refused. A refusal by hand holds
  whatever the policy says.

Two processes may work in the folder; each change is made under a lock. What it does not do: who can write to
the folder can put back an earlier decision of the owner, or remove one, and then it is asked for again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import (
    Identity,
    PublicIdentity,
    canonical_bytes,
    keyring,
    open_envelope,
    sign_envelope,
)
from cloister.errors import InputError, IntegrityError, PolicyRefused, StorageError
from cloister.files import exclusive, read_bytes, write_atomic
from cloister.learning import MAX_PLAN_BYTES, Plan, parse_plan
from cloister.learning.privacy import PrivacyFacts
from cloister.runtime.sitepolicy import Decision, SitePolicy, decide

__all__ = ["APPROVAL_TYPE", "MAX_OF_HUB", "MAX_PENDING", "Approvals", "Asked", "State", "admit", "settle"]

APPROVAL_TYPE: Final = "application/vnd.cloister.plan-approval+json"
MAX_PENDING: Final = 32
MAX_OF_HUB: Final = 8
_SHORTEST_PREFIX: Final = 8
_MAX_FILE: Final = 3 * MAX_PLAN_BYTES
_MAX_REASONS: Final = 50
_MAX_REASON: Final = 500
_NAME: Final = re.compile(r"[0-9a-f]{64}\.json\Z", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9a-f]{1,64}\Z", re.ASCII)

State = Literal["pending", "approved", "refused"]

_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Reason = Annotated[str, msgspec.Meta(max_length=_MAX_REASON)]


class _Decided(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner signs."""

    plan: _Hex
    state: Literal["approved", "refused"]


class _File(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/asked/v1", tag_field="type"
):
    plan: Annotated[str, msgspec.Meta(max_length=MAX_PLAN_BYTES)]
    hub: str
    reasons: Annotated[tuple[_Reason, ...], msgspec.Meta(max_length=_MAX_REASONS)]
    decision: bytes | None


@dataclass(frozen=True)
class Asked:
    """A plan that was asked about.

    Attributes:
        plan: the plan.
        hub: fingerprint of the hub that sent it; the one the plan names.
        reasons: why it is asked about.
        state: what its owner decided.
    """

    plan: Plan
    hub: str
    reasons: tuple[str, ...]
    state: State

    @property
    def digest(self) -> str:
        """The plan's digest, hex."""
        return self.plan.digest.hex()


class Approvals:
    """The requests and decisions of one owner.

    Args:
        folder: APPROVALS; made where missing.
        owner: whose signature decides.
    """

    def __init__(self, folder: Path, owner: PublicIdentity) -> None:
        self.folder: Final = folder
        self._owner = owner

    def request(self, plan: Plan, hub: PublicIdentity, reasons: Sequence[str]) -> State:
        """Ask the owner about a plan, unless that was done; return what is decided.

        Raises:
            PolicyRefused: too many plans wait for a decision.
            InputError: another hub than the plan's, or a plan that no file can hold.
            IntegrityError: a file in the folder is not as it was written.
            StorageError: the file system refused.
        """
        if hub.fingerprint != plan.hub.identity:
            raise InputError("a plan is asked about for the hub it names", fix="Refuse the invitation")
        digest, text = plan.digest.hex(), plan.to_toml()
        if (
            parse_plan(text.encode()).digest != plan.digest
        ):  # else its own file would be refused when it is read
            raise InputError(
                "the plan cannot be written down", where=plan.study.name, fix="Refuse the invitation"
            )
        with self._locked():
            if self._path(digest).exists():
                return self._read(digest).state
            waiting = Counter(asked.hub for asked in self.list() if asked.state == "pending")
            if waiting[hub.fingerprint] >= MAX_OF_HUB or waiting.total() >= MAX_PENDING:
                raise PolicyRefused(
                    f"{waiting[hub.fingerprint]} plans of {hub.name} wait for a decision, "
                    f"{waiting.total()} in all",
                    where=str(self.folder),
                    fix="Decide on them: `cloister site approvals ls`",
                )
            short = tuple(reason[:_MAX_REASON] for reason in reasons[:_MAX_REASONS])
            self._write(digest, _File(text, hub.fingerprint, short, None))
        return "pending"

    def list(self) -> tuple[Asked, ...]:
        """Return every plan that was asked about, those that wait first, then by study and digest.

        Raises:
            IntegrityError: a file is not as it was written.
        """
        asked = (self._read(digest) for digest in self._digests())
        return tuple(
            sorted(asked, key=lambda each: (each.state != "pending", each.plan.study.name, each.digest))
        )

    def get(self, prefix: str) -> Asked:
        """Return the plan whose digest begins so. Raises InputError where none does, or several do."""
        return self._read(self._find(prefix))

    def approve(self, prefix: str, signer: Identity) -> Asked:
        """Approve one plan; the last decision counts.

        Args:
            prefix: at least 8 digits of the plan's digest.
            signer: the owner.

        Raises:
            InputError: no such plan, several, or the signer is not the owner.
            IntegrityError: the file is not as it was written.
            StorageError: it cannot be written; nothing is decided.
        """
        return self._decide(prefix, signer, "approved")

    def refuse(self, prefix: str, signer: Identity) -> Asked:
        """Refuse one plan; as `approve`."""
        return self._decide(prefix, signer, "refused")

    def state(self, plan_digest: bytes) -> State | None:
        """Return what is decided about a plan, None where nobody asked.

        Raises:
            IntegrityError: the file is not as it was written, or not signed by the owner.
        """
        digest = plan_digest.hex()
        return self._read(digest).state if self._path(digest).exists() else None

    # --- inside -----------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder: {error.strerror}", where=str(self.folder), fix="Check its place"
            ) from error
        with exclusive(self.folder / ".lock"):
            yield

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"

    def _digests(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self.folder.glob("*.json") if _NAME.match(path.name)))

    def _find(self, prefix: str) -> str:
        if not _PREFIX.match(prefix) or len(prefix) < _SHORTEST_PREFIX:
            raise InputError(
                "this is no beginning of a plan's digest",
                where=prefix[:64],
                fix=f"Give at least {_SHORTEST_PREFIX} digits of what `cloister site approvals ls` shows",
            )
        found = [digest for digest in self._digests() if digest.startswith(prefix)]
        if len(found) != 1:
            raise InputError(
                "several plans begin so" if found else "no plan that was asked about begins so",
                where=prefix,
                fix="See `cloister site approvals ls`",
            )
        return found[0]

    def _decide(self, prefix: str, signer: Identity, state: Literal["approved", "refused"]) -> Asked:
        if signer.fingerprint != self._owner.fingerprint:
            raise InputError("another identity than the owner's decides", fix="Use the site's own identity")
        with self._locked():
            digest = self._find(prefix)
            file, _ = self._open(digest)  # an older decision may be by keys that were replaced
            payload = canonical_bytes(_Decided(digest, state))
            self._write(
                digest,
                msgspec.structs.replace(file, decision=sign_envelope(APPROVAL_TYPE, payload, [signer])),
            )
            return self._read(digest)

    def _write(self, digest: str, file: _File) -> None:
        write_atomic(self._path(digest), canonical_bytes(file), mode=0o600)

    def _open(self, digest: str) -> tuple[_File, Plan]:
        """Return what a file holds, and the plan in it if it is the one the file is named after."""
        path = self._path(digest)
        data = read_bytes(path, limit=_MAX_FILE, what="request for approval")
        try:
            file = msgspec.json.decode(data, type=_File)
            plan = parse_plan(file.plan.encode())
            whole = canonical_bytes(file) == data and plan.digest.hex() == digest
        except (msgspec.DecodeError, UnicodeError, RecursionError, InputError):
            whole = False
        if not whole or plan.hub.identity != file.hub:
            raise IntegrityError(
                "a request for approval is not as it was written",
                where=str(path),
                fix="Remove the file; the plan is asked about again",
            )
        return file, plan

    def _read(self, digest: str) -> Asked:
        file, plan = self._open(digest)
        state: State = "pending"
        if file.decision is not None:
            state = self._decided(digest, file.decision)
        return Asked(plan, file.hub, file.reasons, state)

    def _decided(self, digest: str, envelope: bytes) -> State:
        where = str(self._path(digest))
        try:
            payload = open_envelope(envelope, APPROVAL_TYPE, keyring([self._owner]))
            decided = msgspec.json.decode(payload, type=_Decided)
        except (IntegrityError, msgspec.DecodeError, UnicodeDecodeError):
            raise IntegrityError(
                "the decision about a plan is not signed by this home's identity",
                where=where,
                fix="If you rotated your keys, decide again; else find out who wrote it",
            ) from None
        if decided.plan != digest:
            raise IntegrityError(
                "a decision about another plan was put here",
                where=where,
                fix="Find out who wrote it, and decide again",
            )
        return decided.state


def settle(decision: Decision, state: State | None) -> Decision:
    """Return what policy and hand decide together: what either refuses is refused, and "ask" waits for
    approval."""
    if decision.verdict == "refuse":
        return decision
    if state == "refused":
        return Decision("refuse", ("the owner refused this plan",))
    if decision.verdict == "ask" and state == "approved":
        return Decision("accept", ("the owner approved this plan",))
    return decision


def admit(
    plan: Plan,
    hub: PublicIdentity,
    policy: SitePolicy | None,
    trusted: Mapping[str, PublicIdentity],
    approvals: Approvals,
    *,
    own: str,
    claim: PrivacyFacts | None = None,
) -> Decision:
    """Return what is to happen with an invitation, and ask the owner where that is due.

    Args: as of `decide`, and `approvals` of the same owner.

    Raises:
        IntegrityError: approvals are not as they were written.
        PolicyRefused: too many plans wait for a decision.
        StorageError: the request cannot be written.
    """
    decision = decide(plan, hub, policy, trusted, own=own, claim=claim)
    if decision.verdict == "refuse":
        return decision
    settled = settle(decision, approvals.state(plan.digest))
    if settled.verdict == "ask":
        return settle(decision, approvals.request(plan, hub, decision.reasons))
    return settled
