"""How data keys are released to a worker, step by step.

`release`, in this order, after the conversation has used the nonce up (1):
2. the owner's permission is for exactly this key, manifest, plan and purpose, has not expired, was not
   revoked, and has a use left;
3. the worker's key is one, and the evidence is;
4. the owner's policy accepts the evidence; its signature is genuine, and its report data is made of this
   broker's nonce, the worker's key and what the worker wants: that is asked for here, whatever the policy
   says;
5. the wrapped keys open under the KEK;
6. the use is counted, durably;
7. the release is entered in the log, durably;
8. the data keys are sealed to the worker's key, under the grant.
A refusal at 2 to 5 uses nothing up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from cloister.crypto import HoldsSecret, HpkePublicKey, Identity, KemSuite, hpke_seal, sha256
from cloister.enclave.appraise import Appraise
from cloister.enclave.broker.book import Book
from cloister.enclave.broker.entries import Appraised, ReleaseMade, appraised, short_reasons
from cloister.enclave.broker.grant import RELEASE_INFO, Grant, keys_digest, wanted_report_data
from cloister.enclave.broker.messages import More, Release, Released, encode
from cloister.enclave.broker.orders import Orders, unknown_kek, unwrap
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence
from cloister.errors import CloisterError, IntegrityError, PolicyRefused
from cloister.log import TreeHead, sign_head

__all__ = ["SESSION_SECONDS", "Releases", "Session", "Turned"]

SESSION_SECONDS: Final = 600
"""How long an attested worker may ask for further keys of the same dataset."""


class Turned(Exception):  # not an error: how a refusal finds its way into the log
    """A request is refused.

    Args:
        error: what the client is told.
        reasons: what the log says; None for the error's text.
        evidence: digest of the evidence, where it was read.
        found: what it showed, where it was appraised.
    """

    def __init__(
        self,
        error: CloisterError,
        reasons: Iterable[str] | None = None,
        evidence: str | None = None,
        found: Appraised | None = None,
    ) -> None:
        super().__init__(error.what)
        self.error = error
        self.reasons = short_reasons([str(error)] if reasons is None else list(reasons))
        self.evidence = evidence
        self.found = found


@dataclass(frozen=True)
class Session:
    """An attested worker on one connection: its grant, its key, until when, and what its evidence showed."""

    grant: Grant
    worker: HpkePublicKey
    until: datetime
    found: Appraised


class Releases(HoldsSecret):
    """Releases data keys.

    Args:
        book: store and log.
        orders: says what is permitted.
        identity: the broker's.
        appraise: claims of evidence, and the policy's reasons to refuse.
        policy: digest of that policy, hexadecimal.
    """

    __slots__ = ("_appraise", "_book", "_identity", "_orders", "_policy")

    def __init__(
        self, book: Book, orders: Orders, identity: Identity, appraise: Appraise, policy: str
    ) -> None:
        self._book = book
        self._orders = orders
        self._identity = identity
        self._appraise = appraise
        self._policy = policy

    def release(self, request: Release, nonce: bytes, at: datetime) -> tuple[Session, Released]:
        """Return what is released, and the session it begins. Raises Turned, StorageError, IntegrityError."""
        try:
            held = self._orders.permitted(request.wanted, at)  # 2
            worker = HpkePublicKey.from_bytes(KemSuite.HYBRID, request.worker)  # 3
            evidence = Evidence.from_json(request.evidence)
        except CloisterError as error:
            raise Turned(error) from None
        found = self._accept(request, evidence, nonce, at)  # 4
        kek_id, permission = request.wanted.kek_id, held.permission
        data_keys = self._open(kek_id, request.wrapped, evidence.digest.hex(), found)  # 5
        grant = Grant(
            broker=self._identity.fingerprint,
            permission=permission.id,
            wanted=request.wanted,
            worker=sha256(request.worker).hex(),
            evidence=evidence.digest.hex(),
            policy=self._policy,
            keys=keys_digest(request.wrapped),
            expires=permission.expires,
            use=held.used + 1,
            uses=permission.uses,
        )
        count = len(data_keys)
        index, head = self._orders.use(
            held, lambda seq: ReleaseMade(at, seq, grant, count, False, found)
        )  # 6, 7
        until = min(permission.expires, at + timedelta(seconds=SESSION_SECONDS))
        session = Session(grant, worker, until, found)
        return session, self._sealed(session, data_keys, index, head)  # 8

    def more(self, session: Session | None, request: More, at: datetime) -> Released:
        """Return further keys for a session's worker. Raises Turned, StorageError."""
        held = self._book.store.permissions.get(request.permission)
        if session is None or held is None or held.revoked or not at < session.until:
            raise Turned(PolicyRefused("no grant of this connection allows it", fix="Attest again"))
        wanted, found = session.grant.wanted, session.found
        data_keys = self._open(wanted.kek_id, request.wrapped, session.grant.evidence, found)
        grant = msgspec.structs.replace(session.grant, keys=keys_digest(request.wrapped))
        index, head = self._book.enter(ReleaseMade(at, None, grant, len(data_keys), True, found))
        return self._sealed(Session(grant, session.worker, session.until, found), data_keys, index, head)

    def _accept(self, request: Release, evidence: Evidence, nonce: bytes, at: datetime) -> Appraised:
        expected = wanted_report_data(self._identity.fingerprint, nonce, request.worker, request.wanted)
        try:
            claims, reasons = self._appraise(evidence, at, expected)
        except CloisterError as error:
            claims, reasons = Claims(kind=evidence.kind), [str(error)]
        except Exception as error:  # noqa: BLE001  # whatever a parser meets, nothing is released
            claims, reasons = (
                Claims(kind=evidence.kind),
                [f"it could not be appraised ({type(error).__name__})"],
            )
        for claim in ("signature", "freshness"):
            if getattr(claims, claim) is not True and not any(each.startswith(claim) for each in reasons):
                reasons = [*reasons, f"{claim}: {claims.reasons.get(claim, 'not shown')}"]
        found = appraised(claims)
        if reasons:
            short = short_reasons(reasons)
            refusal = PolicyRefused(
                f"the key broker releases nothing to this worker: {'; '.join(short)}",
                fix="Compare it with the owner's enclave policy",
            )
            raise Turned(refusal, short, evidence.digest.hex(), found)
        return found

    def _open(self, kek_id: str, wrapped: tuple[bytes, ...], evidence: str, found: Appraised) -> list[bytes]:
        store = self._book.store
        kek = store.keks.get(kek_id)
        if kek is None:
            raise Turned(unknown_kek(kek_id), None, evidence, found)
        try:
            return unwrap(store.open_kek(kek), kek_id, wrapped)
        except IntegrityError as error:
            raise Turned(error, None, evidence, found) from None

    def _sealed(self, session: Session, data_keys: list[bytes], index: int, head: TreeHead) -> Released:
        grant = session.grant.to_bytes()
        sealed = hpke_seal(session.worker, encode(data_keys), info=RELEASE_INFO, associated_data=grant)
        hardware = session.found.protection == "hardware"
        return Released(grant, sealed, index, sign_head(head, self._identity), hardware)
