"""The private exchange, attacked from the way between, by a client that lies, and by a server that errs.

Whoever is on the way sees every byte and may change, cut, keep and repeat them; it has sealed requests of its own,
since the key is public, and everything that others ever sent. Whoever asks knows all keys of its own exchange.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.inference.exchange.exchanges import (
    DIGEST,
    HEAD,
    JSON,
    MODEL,
    NOON,
    Exchange,
    exchanged,
    frames_of,
    new_ring,
    taken,
    told,
)

from cloister.crypto import SigningKey, sha256
from cloister.errors import CloisterError, IntegrityError
from cloister.inference.exchange import (
    ANSWER_PREFIX,
    REQUEST_PREFIX,
    Answering,
    Asking,
    Ending,
    KeyRing,
    Receipt,
    Refused,
    RequestHead,
    ResponseHead,
    StaleKey,
    TooLarge,
    salted,
    sealing,
    sign_receipt,
)
from cloister.inference.exchange.messages import encode
from cloister.inference.exchange.padding import BlockKind, block, blocks

RING = new_ring(max_body=100_000)
FINAL = 1 << 31
UNIFORM = str(Refused())


def streamed(pieces: Sequence[bytes] = (b"one", b"two", b"three")) -> Exchange:
    return exchanged(RING, pieces=pieces, streamed=True)


def fails(asking: Asking, answer: bytes) -> None:
    """The client does not take this answer, however it is cut on the way."""

    def read() -> None:
        for at in range(0, len(answer), 700):
            asking.feed(answer[at : at + 700])
        asking.finish()

    with pytest.raises(IntegrityError):
        read()
    assert not asking.complete
    with pytest.raises(CloisterError):
        _ = asking.receipt


def refused(ring: KeyRing, request: bytes) -> None:
    """The server does not take this request, and says nothing about why."""

    def read() -> None:
        answering = ring.open(request[:REQUEST_PREFIX], NOON)
        for at in range(REQUEST_PREFIX, len(request), 700):
            answering.feed(request[at : at + 700])
        answering.request()

    with pytest.raises(Refused) as caught:
        read()
    assert str(caught.value) == UNIFORM
    assert caught.value.__cause__ is None


# ---- cut ----------------------------------------------------------------------------------------------------


def test_an_answer_cut_at_any_byte_is_not_complete() -> None:
    made = streamed()
    *most, last = (made.answer[at : at + 1] for at in range(len(made.answer)))
    for byte in most:
        made.asking.feed(byte)
        with pytest.raises(IntegrityError):
            made.asking.finish()
    made.asking.feed(last)
    made.asking.finish()


def test_an_answer_cut_at_any_frame_is_not_complete_though_its_last_frame_says_so() -> None:
    for kept in range(5):
        made = streamed()
        frames = frames_of(made.answer, ANSWER_PREFIX)
        assert len(frames) == 5
        fails(made.asking, made.answer[:ANSWER_PREFIX] + b"".join(frames[:kept]))
        if kept:
            made = streamed()
            frames = frames_of(made.answer, ANSWER_PREFIX)[:kept]
            fails(made.asking, made.answer[:ANSWER_PREFIX] + b"".join([*frames[:-1], flipped(frames[-1])]))


def test_a_request_cut_at_any_byte_is_not_read() -> None:
    asking = Asking(RING.current(NOON), HEAD, b"pay 1000 to nobody")
    answering = RING.open(asking.request[:REQUEST_PREFIX], NOON)
    for at in range(REQUEST_PREFIX, len(asking.request)):
        with pytest.raises(Refused):
            answering.request()
        answering.feed(asking.request[at : at + 1])
    assert answering.request()[1] == b"pay 1000 to nobody"


def test_a_request_cut_at_any_frame_is_not_read_though_its_last_frame_says_so() -> None:
    for kept in range(2):
        request = Asking(RING.current(NOON), HEAD, b"x").request
        frames = frames_of(request, REQUEST_PREFIX)
        refused(RING, request[:REQUEST_PREFIX] + b"".join(frames[:kept]))
    request = Asking(RING.current(NOON), HEAD, b"x").request
    refused(RING, request[:REQUEST_PREFIX] + flipped(frames_of(request, REQUEST_PREFIX)[0]))


def flipped(frame: bytes) -> bytes:
    """Return a frame with its final flag set, or cleared."""
    return (int.from_bytes(frame[:4], "big") ^ FINAL).to_bytes(4, "big") + frame[4:]


# ---- frames moved about -------------------------------------------------------------------------------------

MOVES: dict[str, Callable[[list[bytes], list[bytes]], list[bytes]]] = {
    "swapped": lambda own, _: [own[0], own[2], own[1], *own[3:]],
    "repeated": lambda own, _: [*own[:2], own[1], *own[2:]],
    "dropped": lambda own, _: [own[0], *own[2:]],
    "first dropped": lambda own, _: own[1:],
    "from another exchange": lambda own, other: [*own[:1], other[1], *own[2:]],
    "one of another exchange added": lambda own, other: [*own[:2], other[2], *own[2:]],
    "end of another exchange": lambda own, other: [*own[:-1], other[-1]],
    "all of another exchange": lambda _, other: other,
    "final set": lambda own, _: [*own[:2], flipped(own[2]), *own[3:]],
    "final cleared": lambda own, _: [*own[:-1], flipped(own[-1])],
    "final cleared, repeated": lambda own, _: [*own[:-1], flipped(own[-1]), own[-1]],
    "end first": lambda own, _: [own[-1], *own[:-1]],
    "end alone": lambda own, _: [own[-1]],
    "more after the end": lambda own, _: [*own, own[0]],
    "zeros after the end": lambda own, _: [*own, bytes(4)],
    "split": lambda own, _: [own[0], (500).to_bytes(4, "big") + own[1][4:504], *own[2:]],
    "joined": lambda own, _: [
        (len(own[0] + own[1]) - 8).to_bytes(4, "big") + own[0][4:] + own[1][4:],
        *own[2:],
    ],
    "longer": lambda own, _: [(len(own[0]) - 3).to_bytes(4, "big") + own[0][4:] + b"\0", *own[1:]],
    "plain": lambda own, _: [own[0], (1040).to_bytes(4, "big") + bytes(1040), *own[2:]],
}


@pytest.mark.parametrize("move", MOVES)
def test_frames_of_an_answer_cannot_be_moved(move: str) -> None:
    made, other = streamed(), streamed()
    frames = MOVES[move](frames_of(made.answer, ANSWER_PREFIX), frames_of(other.answer, ANSWER_PREFIX))
    fails(made.asking, made.answer[:ANSWER_PREFIX] + b"".join(frames))


@pytest.mark.parametrize("move", MOVES)
def test_frames_of_a_request_cannot_be_moved(move: str) -> None:
    body = bytes(99_000)  # head, and two frames of 65,536
    own, other = (Asking(RING.current(NOON), HEAD, body).request for _ in range(2))
    pieces = frames_of(own, REQUEST_PREFIX), frames_of(other, REQUEST_PREFIX)
    moved = MOVES[move](*pieces)
    assert moved != pieces[0]
    refused(RING, own[:REQUEST_PREFIX] + b"".join(moved))


@pytest.mark.parametrize("at", range(0, 4189, 53))
def test_no_byte_of_an_answer_can_be_changed(at: int) -> None:
    made = exchanged(RING, pieces=[b"answer"])
    answer = bytearray(made.answer)
    assert len(answer) == 4189
    answer[at] ^= 1 << at % 8
    fails(made.asking, bytes(answer))


# ---- other directions, other exchanges, other keys ----------------------------------------------------------


def test_frames_of_one_direction_do_not_open_in_the_other() -> None:
    # with one key for both directions, even: what parts them is the associated data
    secret, sealed = bytes(32), bytes(1168)
    sealer = sealing.request_sealer(secret, sealed)
    opener = sealing.FrameOpener(sealing._request_key(secret, sealed), b"a")
    with pytest.raises(IntegrityError):
        opener.feed(sealer.seal(b"x", True))


def test_a_request_is_not_its_own_answer() -> None:
    made = streamed()
    request = made.asking.request
    frames = request[REQUEST_PREFIX:]
    for nonce in (request[1:33], made.answer[1:33], bytes(32)):
        fails(streamed().asking, b"\x01" + nonce + frames)
    fails(made.asking, request)


def test_an_answer_is_for_one_request() -> None:
    one, other = streamed([b"yes"]), streamed([b"no"])
    fails(one.asking, other.answer)
    third, fourth = streamed([b"yes"]), streamed([b"no"])
    fails(third.asking, third.answer[:ANSWER_PREFIX] + fourth.answer[ANSWER_PREFIX:])
    fifth, sixth = streamed([b"yes"]), streamed([b"no"])
    fails(fifth.asking, sixth.answer[:ANSWER_PREFIX] + fifth.answer[ANSWER_PREFIX:])


def test_an_answer_cannot_be_played_again_to_the_same_words() -> None:
    first = streamed([b"the balance is 5"])
    told(first.asking.feed(first.answer))
    again = Asking(RING.current(NOON), HEAD, b"question")
    fails(again, first.answer)


def test_a_request_for_one_key_set_does_not_open_under_another() -> None:
    one, other = new_ring(), new_ring()
    request = Asking(one.current(NOON), HEAD, b"x").request
    with pytest.raises(StaleKey):
        other.open(request[:REQUEST_PREFIX], NOON)
    readdressed = request[:1] + other.current(NOON).digest + request[33:]
    refused(other, readdressed)


def test_a_key_set_that_differs_in_anything_is_another() -> None:
    """Whoever swaps the model's name or the receipt key beside a genuine encryption key gets a request that does
    not open there: the digest is in HPKE's info."""
    ring = new_ring()
    keys = ring.current(NOON)
    for changed in (
        msgspec.structs.replace(keys, model="another"),
        msgspec.structs.replace(keys, receipt_key=SigningKey.generate().verify_key.to_bytes()),
        msgspec.structs.replace(keys, not_after=keys.not_after + timedelta(days=1)),
        msgspec.structs.replace(keys, accelerators=1),
    ):
        request = Asking(changed, HEAD, b"x").request
        with pytest.raises(StaleKey):
            ring.open(request[:REQUEST_PREFIX], NOON)
        refused(ring, request[:1] + keys.digest + request[33:])


def test_no_byte_before_the_frames_can_be_changed_and_trying_burns_nothing() -> None:
    ring = new_ring()
    request = Asking(ring.current(NOON), HEAD, b"x").request
    for at in range(REQUEST_PREFIX):
        changed = bytearray(request[:REQUEST_PREFIX])
        changed[at] ^= 0x80 if at % 2 else 1
        with pytest.raises((Refused, StaleKey)) as caught:
            ring.open(bytes(changed), NOON)
        assert isinstance(caught.value, StaleKey) is (1 <= at < 33)
    assert taken(ring, request).request() == (HEAD, b"x")


def test_an_encapsulation_cannot_be_written_differently() -> None:
    """X25519 ignores the top bit of a public key: the same share, other bytes. They must not pass as unseen."""
    ring = new_ring()
    request = bytearray(Asking(ring.current(NOON), HEAD, b"x").request)
    taken(ring, bytes(request))
    request[33 + 1119] ^= 0x80
    refused(ring, bytes(request))


def test_a_recorded_request_is_refused_with_other_frames_too() -> None:
    ring = new_ring()
    one, other = (Asking(ring.current(NOON), HEAD, b"x").request for _ in range(2))
    taken(ring, one)
    refused(ring, one)
    refused(ring, one[:REQUEST_PREFIX] + other[REQUEST_PREFIX:])
    refused(ring, other[:REQUEST_PREFIX] + one[REQUEST_PREFIX:])


def test_two_copies_that_race_are_one_request() -> None:
    ring = new_ring()
    request = Asking(ring.current(NOON), HEAD, b"x").request
    first = ring.open(request[:REQUEST_PREFIX], NOON)
    with pytest.raises(Refused):
        ring.open(request[:REQUEST_PREFIX], NOON)
    first.feed(request[REQUEST_PREFIX:])
    assert first.ended


# ---- what can be seen ---------------------------------------------------------------------------------------


def sizes(pieces: Sequence[bytes]) -> list[int]:
    return [len(piece) for piece in streamed(pieces).pieces]


def test_lengths_of_tokens_cannot_be_read_from_frames() -> None:
    short = sizes([bytes([65 + i]) for i in range(20)])
    long = sizes([bytes([65 + i]) * 40 for i in range(20)])
    mixed = sizes([b"x" * length for length in range(20)])
    assert short == long == mixed
    assert set(short[1:-1]) == {1024 + 20}


def test_words_of_one_bucket_cannot_be_told_apart_by_size() -> None:
    def lengths(head: RequestHead, body: bytes, answer: bytes) -> tuple[int, int]:
        made = exchanged(RING, head=head, body=body, pieces=[answer])
        return len(made.asking.request), len(made.answer)

    short = RequestHead("GET", "/v1/models", {}, "", "clst-a")
    assert lengths(HEAD, b"a", b"no") == lengths(short, b"a" * 1019, b"yes" * 300)
    assert len({lengths(HEAD, b"a" * n, b"b" * n) for n in range(2044, 4092, 97)}) == 1


def test_nothing_that_travels_holds_the_words() -> None:
    canary, token = b"canary-of-the-patient-4711", "clst-canary-credential"
    head = RequestHead("POST", "/v1/canary-path", {"x-canary": "canary-header"}, "cd" * 32, token)
    made = exchanged(RING, head=head, body=canary * 40, pieces=[canary], streamed=True)
    seen = made.asking.request + made.answer
    for words in (
        canary[:8],
        b"canary",
        token.encode(),
        MODEL.encode() * 2,
        DIGEST.encode(),
        b"receipt",
        b"POST",
    ):
        assert words not in seen


def test_no_two_frames_are_alike() -> None:
    made = streamed([b""] * 50)
    frames = [frame[4:] for frame in frames_of(made.answer, ANSWER_PREFIX)]
    blocks_seen = [frame[at : at + 16] for frame in frames for at in range(0, len(frame), 16)]
    assert len(set(blocks_seen)) == len(blocks_seen)


# ---- a client that lies -------------------------------------------------------------------------------------


def by_hand(plaintexts: Sequence[bytes], ring: KeyRing = RING, final: int | None = None) -> bytes:
    """Return a request whose frames hold whatever its maker wants."""
    asking = Asking(ring.current(NOON), HEAD, b"", insecure_test_random=lambda _: bytes(32))
    prefix = asking.request[:REQUEST_PREFIX]
    sealer = sealing.request_sealer(bytes(32), prefix[33:])
    last = len(plaintexts) - 1 if final is None else final
    return prefix + b"".join(sealer.seal(each, at == last) for at, each in enumerate(plaintexts))


HEAD_BLOCK = blocks(BlockKind.HEAD, encode(HEAD))[0]
BODY_BLOCK = blocks(BlockKind.BODY, b"body")[0]
PACK = msgspec.msgpack.Encoder().encode


def head_with(**changed: Any) -> bytes:
    fields = {"method": "GET", "path": "/", "headers": {}, "policy": "", "credential": "", **changed}
    return blocks(BlockKind.HEAD, PACK(fields))[0]


def test_a_request_by_hand_is_taken_where_it_is_right() -> None:
    assert taken(RING, by_hand([HEAD_BLOCK, BODY_BLOCK])).request() == (HEAD, b"body")
    taken(RING, by_hand([head_with()])).request()


@pytest.mark.parametrize(
    "plaintexts",
    [
        [BODY_BLOCK],
        [BODY_BLOCK, HEAD_BLOCK],
        [blocks(BlockKind.BODY, encode(HEAD))[0]],
        [HEAD_BLOCK, HEAD_BLOCK],
        [HEAD_BLOCK, BODY_BLOCK, HEAD_BLOCK],
        [HEAD_BLOCK, block(BlockKind.END, b"", 1024)],
        [b""],
        [HEAD_BLOCK, b""],
        [HEAD_BLOCK[:-1]],
        [HEAD_BLOCK[:-1] + b"\x01"],
        [HEAD_BLOCK, BODY_BLOCK[:-1] + b"\x01"],
        [HEAD_BLOCK, b"\x02\xff\xff\xff\xff" + bytes(1019)],
        [HEAD_BLOCK, b"\x09" + BODY_BLOCK[1:]],
        [block(BlockKind.HEAD, b"", 1024)],
        [block(BlockKind.HEAD, b"\xc1" * 100, 1024)],
        [block(BlockKind.HEAD, b"\x91" * 65_000, 65_536)],
        [block(BlockKind.HEAD, encode(ResponseHead(200)), 1024)],
        [head_with(path="http://169.254.169.254/")],
        [head_with(path="/\r\nhost: elsewhere")],
        [head_with(headers={"a": "b\r\nc: d"})],
        [head_with(headers={"Authorization": "x"})],
        [head_with(headers={f"h{i}": "" for i in range(65)})],
        [head_with(extra=1)],
        [head_with(method="get")],
        [head_with(policy="../..")],
    ],
)
def test_what_an_honest_client_would_not_seal_gets_the_one_refusal(plaintexts: list[bytes]) -> None:
    refused(RING, by_hand(plaintexts))


def test_a_request_without_end_is_too_large_in_bounded_time() -> None:
    ring = new_ring(max_body=5000)
    empty = block(BlockKind.BODY, b"", 1024)
    request = by_hand([HEAD_BLOCK, *[empty] * 9], ring, final=-1)
    answering = ring.open(request[:REQUEST_PREFIX], NOON)
    with pytest.raises(TooLarge):
        answering.feed(request[REQUEST_PREFIX:])


def test_a_request_that_never_ends_is_never_read() -> None:
    request = by_hand([HEAD_BLOCK, BODY_BLOCK], final=-1)
    refused(RING, request)


def test_every_refusal_reads_the_same() -> None:
    ring = new_ring()
    request = Asking(ring.current(NOON), HEAD, b"x").request
    other = request[:40] + bytes([request[40] ^ 1]) + request[41:]
    refused(ring, b"\x02" + request[1:])  # version
    refused(ring, other)  # does not open
    refused(ring, request[:-1])  # cut
    refused(ring, request)  # seen
    refused(ring, request[:100])  # malformed


# ---- a server that errs, or receipts that lie ---------------------------------------------------------------


class Answerer:
    """A server that answers whatever it wants: it has the secret of one request, and a ring's key of receipts."""

    def __init__(self) -> None:
        self.signing = SigningKey.generate()
        keys = new_ring().current(NOON)
        self.keys = msgspec.structs.replace(keys, receipt_key=self.signing.verify_key.to_bytes())
        self.asking = Asking(self.keys, HEAD, b"question", insecure_test_random=lambda _: bytes(32))
        self.sealer = sealing.answer_sealer(bytes(32), self.asking.request[33:REQUEST_PREFIX], bytes(32))
        self.head = encode(ResponseHead(200, JSON))
        self.salts = sha256(b"request salt"), sha256(b"answer salt")

    def receipt(self, **changed: Any) -> Receipt:
        fields: dict[str, Any] = {
            "keys": self.keys.digest.hex(),
            "policy": HEAD.policy,
            "model": MODEL,
            "model_digest": DIGEST,
            "request": salted(self.salts[0], encode(HEAD), b"question").hex(),
            "answer": salted(self.salts[1], self.head, b"answer").hex(),
            "status": 200,
            "at": NOON,
        }
        return Receipt(**{**fields, **changed})

    def ending(self, envelope: bytes | None = None, *, salts: tuple[bytes, bytes] | None = None) -> bytes:
        if envelope is None:
            envelope = sign_receipt(self.receipt(), self.signing)
        return block(BlockKind.END, encode(Ending(envelope, *(salts or self.salts))), 2048)

    def answer(self, *plaintexts: bytes, final: int | None = None) -> bytes:
        last = len(plaintexts) - 1 if final is None else final
        frames = (self.sealer.seal(each, at == last) for at, each in enumerate(plaintexts))
        return b"\x01" + bytes(32) + b"".join(frames)

    def start(self) -> tuple[bytes, bytes]:
        return blocks(BlockKind.HEAD, self.head)[0], blocks(BlockKind.BODY, b"answer")[0]


def test_an_answer_by_hand_is_taken_where_it_is_right() -> None:
    server = Answerer()
    events = server.asking.feed(server.answer(*server.start(), server.ending()))
    server.asking.finish()
    assert told(events) == (ResponseHead(200, JSON), b"answer")


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": "00" * 32},
        {"policy": ""},
        {"policy": "00" * 32},
        {"model": "cheaper"},
        {"model_digest": "00" * 32},
        {"request": "00" * 32},
        {"answer": "00" * 32},
        {"status": 201},
    ],
)
def test_a_receipt_that_says_anything_else_is_refused_though_signed(changed: dict[str, Any]) -> None:
    server = Answerer()
    envelope = sign_receipt(server.receipt(**changed), server.signing)
    fails(server.asking, server.answer(*server.start(), server.ending(envelope)))


def test_a_receipt_by_another_key_or_altered_is_refused() -> None:
    for make in (
        lambda server: sign_receipt(server.receipt(), SigningKey.generate()),
        lambda server: sign_receipt(server.receipt(), server.signing).replace(b"payload", b"paylode", 1),
        lambda server: bytes(400),
        lambda server: b"",
        lambda server: sign_receipt(server.receipt(), server.signing) + b" " * 300 + b"x",
    ):
        server = Answerer()
        fails(server.asking, server.answer(*server.start(), server.ending(make(server))))
    for at in itertools.chain(range(0, 700, 61)):
        server = Answerer()
        envelope = bytearray(sign_receipt(server.receipt(), server.signing))
        envelope[at] ^= 1
        fails(server.asking, server.answer(*server.start(), server.ending(bytes(envelope))))


def test_a_receipt_of_another_exchange_is_refused() -> None:
    made = exchanged(RING, body=b"question", pieces=[b"answer"])
    made.asking.feed(made.answer)
    server = Answerer()
    fails(server.asking, server.answer(*server.start(), server.ending(made.asking.envelope)))


def test_salts_that_open_other_digests_are_refused() -> None:
    for salts in ((bytes(32), sha256(b"answer salt")), (sha256(b"request salt"), bytes(32))):
        server = Answerer()
        fails(server.asking, server.answer(*server.start(), server.ending(salts=salts)))


def test_the_body_that_came_is_the_one_in_the_receipt() -> None:
    for words in (b"", b"answe", b"Answer", b"answer "):
        server = Answerer()
        head, _ = server.start()
        fails(server.asking, server.answer(head, blocks(BlockKind.BODY, words)[0], server.ending()))


ORDERS: dict[str, Callable[[bytes, bytes, bytes], tuple[list[bytes], int | None]]] = {
    "no head": lambda head, body, end: ([body, end], None),
    "two heads": lambda head, body, end: ([head, head, body, end], None),
    "head after body": lambda head, body, end: ([body, head, end], None),
    "late head": lambda head, body, end: ([head, body, head, end], None),
    "no end": lambda head, body, end: ([head, body], None),
    "head alone": lambda head, body, end: ([head], None),
    "end alone": lambda head, body, end: ([end], None),
    "end not final": lambda head, body, end: ([head, body, end], -1),
    "more after an end that is not final": lambda head, body, end: ([head, body, end, body], None),
    "two ends": lambda head, body, end: ([head, body, end, end], None),
    "unpadded": lambda head, body, end: ([head, body.rstrip(b"\0"), end], None),
    "padding that speaks": lambda head, body, end: ([head, body[:-1] + b"!", end], None),
    "unknown kind": lambda head, body, end: ([head, b"\x07" + body[1:], end], None),
    "bad status": lambda head, body, end: (
        [blocks(BlockKind.HEAD, PACK({"status": 99, "headers": {}}))[0], body, end],
        None,
    ),
    "header that injects": lambda head, body, end: (
        [blocks(BlockKind.HEAD, PACK({"status": 200, "headers": {"a": "b\r\nset-cookie: c"}}))[0], body, end],
        None,
    ),
    "no ending": lambda head, body, end: ([head, body, block(BlockKind.END, b"", 2048)], None),
}


@pytest.mark.parametrize("order", ORDERS)
def test_an_answer_has_one_shape(order: str) -> None:
    server = Answerer()
    plaintexts, final = ORDERS[order](*server.start(), server.ending())
    fails(server.asking, server.answer(*plaintexts, final=final))


def test_a_plaintext_answer_is_none() -> None:
    for plain in (
        b'{"choices": []}',
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"data: [DONE]\n\n",
        b"\x01" + b'{"choices": [{"message": {"content": "hello, this is not encrypted"}}]}' * 3,
        b"\x02" + streamed().answer[1:],
        b"",
    ):
        fails(streamed().asking, plain)


def test_an_answer_that_fails_late_stays_failed() -> None:
    made = streamed()
    made.asking.feed(made.answer)
    made.asking.finish()
    with pytest.raises(IntegrityError):
        made.asking.feed(b"\0")
    with pytest.raises(IntegrityError):
        made.asking.finish()


def test_an_answering_cannot_be_made_to_use_a_nonce_twice() -> None:
    answering: Answering = taken(RING, Asking(RING.current(NOON), HEAD, b"x").request)
    answering.request()
    seen = {answering.head(200, JSON, True)[ANSWER_PREFIX + 4 :]}
    for attempt in range(20):
        seen.add(answering.body(b"same")[4:])
        with pytest.raises(CloisterError):
            answering.head(200, JSON, True)
        assert len(seen) == attempt + 2
    answering.end(NOON)
    for again in (lambda: answering.end(NOON), lambda: answering.body(b"same")):
        with pytest.raises(CloisterError):
            again()
