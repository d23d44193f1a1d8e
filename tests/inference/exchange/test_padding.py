from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange.padding import (
    MAX_BLOCK,
    STREAM_BLOCK,
    BlockKind,
    block,
    blocks,
    bucket,
    padded,
    unblock,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 1024),
        (1, 1024),
        (1024, 1024),
        (1025, 2048),
        (65_536, 65_536),
        (65_537, 131_072),
        (MIB, MIB),
        (MIB + 1, 2 * MIB),
        (2 * MIB + 1, 3 * MIB),
        (7 * MIB, 7 * MIB),
    ],
)
def test_buckets(size: int, expected: int) -> None:
    assert bucket(size) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, 1024),
        (1019, 1024),
        (1020, 2048),
        (65_531, 65_536),
        (65_532, 131_072),  # two blocks, so two headers
        (131_062, 131_072),
        (131_063, 262_144),
        (MIB - 80, MIB),  # sixteen headers
        (MIB - 79, 2 * MIB),
        (3 * MIB - 240, 3 * MIB),
        (3 * MIB - 239, 4 * MIB),
    ],
)
def test_the_headers_of_blocks_count(length: int, expected: int) -> None:
    assert padded(length) == expected
    assert sum(map(len, blocks(BlockKind.BODY, bytes(length)))) == expected


@given(st.integers(0, 3 * MIB))
def test_a_bucket_is_the_smallest_that_fits(length: int) -> None:
    made = blocks(BlockKind.BODY, bytes(length))
    total = sum(map(len, made))
    assert total == padded(length) == bucket(total)
    assert all(len(each) == min(total, MAX_BLOCK) for each in made)
    if length:
        assert padded(length - 1) <= total
    smaller = total // 2 if total <= MIB else total - MIB
    if smaller >= 1024:
        assert smaller - 5 * -(-smaller // MAX_BLOCK) < length


@given(st.binary(max_size=5000), st.sampled_from(BlockKind), st.booleans())
def test_blocks_give_back_their_content(content: bytes, kind: BlockKind, streamed: bool) -> None:
    made = blocks(kind, content, streamed=streamed)
    opened = [unblock(each) for each in made]
    assert {each for each, _ in opened} == {kind}
    assert b"".join(part for _, part in opened) == content
    if streamed:
        assert {len(each) for each in made} == {STREAM_BLOCK}


@given(st.integers(0, 1019), st.integers(0, 1019))
def test_streamed_pieces_that_fit_one_block_look_alike(one: int, other: int) -> None:
    assert [len(each) for each in blocks(BlockKind.BODY, bytes(one), streamed=True)] == [
        len(each) for each in blocks(BlockKind.BODY, bytes(other), streamed=True)
    ]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x02",
        bytes(1024),  # kind 0
        b"\x04" + bytes(1023),
        b"\x02" + bytes(1022),  # no size of a block
        b"\x02" + bytes(1535),
        b"\x02" + bytes(131_071),
        b"\x02" + (1020).to_bytes(4, "big") + bytes(1019),  # longer than what is there
        b"\x02\xff\xff\xff\xff" + bytes(1019),
        b"\x02" + bytes(1022) + b"\x01",  # padding that says something
        b"\x02" + bytes(4) + b"\x01" + bytes(1018),
        b"\x02" + (1).to_bytes(4, "big") + b"xy" + bytes(1017),
    ],
)
def test_what_is_no_block_is_refused(bad: bytes) -> None:
    with pytest.raises(IntegrityError):
        unblock(bad)


def test_a_block_has_one_form() -> None:
    content = b"exactly this"
    kind, found = unblock(block(BlockKind.END, content, 2048))
    assert (kind, bytes(found)) == (BlockKind.END, content)
    assert block(kind, found, 2048) == block(BlockKind.END, content, 2048)
    with pytest.raises(InputError, match="1020 bytes"):
        block(BlockKind.END, bytes(1020), 1024)
