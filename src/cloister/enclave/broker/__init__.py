"""The key broker: a dataset that is kept in it opens for attested workers alone.

    broker = Broker(Book(store, log, now), identity, appraise, policy=digest, owners=[owner])
    keys = BrokerKeys(lambda: SocketLink(path), broker_identity, owner=owner)  # who adds datasets
    keys = BrokerKeys(lambda: SocketLink(path), broker_identity, worker=Worker(...))  # who opens them

`releases` says in which order a release is checked, `book` how counts and log stay durable and together,
`grant` what a release is bound to.
"""

from cloister.enclave.broker.book import Book
from cloister.enclave.broker.broker import Broker, Conversation
from cloister.enclave.broker.client import Client, Connect, Exchange
from cloister.enclave.broker.entries import Entry, decode_entry
from cloister.enclave.broker.grant import Grant, Permission, Wanted
from cloister.enclave.broker.keys import BrokerKeys
from cloister.enclave.broker.link import Direct, SocketLink
from cloister.enclave.broker.opening import LOG_NAME, SOCKET_NAME, open_book, read_log
from cloister.enclave.broker.ordermessages import (
    Inventory,
)
from cloister.enclave.broker.server import BrokerServer
from cloister.enclave.broker.store import Store
from cloister.enclave.broker.worker import Attests, Worker

__all__ = [
    "LOG_NAME",
    "SOCKET_NAME",
    "Attests",
    "Book",
    "Broker",
    "BrokerKeys",
    "BrokerServer",
    "Client",
    "Connect",
    "Conversation",
    "Direct",
    "Entry",
    "Exchange",
    "Grant",
    "Inventory",
    "Permission",
    "SocketLink",
    "Store",
    "Wanted",
    "Worker",
    "decode_entry",
    "open_book",
    "read_log",
]
