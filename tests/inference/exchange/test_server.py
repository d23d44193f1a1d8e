"""Keys of a service: made, offered, rotated, retired, destroyed."""

from __future__ import annotations

import gc
from datetime import datetime, timedelta

import pytest
from tests.inference.exchange.exchanges import DIGEST, HEAD, JSON, MODEL, NOON, exchanged, new_ring, taken

from cloister.crypto import HpkePrivateKey
from cloister.errors import InputError, ProtocolError
from cloister.inference.exchange import (
    REFUSAL_STATUS,
    REQUEST_PREFIX,
    Asking,
    KeyRing,
    Refused,
    StaleKey,
    TooLarge,
    server,
)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def request_to(ring: KeyRing, at: datetime = NOON) -> bytes:
    return Asking(ring.current(at), HEAD, b"x").request


def test_a_key_set_is_offered_for_its_lifetime() -> None:
    ring = new_ring(accelerators=3)
    first = ring.current(after(0.9))
    assert (first.not_before, first.not_after) == (NOON, after(3600 + 600))
    assert (first.model, first.model_digest, first.accelerators) == (MODEL, DIGEST, 3)
    assert ring.current(after(3599.9)) is first
    second = ring.current(after(3600))
    assert second.digest != first.digest
    assert second.encryption_key != first.encryption_key
    assert second.receipt_key != first.receipt_key


def test_a_retired_key_is_taken_for_the_overlap_and_then_no_more() -> None:
    ring = new_ring()
    requests = [request_to(ring) for _ in range(3)]
    ring.current(after(3600))
    taken(ring, requests[0], after(3601))
    taken(ring, requests[1], after(4199))
    for at in (4200, 4201, 4199):  # a clock that goes back brings nothing back
        with pytest.raises(StaleKey):
            ring.open(requests[2][:REQUEST_PREFIX], after(at))


def test_opening_rotates_too() -> None:
    ring = new_ring()
    old = request_to(ring)
    taken(ring, old, after(3700))
    assert ring.current(after(3700)).not_before == after(3700)
    late = new_ring()
    old = request_to(late)
    with pytest.raises(StaleKey):
        late.open(old[:REQUEST_PREFIX], after(10_000))


def test_an_answer_begun_before_its_key_was_retired_is_signed() -> None:
    ring = new_ring()
    asking = Asking(ring.current(NOON), HEAD, b"x")
    answering = taken(ring, asking.request)
    answering.request()
    begun = answering.head(200, JSON, True)
    ring.current(after(3600))
    ring.current(after(9000))
    asking.feed(begun + answering.body(b"slow") + answering.end(after(9000)))
    assert asking.receipt.at == after(9000)


def test_a_destroyed_key_is_in_no_object_though_an_answer_under_it_goes_on() -> None:
    def held(public: bytes) -> int:
        gc.collect()
        # by type: `isinstance` would ask strangers' objects for their class, and some warn of that
        found = (thing for thing in gc.get_objects() if type(thing) is HpkePrivateKey)
        return sum(key.public_key.to_bytes() == public for key in found)

    ring = new_ring()
    public = ring.current(NOON).encryption_key
    answering = taken(ring, request_to(ring))
    answering.request()
    answering.head(200, JSON, True)
    ring.current(after(3600))
    assert held(public) == 1
    ring.current(after(4200))
    assert held(public) == 0
    answering.body(b"still")
    last = ring.current(after(4200)).encryption_key
    assert held(last) == 1
    ring.close()
    assert held(last) == 0


def test_a_sealed_secret_opens_once_for_the_life_of_its_key() -> None:
    ring = new_ring()
    request = request_to(ring)
    taken(ring, request)
    for at in (NOON, after(10), after(3700), after(4199)):
        with pytest.raises(Refused):
            ring.open(request[:REQUEST_PREFIX], at)
    with pytest.raises(StaleKey):
        ring.open(request[:REQUEST_PREFIX], after(4200))


def test_a_secret_counts_as_opened_even_where_its_frames_are_cut() -> None:
    ring = new_ring()
    request = request_to(ring)
    ring.open(request[:REQUEST_PREFIX], NOON)
    with pytest.raises(Refused):
        ring.open(request[:REQUEST_PREFIX], NOON)


def test_many_requests_rotate_early_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_REQUESTS", 3)
    ring = new_ring()
    first = ring.current(NOON)
    requests = [request_to(ring) for _ in range(8)]
    for request in requests[:3]:
        taken(ring, request)
    assert ring.current(after(1)) is not first
    for request in requests[3:6]:  # clients that have not heard yet
        taken(ring, request, after(2))
    with pytest.raises(StaleKey):
        ring.open(requests[6][:REQUEST_PREFIX], after(2))
    with pytest.raises(StaleKey):
        ring.open(requests[0][:REQUEST_PREFIX], after(2))


def test_early_retired_keys_live_for_the_overlap_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_REQUESTS", 1)
    ring = new_ring()
    used, unused = request_to(ring), request_to(ring)
    taken(ring, used)
    ring.current(after(10))
    with pytest.raises(StaleKey):
        ring.open(unused[:REQUEST_PREFIX], after(610))


def test_at_most_two_retired_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_REQUESTS", 1)
    ring = new_ring()
    spare = []
    for _ in range(4):
        spare.append(request_to(ring))
        taken(ring, request_to(ring))
    with pytest.raises(StaleKey):
        ring.open(spare[0][:REQUEST_PREFIX], NOON)
    with pytest.raises(StaleKey):
        ring.open(spare[1][:REQUEST_PREFIX], NOON)
    taken(ring, spare[2])


def test_a_closed_ring_opens_and_signs_nothing() -> None:
    ring = new_ring()
    waiting, asking = request_to(ring), Asking(ring.current(NOON), HEAD, b"x")
    answering = taken(ring, asking.request)
    answering.request()
    answering.head(200, JSON, False)
    ring.close()
    ring.close()
    with pytest.raises(InputError, match="destroyed"):
        answering.end(NOON)
    for attempt in (lambda: ring.current(NOON), lambda: ring.open(waiting[:REQUEST_PREFIX], NOON)):
        with pytest.raises(InputError, match="closed"):
            attempt()


def test_two_rings_have_nothing_in_common() -> None:
    one, other = new_ring(), new_ring()
    with pytest.raises(StaleKey):
        other.open(request_to(one)[:REQUEST_PREFIX], NOON)
    assert one.current(NOON).digest != other.current(NOON).digest


def test_randomness_is_the_system_s_unless_a_test_says_otherwise() -> None:
    fixed = [new_ring(insecure_test_random=bytes).current(NOON).digest for _ in range(2)]
    assert fixed[0] == fixed[1]
    made = exchanged(new_ring(insecure_test_random=bytes))
    made.asking.feed(made.answer)
    assert made.asking.ending.answer_salt == bytes(32)


@pytest.mark.parametrize("cut", [0, 1, 33, 1200, 1202])
def test_a_prefix_has_its_length(cut: int) -> None:
    ring = new_ring()
    with pytest.raises(Refused):
        ring.open((request_to(ring) + bytes(10))[:cut], NOON)


def test_what_a_ring_is_given_is_checked() -> None:
    for wrong in ({"lifetime": 0}, {"lifetime": 400 * 86_400}, {"overlap": -1}, {"max_body": -1}):
        with pytest.raises(InputError):
            new_ring(**wrong)
    with pytest.raises(InputError):
        KeyRing("", DIGEST, lifetime=60, overlap=0).current(NOON)
    with pytest.raises(InputError, match="zone"):
        new_ring().current(datetime(2026, 5, 4))


def test_refusals_say_one_of_four_words() -> None:
    assert {kind.reason for kind in (Refused, StaleKey, TooLarge)} < set(REFUSAL_STATUS)
    assert dict(REFUSAL_STATUS) == {"stale-key": 409, "request": 400, "busy": 503, "too-large": 413}
    assert all(issubclass(kind, ProtocolError) for kind in (Refused, StaleKey, TooLarge))
    assert not issubclass(StaleKey, Refused)
