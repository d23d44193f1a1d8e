"""Client and server together, without a network between them."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.exchange.exchanges import (
    DIGEST,
    HEAD,
    JSON,
    MODEL,
    NOON,
    exchanged,
    frames_of,
    new_ring,
    taken,
    told,
)

from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange import (
    REQUEST_PREFIX,
    Asking,
    KeySet,
    Refused,
    RequestHead,
    ResponseHead,
    TooLarge,
    open_receipt,
    salted,
)
from cloister.inference.exchange.messages import encode
from cloister.inference.exchange.padding import padded

RING = new_ring(max_body=200_000)


@settings(max_examples=40)
@given(
    st.binary(max_size=3000),
    st.lists(st.binary(max_size=2500), max_size=5),
    st.booleans(),
    st.lists(st.integers(1, 4000), min_size=1, max_size=10),
)
def test_what_is_asked_and_answered_comes_through(
    body: bytes, pieces: list[bytes], streamed: bool, sizes: list[int]
) -> None:
    made = exchanged(RING, body=body, pieces=pieces, streamed=streamed, status=418)
    assert (made.head, made.body) == (HEAD, body)
    events, at, turn = [], 0, 0
    while at < len(made.answer):
        step = sizes[turn % len(sizes)]
        events += made.asking.feed(made.answer[at : at + step])
        at, turn = at + step, turn + 1
    made.asking.finish()
    assert told(events) == (ResponseHead(418, JSON), b"".join(pieces))


@pytest.mark.parametrize("length", [0, 1, 1019, 1020, 65_531, 65_532, 131_062, 131_063, 200_000])
def test_sizes_are_buckets(length: int) -> None:
    made = exchanged(RING, body=bytes(length), pieces=[bytes(length)])
    assert made.body == bytes(length)
    whole = padded(length) if length else 0
    request = frames_of(made.asking.request, REQUEST_PREFIX)
    assert sum(len(frame) - 20 for frame in request) == 1024 + whole
    answer = frames_of(made.answer, 33)
    assert sum(len(frame) - 20 for frame in answer) == 1024 + whole + 2048
    assert told(made.asking.feed(made.answer))[1] == bytes(length)
    made.asking.finish()


def test_a_receipt_is_about_this_exchange() -> None:
    made = exchanged(RING, body=b"what was asked", pieces=[b"what was ", b"answered"], status=201)
    made.asking.feed(made.answer)
    receipt, ending = made.asking.receipt, made.asking.ending
    keys = RING.current(NOON)
    assert open_receipt(made.asking.envelope, keys.receipt_key) == receipt
    assert (receipt.keys, receipt.policy) == (keys.digest.hex(), HEAD.policy)
    assert (receipt.model, receipt.model_digest, receipt.status) == (MODEL, DIGEST, 201)
    assert receipt.at == NOON
    assert receipt.request == salted(ending.request_salt, encode(HEAD), b"what was asked").hex()
    head = encode(ResponseHead(201, JSON))
    assert receipt.answer == salted(ending.answer_salt, head, b"what was answered").hex()


def test_salts_and_frames_are_fresh_each_time() -> None:
    one, other = exchanged(RING), exchanged(RING)
    one.asking.feed(one.answer)
    other.asking.feed(other.answer)
    assert one.asking.receipt.request != other.asking.receipt.request
    assert one.asking.ending.request_salt != one.asking.ending.answer_salt
    assert one.asking.request[33:] != other.asking.request[33:]
    assert not {bytes(f[4:]) for f in one.pieces} & {bytes(f[4:]) for f in other.pieces}


def test_a_body_may_be_empty_and_a_path_alone_be_asked() -> None:
    head = RequestHead("GET", "/v1/models")
    made = exchanged(RING, head=head, body=b"", pieces=[])
    assert (made.head, made.body) == (head, b"")
    assert len(frames_of(made.asking.request, REQUEST_PREFIX)) == 1
    assert told(made.asking.feed(made.answer)) == (ResponseHead(200, JSON), b"")
    made.asking.finish()
    assert made.asking.receipt.policy == ""


def test_each_piece_goes_out_at_once_and_comes_out_at_once() -> None:
    made = exchanged(RING, pieces=[b"a", b"", b"c" * 1020], streamed=True)
    assert made.asking.feed(made.pieces[0]) == [ResponseHead(200, JSON)]
    assert made.asking.feed(made.pieces[1]) == [b"a"]
    assert made.asking.feed(made.pieces[2]) == []
    assert made.asking.feed(made.pieces[3]) == [b"c" * 1019, b"c"]
    assert not made.asking.complete
    assert made.asking.feed(made.pieces[4]) == []
    assert made.asking.complete


def test_an_answer_that_is_not_complete_has_no_receipt() -> None:
    made = exchanged(RING)
    for piece in made.pieces[:-1]:
        made.asking.feed(piece)
        with pytest.raises(IntegrityError, match="cut"):
            made.asking.finish()
        for name in ("receipt", "ending", "envelope"):
            with pytest.raises(InputError):
                getattr(made.asking, name)


def test_a_request_is_whole_before_it_is_read() -> None:
    asking = Asking(RING.current(NOON), HEAD, b"x" * 5000)
    answering = RING.open(asking.request[:REQUEST_PREFIX], NOON)
    for byte in range(REQUEST_PREFIX, len(asking.request)):
        assert not answering.ended
        answering.feed(asking.request[byte : byte + 1])
        if byte == 4000:
            with pytest.raises(Refused):
                answering.request()
    assert answering.ended
    assert answering.request() == (HEAD, b"x" * 5000)
    with pytest.raises(InputError, match="before"):
        answering.request()


def test_an_answer_has_its_order() -> None:
    answering = taken(RING, Asking(RING.current(NOON), HEAD, b"x").request)
    for early in (
        lambda: answering.head(200, {}, False),
        lambda: answering.body(b""),
        lambda: answering.end(NOON),
    ):
        with pytest.raises(InputError):
            early()
    answering.request()
    with pytest.raises(InputError):
        answering.head(200, {"Not-Lower": "x"}, False)
    answering.head(200, {}, False)
    with pytest.raises(InputError):
        answering.head(200, {}, False)
    with pytest.raises(InputError, match="zone"):
        answering.end(datetime(2026, 5, 4))
    answering.end(NOON)
    for late in (lambda: answering.body(b"x"), lambda: answering.end(NOON)):
        with pytest.raises(InputError):
            late()


def test_times_of_any_zone_are_written_in_utc() -> None:
    at = (NOON + timedelta(microseconds=7)).astimezone(timezone(timedelta(hours=8)))
    made = exchanged(RING, at=at)
    made.asking.feed(made.answer)
    assert made.asking.receipt.at == NOON
    assert made.asking.receipt.at.tzinfo is UTC


@pytest.mark.parametrize("length", [1000, 1001, 100_000])
def test_a_body_beyond_the_limit_is_too_large(length: int) -> None:
    ring = new_ring(max_body=1000)
    asking = Asking(ring.current(NOON), HEAD, bytes(length))
    if length == 1000:
        assert taken(ring, asking.request).request()[1] == bytes(1000)
        return
    answering = ring.open(asking.request[:REQUEST_PREFIX], NOON)
    with pytest.raises(TooLarge):
        answering.feed(asking.request[REQUEST_PREFIX:])
    with pytest.raises(TooLarge):
        answering.feed(b"")
    with pytest.raises(Refused):
        answering.request()


def test_a_key_that_is_none_is_refused_before_anything_is_sealed() -> None:
    keys = RING.current(NOON)
    broken = KeySet(
        b"\xff" * 1216, keys.receipt_key, keys.not_before, keys.not_after, keys.model, keys.model_digest
    )
    with pytest.raises(InputError):
        Asking(broken, HEAD, b"")


def test_neither_side_shows_or_copies_what_it_holds() -> None:
    asking = Asking(RING.current(NOON), HEAD, b"private words")
    answering = taken(RING, asking.request)
    for holder in (asking, answering, RING):
        assert repr(holder) == f"<{type(holder).__name__}: secret>"
        with pytest.raises(TypeError):
            copy.copy(holder)
        with pytest.raises(TypeError):
            pickle.dumps(holder)
    for error in (Refused(), TooLarge()):
        assert "private" not in str(error)
