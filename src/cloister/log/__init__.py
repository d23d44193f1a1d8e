"""An append-only log (RFC 6962, RFC 9162): what was logged cannot be changed or taken back unnoticed.

`Log` keeps entries in a file, `TreeHead` sums them up, `verify_inclusion` and `verify_consistency` check
proofs against heads, and `Cosigner` makes sure that everybody is shown the same history.
"""

from cloister.log.cosign import HEAD_TYPE, Cosigner, open_head, sign_head
from cloister.log.merkle import HASH_BYTES, MerkleTree, leaf_hash, verify_consistency, verify_inclusion
from cloister.log.store import MAX_ENTRY, Log, TreeHead

__all__ = [
    "HASH_BYTES",
    "HEAD_TYPE",
    "MAX_ENTRY",
    "Cosigner",
    "Log",
    "MerkleTree",
    "TreeHead",
    "leaf_hash",
    "open_head",
    "sign_head",
    "verify_consistency",
    "verify_inclusion",
]
