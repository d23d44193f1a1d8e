"""What every walled worker does first: it meets who started it, and asks them for the keys of what it opens.

The other side of `asking`:

    asking        meet    KeyLender     KeyCarrier
    answering     met     lent          brokered

A worker answers with an identity made for its process and never written down. Nothing large comes over the
channel unless a `receive` has room for it.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from cloister.crypto import Identity, PublicIdentity
from cloister.enclave.broker import BrokerKeys, Wanted
from cloister.enclave.broker import Worker as BrokerWorker
from cloister.errors import ProtocolError
from cloister.runtime.link import Link
from cloister.runtime.workers.brokered import PipeBroker
from cloister.runtime.workers.channel import Channel, recv_clear, send_clear
from cloister.runtime.workers.messages import Key, KeyWanted, Meet, decode_question, encode
from cloister.vault.handover import OpenDataKey

__all__ = ["brokered", "lent", "met"]

_NAME: Final = "worker"
_MAX_MEET: Final = 64 << 10


def met(sock: socket.socket, bound: bytes | None = None) -> tuple[PublicIdentity, bytes, Channel]:
    """Return who started this worker, what the session is bound to, and the channel to them.

    Args:
        sock: this end of the pair.
        bound: what the session must be bound to; None for a worker that learns it here.

    Raises:
        Gone: they have ended.
        ProtocolError, InputError: they do not speak this protocol, or want another worker.
    """
    try:
        meet = msgspec.msgpack.decode(recv_clear(sock, _MAX_MEET, None), type=Meet)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("met a worker in a way that it does not understand") from error
    if bound not in (None, meet.study):
        raise ProtocolError("asked a worker for something else than it is for")
    identity, peer = Identity.generate(_NAME), PublicIdentity.from_json(meet.site)
    send_clear(sock, identity.public.to_json())
    link = Link(identity, peer, meet.study, initiator=False, auto_grant=False)
    return peer, meet.study, Channel(link, sock)


def lent(channel: Channel, dataset: int = 0) -> OpenDataKey:
    """Return what asks whoever started this worker for data keys, of the dataset of this number."""

    def data_key(wrapped: bytes) -> bytes:
        channel.send(encode(KeyWanted(dataset, wrapped)))
        answer = decode_question(channel.receive())
        if not isinstance(answer, Key):
            raise ProtocolError("gave the worker something else than the key it asked for")
        return answer.data_key

    return data_key


def brokered(channel: Channel, broker: PublicIdentity, wanted: Wanted, dataset: int = 0) -> OpenDataKey:
    """Return what asks a broker for data keys, through whoever started this worker; sealed to this process.

    Args:
        channel: to them; they answer with a `KeyCarrier` for the same `wanted`.
        broker: whose answers count.
        wanted: the KEK, and what a grant must allow.
        dataset: the number of the dataset, of those that the worker was given.
    """
    pipe = PipeBroker(channel, dataset)
    worker = BrokerWorker(pipe, manifest=wanted.manifest, plan=wanted.plan, purpose=wanted.purpose)
    pipe.key = worker.public_key
    keys = BrokerKeys(pipe.connect, broker, worker=worker)
    return lambda wrapped: keys.unwrap(wanted.kek_id, wrapped)
