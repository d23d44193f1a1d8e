"""Merkle trees as RFC 6962 and RFC 9162 define them: SHA-256, 0x00 before a leaf, 0x01 before a node.

The tree keeps the hash of every complete subtree, so that appending costs one hash on average, and roots and
proofs of every size so far cost the logarithm. Verification needs no tree and trusts nothing but the two
roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.crypto.hashing import constant_time_equal, sha256
from cloister.errors import InputError, VerificationError

__all__ = ["HASH_BYTES", "MerkleTree", "leaf_hash", "verify_consistency", "verify_inclusion"]

HASH_BYTES: Final = 32
_MAX_PROOF: Final = 64


def leaf_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 | entry)."""
    return sha256(b"\x00", entry)


def _node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01", left, right)


def _split(count: int) -> int:
    """Return the largest power of two below `count` (2 or more)."""
    return 1 << ((count - 1).bit_length() - 1)


class MerkleTree:
    """A growing list of entries, of which only hashes are kept."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]  # _levels[k][i] covers leaves i * 2**k to (i + 1) * 2**k - 1

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, entry: bytes) -> int:
        """Add an entry; return its index."""
        return self.append_hash(leaf_hash(entry))

    def append_hash(self, leaf: bytes) -> int:
        """Add an entry of which the leaf hash is known; return its index."""
        index, level, node = len(self), 0, leaf
        self._levels[0].append(node)
        while len(self._levels[level]) % 2 == 0:
            node = _node_hash(*self._levels[level][-2:])
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node)
        return index

    def leaf(self, index: int) -> bytes:
        """Return the leaf hash at `index`. Raises InputError where there is none."""
        if not 0 <= index < len(self):
            raise InputError(f"there is no entry {index} among {len(self)}", fix="Ask for an earlier one")
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` entries (None: all). Raises InputError beyond the tree."""
        count = self._check(len(self) if size is None else size)
        return self._range(0, count) if count else sha256()

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that entry `index` is in the tree of `size` entries (RFC 9162, 2.1.3).

        Raises:
            InputError: there is no such entry or size.
        """
        end = self._check(len(self) if size is None else size)
        if not 0 <= index < end:
            raise InputError(f"there is no entry {index} among {end}", fix="Ask for an earlier one")
        path: list[bytes] = []
        start = 0
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency_proof(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree of `new` entries begins with that of `old` (RFC 9162, 2.1.4).

        Raises:
            InputError: not 0 <= old <= new <= size.
        """
        end = self._check(len(self) if new is None else new)
        if not 0 <= old <= end:
            raise InputError(
                f"there is no consistency from {old} to {end} entries", fix="Give the smaller size first"
            )
        if old in (0, end):
            return ()
        path: list[bytes] = []
        start, whole = 0, True  # whole: the old tree's part from `start` on began as a tree of its own at 0
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._range(middle, end))
                end = middle
            else:
                path.append(self._range(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._range(start, end))
        return tuple(reversed(path))

    def _check(self, size: int) -> int:
        if not 0 <= size <= len(self):
            raise InputError(f"the tree has {len(self)} entries, not {size}", fix="Ask for a smaller size")
        return size

    def _range(self, start: int, end: int) -> bytes:
        count = end - start
        if count & (count - 1) == 0:  # complete, and aligned, because every split is at a power of two
            level = count.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(count)
        return _node_hash(self._range(start, middle), self._range(middle, end))


def _refuse(what: str) -> VerificationError:
    return VerificationError(what, fix="Do not rely on this log; keep both heads as evidence")


def _check_proof(proof: Sequence[bytes]) -> None:
    if len(proof) > _MAX_PROOF or any(len(node) != HASH_BYTES for node in proof):
        raise _refuse("a proof is malformed")


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the proof shows `leaf` at `index` of the tree with this size and root (RFC 9162, 2.1.3.2).

    Args:
        leaf: `leaf_hash` of the entry.
        index: from 0.
        size: number of entries under `root`.
        proof: from `MerkleTree.inclusion_proof`.
        root: 32 bytes, from a tree head that is trusted.

    Raises:
        VerificationError: it does not.
    """
    _check_proof(proof)
    if not 0 <= index < size:
        raise _refuse("an entry's index is beyond the tree")
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _refuse("an inclusion proof is too long")
        if position & 1 or position == last:
            node = _node_hash(sibling, node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = _node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or not constant_time_equal(node, root):
        raise _refuse("an entry is not in the log")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Return if the proof shows that the tree (new, new_root) begins with (old, old_root) (RFC 9162,
    2.1.4.2).

    Raises:
        VerificationError: it does not: the log was rewritten, or shows different things to different people.
    """
    _check_proof(proof)
    if not 0 <= old <= new:
        raise _refuse("the log has become shorter")
    if old == 0 or old == new:
        if proof or (old == new and not constant_time_equal(old_root, new_root)):
            raise _refuse("the log shows two different heads of one size")
        if old == 0 and not constant_time_equal(old_root, sha256()):
            raise _refuse("the head of an empty log is not that of one")
        return
    nodes = list(proof) if old & (old - 1) else [old_root, *proof]
    if not nodes:
        raise _refuse("a consistency proof is empty")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise _refuse("a consistency proof is too long")
        if position & 1 or position == last:
            first, second = _node_hash(sibling, first), _node_hash(sibling, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = _node_hash(second, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or not (constant_time_equal(first, old_root) and constant_time_equal(second, new_root)):
        raise _refuse("the log is not the one that was seen before, continued")
