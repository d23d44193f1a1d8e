"""Secure sum: a hub learns the sum of integer vectors and no single one, whoever drops out.

Pure state machines: bytes in, bytes out; no sockets, no clocks, no files. To use: `Params.derive`,
`Roster`, `EpochContext`, `Encoding`; then `SecureSumSite` at every site and `SecureSumHub` at the hub,
whose docstrings show the order of calls. The derivation is docs/proofs/secure-sum.md.
"""

from cloister.secagg.context import MAX_ATTEMPTS, EpochContext, Roster
from cloister.secagg.derivation import model_digest
from cloister.secagg.encoding import RING_BITS, Encoding, RingVector
from cloister.secagg.hub import SecureSumHub
from cloister.secagg.parameters import MAX_PARTIES, Params
from cloister.secagg.restore import SiteSnapshot
from cloister.secagg.round import RoundSum
from cloister.secagg.site import MAX_PARAMETERS, SecureSumSite

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_PARAMETERS",
    "MAX_PARTIES",
    "RING_BITS",
    "Encoding",
    "EpochContext",
    "Params",
    "RingVector",
    "Roster",
    "RoundSum",
    "SecureSumHub",
    "SecureSumSite",
    "SiteSnapshot",
    "model_digest",
]
