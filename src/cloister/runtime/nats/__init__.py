"""NATS between organisations: transport, certificates, server configuration, and the hub's lease.

The package `nats` is imported where a connection is made, not before.
"""

from cloister.runtime.nats.certificates import Authority, NetworkKey
from cloister.runtime.nats.lease import Lease
from cloister.runtime.nats.server import LocalServer, server_program
from cloister.runtime.nats.serverconfig import Cluster, Leaf, Tls, server_config
from cloister.runtime.nats.tlsfiles import TlsFiles
from cloister.runtime.nats.transport import NatsTransport, connect

__all__ = [
    "Authority",
    "Cluster",
    "Leaf",
    "Lease",
    "LocalServer",
    "NatsTransport",
    "NetworkKey",
    "Tls",
    "TlsFiles",
    "connect",
    "server_config",
    "server_program",
]
