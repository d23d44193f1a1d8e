"""What is being verified, and what the steps have established so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import VerificationError
from cloister.governance.certificate import Certificate, Predicate
from cloister.learning import Plan
from cloister.secagg import Params
from cloister.vault import Schema

__all__ = ["Case", "require"]


@dataclass
class Case:
    """What is being verified, and what the steps have established so far.

    Attributes:
        files: path in the folder -> content.
        trusted: fingerprint -> identity, the verifier's anchors.
        reader: a recipient of a sealed model, or None.
        allow_two: whether a study of two sites is accepted.
        unchecked: what could not be told; steps add to it.
        signer, payload, certificate, plan, members, schema: set by the step that makes each trusted.
        params: n, c, t, m of each epoch.
        size: parameters of the model, where it could be read.
    """

    files: dict[str, bytes]
    trusted: dict[str, PublicIdentity]
    reader: Identity | None
    allow_two: bool
    unchecked: list[str]
    signer: PublicIdentity = field(init=False)
    payload: bytes = field(init=False)
    certificate: Certificate | None = None
    plan: Plan = field(init=False)
    members: tuple[PublicIdentity, ...] = field(init=False)
    schema: Schema = field(init=False)
    params: tuple[Params, ...] = field(init=False)
    size: int | None = None

    @property
    def known(self) -> Certificate:
        """The certificate, once step 3 holds."""
        if self.certificate is None:
            raise VerificationError("the certificate has not been read")
        return self.certificate

    @property
    def facts(self) -> Predicate:
        """What the certificate states, once step 3 holds."""
        return self.known.statement.predicate


def require(holds: bool, what: str) -> None:
    """Raise VerificationError, saying what does not hold, unless it does."""
    if not holds:
        raise VerificationError(what)
