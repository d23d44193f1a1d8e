"""Who gives a worker the key of a sealed model: the home's process, which keeps it, or a key broker.

    home      ModelHandover     what a worker is told: folder, signed manifest, owner, broker
              lender(...)       answers what it asks over its channel: a `KeyLender` or a `KeyCarrier`
    worker    brokered(...)     asks the broker through the home, which carries and cannot read it; of a key
                                that the home keeps, `runtime.workers.answering.lent` asks it
              opened_model(handed.folder, handed.envelope, owner, lent(channel))

With a home's key the home could open the model itself: it is sealed against whoever has the disk. With a
broker's, nobody outside an attested worker can. A grant names the manifest of one sealing, no plan, and
`PURPOSE`; opening the model is one use.

A program of one's own that attests itself asks a broker by `broker_data_key`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.crypto import PublicIdentity
from cloister.enclave.broker import Attests, BrokerKeys, Connect, Wanted, Worker
from cloister.errors import InputError, PolicyRefused, ProtocolError
from cloister.inference.models.manifest import ModelManifest, manifest_digest, open_manifest
from cloister.inference.models.sealed import OpenDataKey, read_envelope
from cloister.runtime.workers import answering
from cloister.runtime.workers.asking import KeyLender, Lends
from cloister.runtime.workers.brokered import BrokerAccess, KeyCarrier
from cloister.runtime.workers.channel import Channel
from cloister.types import KeyService

__all__ = ["PURPOSE", "ModelHandover", "broker_data_key", "brokered", "kept_elsewhere", "lender"]

PURPOSE: Final = "inference"
"""What a model is opened for, as a broker's grants say it."""


@dataclass(frozen=True)
class ModelHandover:
    """One sealed model, for a worker that is to open it.

    Attributes:
        folder: where it lies.
        envelope: its signed manifest.
        manifest: what it says.
        owner: whose it is.
        broker: who keeps its key, by the identity it has now; None where the home does.
    """

    folder: Path
    envelope: bytes
    manifest: ModelManifest
    owner: PublicIdentity
    broker: PublicIdentity | None

    @classmethod
    def of(cls, folder: Path, owner: PublicIdentity, broker: PublicIdentity | None = None) -> ModelHandover:
        """Return the handover of the model in a folder.

        Args:
            folder: where it lies.
            owner: whose it must be.
            broker: the identity that its broker has now; None for the one that the manifest names.

        Raises:
            InputError: it is no sealed model.
            IntegrityError: its manifest is not the owner's.
        """
        envelope = read_envelope(folder)
        manifest = open_manifest(envelope, owner)
        named = None if manifest.broker is None else PublicIdentity.from_json(manifest.broker)
        return cls(folder.resolve(), envelope, manifest, owner, named and (broker or named))

    @property
    def wanted(self) -> Wanted:
        """What a worker's evidence must commit to, and a grant allow."""
        return _wanted(self.envelope, self.owner)


def lender(
    handed: ModelHandover, *, keys: KeyService | None = None, access: BrokerAccess | None = None
) -> Lends:
    """Return what answers a worker that opens this model, in the home's process.

    Args:
        handed: the model.
        keys: the home's keystore, where that keeps the key.
        access: to the broker that keeps it.

    Raises:
        InputError: the one that is needed is not given.
    """
    if (keys if handed.broker is None else access) is None:
        where = "the keystore" if handed.broker is None else "the broker"
        raise InputError(f"the model's key is with {where}, which is not given", where=handed.manifest.name)
    if access is not None and handed.broker is not None:
        return KeyCarrier(access, handed.wanted, columns=1)
    kek_id, service = handed.manifest.kek_id, keys

    def data_key(wrapped: bytes) -> bytes:
        if wrapped != handed.manifest.wrapped or service is None:
            raise ProtocolError("the worker asked for another key than its model's")
        return service.unwrap(kek_id, wrapped)

    return KeyLender(data_key, columns=1)


def brokered(channel: Channel, envelope: bytes, owner: PublicIdentity, broker: PublicIdentity) -> OpenDataKey:
    """Return, in a worker, what asks a broker through the home for a model's data key.

    Args:
        channel: to the home, which answers with `lender(...)`.
        envelope: the model's signed manifest.
        owner: whose it must be.
        broker: whose answers count.

    Raises:
        IntegrityError: the manifest is not the owner's.
    """
    return answering.brokered(channel, broker, _wanted(envelope, owner))


def broker_data_key(
    envelope: bytes, owner: PublicIdentity, broker: PublicIdentity, connect: Connect, attester: Attests
) -> OpenDataKey:
    """Return what asks a broker for a model's data key, in a process that attests itself.

    Args:
        envelope: the model's signed manifest.
        owner: whose it must be.
        broker: whose answers count.
        connect: opens a connection to it.
        attester: makes evidence of what runs here.

    Raises:
        IntegrityError: the manifest is not the owner's.
    """
    wanted = _wanted(envelope, owner)
    worker = Worker(attester, manifest=wanted.manifest, plan=wanted.plan, purpose=wanted.purpose)
    keys = BrokerKeys(connect, broker, worker=worker)

    def data_key(wrapped: bytes) -> bytes:
        try:
            return keys.unwrap(wanted.kek_id, wrapped)
        finally:
            keys.close()

    return data_key


def kept_elsewhere(_wrapped: bytes) -> bytes:
    """Raise PolicyRefused: a broker opens a model's key for attested workers alone, and a keystore for its
    owner; whoever asks here is neither."""
    raise PolicyRefused(
        "its key is with a key broker, which opens it for attested workers alone, or in another's keystore",
        fix="`cloister model show` says where",
    )


def _wanted(envelope: bytes, owner: PublicIdentity) -> Wanted:
    return Wanted(open_manifest(envelope, owner).kek_id, manifest_digest(envelope), None, PURPOSE)
