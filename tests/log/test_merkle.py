from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.crypto.vectors import read

from cloister.errors import InputError, VerificationError
from cloister.log import MerkleTree, leaf_hash, verify_consistency, verify_inclusion


def reference_root(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return hashlib.sha256(
        b"\x01" + reference_root(entries[:split]) + reference_root(entries[split:])
    ).digest()


def reference_path(index: int, entries: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(entries) == 1:
        return []
    split = 1
    while split * 2 < len(entries):
        split *= 2
    if index < split:
        return [*reference_path(index, entries[:split]), reference_root(entries[split:])]
    return [*reference_path(index - split, entries[split:]), reference_root(entries[:split])]


def reference_consistency(old: int, entries: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if old == len(entries):
        return [] if whole else [reference_root(entries)]
    split = 1
    while split * 2 < len(entries):
        split *= 2
    if old <= split:
        return [*reference_consistency(old, entries[:split], whole), reference_root(entries[split:])]
    return [*reference_consistency(old - split, entries[split:], False), reference_root(entries[:split])]


def entries(count: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(count)]


def tree(count: int) -> MerkleTree:
    made = MerkleTree()
    for number, entry in enumerate(entries(count)):
        assert made.append(entry) == number
    return made


def test_published_roots() -> None:
    vector = read("merkle")
    made = MerkleTree()
    for leaf, root in zip(vector["leaves"], vector["roots"], strict=True):
        made.append(bytes.fromhex(leaf))
        assert made.root().hex() == root
    assert [made.root(size + 1).hex() for size in range(8)] == vector["roots"]


def test_the_empty_tree() -> None:
    assert MerkleTree().root() == hashlib.sha256().digest()
    assert len(MerkleTree()) == 0


def test_roots_and_proofs_are_the_rfcs() -> None:
    size = 33
    made, all_entries = tree(size), entries(size)
    for count in range(1, size + 1):
        first = all_entries[:count]
        assert made.root(count) == reference_root(first)
        for index in range(count):
            assert list(made.inclusion_proof(index, count)) == reference_path(index, first)
        for old in range(1, count + 1):
            assert list(made.consistency_proof(old, count)) == reference_consistency(old, first)


def test_every_proof_verifies() -> None:
    size = 33
    made, all_entries = tree(size), entries(size)
    for count in range(1, size + 1):
        root = made.root(count)
        for index in range(count):
            proof = made.inclusion_proof(index, count)
            verify_inclusion(leaf_hash(all_entries[index]), index, count, proof, root)
        for old in range(count + 1):
            verify_consistency(old, count, made.consistency_proof(old, count), made.root(old), root)


@given(st.integers(1, 70), st.data())
def test_no_other_claim_verifies(size: int, data: st.DataObject) -> None:
    made = tree(size)
    index = data.draw(st.integers(0, size - 1))
    proof, root, leaf = made.inclusion_proof(index), made.root(), made.leaf(index)
    wrong = [(leaf_hash(b"other"), index, size, proof, root), (leaf, index, size, proof, bytes(32))]
    wrong += [
        (leaf, index, size, (*proof, root), root),
        (leaf, size, size, proof, root),
        (leaf, -1, size, proof, root),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        wrong.append((leaf, index, size, (*proof[:at], changed, *proof[at + 1 :]), root))
        wrong.append((leaf, index, size, proof[:-1], root))
        wrong.append((leaf, index ^ 1, size, proof, root))
    for claim in wrong:
        with pytest.raises(VerificationError):
            verify_inclusion(*claim)


@given(st.integers(0, 70), st.integers(0, 70), st.data())
def test_no_other_history_verifies(one: int, two: int, data: st.DataObject) -> None:
    old, new = sorted((one, two))
    made = tree(new)
    proof, old_root, new_root = made.consistency_proof(old, new), made.root(old), made.root(new)
    wrong = [(old, new, (*proof, new_root), old_root, new_root), (new + 1, new, proof, old_root, new_root)]
    if old > 0:
        wrong.append((old, new, proof, bytes(32), new_root))
        wrong.append((old, new, proof, old_root, bytes(32)))
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = bytes([proof[at][0] ^ 1]) + proof[at][1:]
        wrong.append((old, new, (*proof[:at], changed, *proof[at + 1 :]), old_root, new_root))
        wrong.append((old, new, proof[:-1], old_root, new_root))
        wrong.append((old, new, (), old_root, new_root))
    for claim in wrong:
        with pytest.raises(VerificationError):
            verify_consistency(*claim)


def test_a_rewritten_log_has_no_consistency_proof() -> None:
    honest, rewritten = tree(9), MerkleTree()
    for number, entry in enumerate(entries(20)):
        rewritten.append(entry if number != 4 else b"rewritten")
    with pytest.raises(VerificationError, match="not the one that was seen before"):
        verify_consistency(9, 20, rewritten.consistency_proof(9, 20), honest.root(), rewritten.root())


def test_an_empty_log_has_one_head() -> None:
    verify_consistency(0, 3, (), tree(0).root(), tree(3).root())
    with pytest.raises(VerificationError, match="empty log"):
        verify_consistency(0, 3, (), bytes(32), tree(3).root())


@pytest.mark.parametrize("proof", [(b"short",), tuple(bytes(32) for _ in range(65))])
def test_malformed_proofs_are_refused(proof: tuple[bytes, ...]) -> None:
    with pytest.raises(VerificationError, match="malformed"):
        verify_inclusion(bytes(32), 0, 2, proof, bytes(32))
    with pytest.raises(VerificationError, match="malformed"):
        verify_consistency(1, 2, proof, bytes(32), bytes(32))


def test_a_leaf_is_no_node() -> None:
    """Without the 0x00 and 0x01 an inner node could be shown as an entry."""
    made = tree(2)
    node = made.leaf(0) + made.leaf(1)
    with pytest.raises(VerificationError):
        verify_inclusion(leaf_hash(node), 0, 1, (), made.root())


def test_requests_beyond_the_tree_are_refused() -> None:
    made = tree(5)
    for call in (
        lambda: made.root(6),
        lambda: made.root(-1),
        lambda: made.leaf(5),
        lambda: made.inclusion_proof(5),
        lambda: made.inclusion_proof(-1),
        lambda: made.inclusion_proof(3, 3),
        lambda: made.consistency_proof(4, 3),
        lambda: made.consistency_proof(-1),
        lambda: made.consistency_proof(2, 6),
    ):
        with pytest.raises(InputError):
            call()
