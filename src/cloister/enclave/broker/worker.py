"""The worker's side of a release: evidence that commits to a key of its own, and what that key opens.

The private key is made here, lives in this object alone and is never written. One `Worker` is for one
dataset, plan and purpose.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from cloister.crypto import HoldsSecret, HpkePrivateKey, KemSuite, hpke_open, sha256
from cloister.enclave.broker.client import Client
from cloister.enclave.broker.grant import RELEASE_INFO, Grant, Wanted, keys_digest, wanted_report_data
from cloister.enclave.broker.messages import More, Release, Released
from cloister.enclave.evidence import Evidence
from cloister.errors import InputError, IntegrityError, PolicyRefused

__all__ = ["Attests", "Worker"]


class Attests(Protocol):
    """Makes evidence of what runs here."""

    def attest(self, report_data: bytes, /) -> Evidence:
        """Return evidence that carries these 64 bytes."""


class Worker(HoldsSecret):
    """Asks for data keys, with evidence.

    Args:
        attester: makes the evidence.
        manifest: SHA-256 of the dataset's signed manifest, hexadecimal; the worker has checked that manifest.
        plan: digest of the plan that is carried out; None where there is none.
        purpose: what the rows are opened for.

    Attributes:
        hardware: whether hardware vouched for the last release; None before any.
    """

    __slots__ = ("_attester", "_grant", "_key", "hardware", "manifest", "plan", "purpose")

    def __init__(self, attester: Attests, *, manifest: str, plan: str | None, purpose: str) -> None:
        self.manifest: Final = manifest
        self.plan: Final = plan
        self.purpose: Final = purpose
        self.hardware: bool | None = None
        self._attester = attester
        self._key = HpkePrivateKey.generate(KemSuite.HYBRID)
        self._grant: Grant | None = None

    @property
    def public_key(self) -> bytes:
        """The key that evidence commits to, 1216 bytes."""
        return self._key.public_key.to_bytes()

    def unwrap(self, client: Client, kek_id: str, wrapped: tuple[bytes, ...]) -> list[bytes]:
        """Return data keys; attest first, unless this connection has a grant already.

        Raises:
            InputError: the KEK is unknown.
            PolicyRefused: the broker refuses; the message says why.
            IntegrityError: a wrapped key is not one of this KEK, or an answer is not for this request.
        """
        grant = self._grant
        if grant is not None and grant.wanted.kek_id == kek_id:
            try:
                more = client.released(More(grant.permission, grant.worker, wrapped))
                return self._opened(client, kek_id, wrapped, more, grant.evidence)
            except PolicyRefused:
                self._grant = None  # it has ended; a new one takes new evidence
        return self._attested(client, kek_id, wrapped)

    def forget_grant(self) -> None:
        """Attest anew at the next request: the connection that had the grant is gone."""
        self._grant = None

    def _attested(self, client: Client, kek_id: str, wrapped: tuple[bytes, ...]) -> list[bytes]:
        try:
            wanted = msgspec.convert(
                {"kek_id": kek_id, "manifest": self.manifest, "plan": self.plan, "purpose": self.purpose},
                Wanted,
            )
        except msgspec.ValidationError as error:
            raise InputError(f"what is asked of a key broker is malformed: {error}") from None
        nonce = client.challenge()
        bound = wanted_report_data(client.broker.fingerprint, nonce, self.public_key, wanted)
        evidence = self._attester.attest(bound)
        released = client.released(Release(wanted, wrapped, self.public_key, evidence.to_json()))
        return self._opened(client, kek_id, wrapped, released, evidence.digest.hex())

    def _opened(
        self, client: Client, kek_id: str, wrapped: tuple[bytes, ...], released: Released, evidence: str
    ) -> list[bytes]:
        grant = Grant.from_bytes(released.grant)
        wanted = Wanted(kek_id, self.manifest, self.plan, self.purpose)
        expected = (
            client.broker.fingerprint,
            wanted,
            sha256(self.public_key).hex(),
            evidence,
            keys_digest(wrapped),
        )
        if (grant.broker, grant.wanted, grant.worker, grant.evidence, grant.keys) != expected:
            raise IntegrityError("a key broker's grant is for another request", fix="Ask the broker again")
        opened = hpke_open(self._key, released.sealed, info=RELEASE_INFO, associated_data=released.grant)
        data_keys = msgspec.msgpack.decode(opened, type=list[bytes])
        if len(data_keys) != len(wrapped):
            raise IntegrityError("a key broker released another number of keys", fix="Ask the broker again")
        self._grant, self.hardware = grant, released.hardware
        return data_keys
