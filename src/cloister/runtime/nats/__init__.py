"""Studies between organisations over NATS: transport, certificates, server configuration, the hub's lease.

Importing this imports neither the client library nor the server: they are needed when something connects or
starts.
"""

from cloister.runtime.nats.certificates import Authority, NetworkKey, check_certificate
from cloister.runtime.nats.lease import Lease
from cloister.runtime.nats.server import LocalServer, server_program
from cloister.runtime.nats.serverconfig import LEASE_BUCKET, MAX_DATAGRAM, Cluster, Leaf, Tls, server_config
from cloister.runtime.nats.tlsfiles import TlsFiles, client_context
from cloister.runtime.nats.transport import Connection, NatsTransport

__all__ = [
    "LEASE_BUCKET",
    "MAX_DATAGRAM",
    "Authority",
    "Cluster",
    "Connection",
    "Leaf",
    "Lease",
    "LocalServer",
    "NatsTransport",
    "NetworkKey",
    "Tls",
    "TlsFiles",
    "check_certificate",
    "client_context",
    "server_config",
    "server_program",
]
