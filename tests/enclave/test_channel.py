from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.enclave.doubles import NOON, AppraiserDouble, AttesterDouble

from cloister.crypto import HpkePrivateKey, KemSuite
from cloister.enclave import Evidence
from cloister.enclave.channel import MAX_FRAME, Channel, Initiator, Offered, Responder
from cloister.errors import InputError, IntegrityError, PolicyRefused

PURPOSE = "cloister/test/v1"


def responder(attester: AttesterDouble | None = None, purpose: str = PURPOSE) -> Responder:
    return Responder(purpose, HpkePrivateKey.generate(), (attester or AttesterDouble()).attest)


def opened(
    attester: AttesterDouble | None = None, appraiser: AppraiserDouble | None = None
) -> tuple[Channel, Channel]:
    initiator = Initiator(PURPOSE, appraiser or AppraiserDouble())
    offer, waiting = responder(attester).offer(initiator.hello())
    opening, ours = initiator.open(offer, NOON)
    return ours, waiting.accept(opening)


def test_frames_travel_both_ways_and_end() -> None:
    ours, theirs = opened()
    assert theirs.open(ours.seal(b"question")) == b"question"
    assert not theirs.ended
    assert theirs.open(ours.seal(b"", final=True)) == b""
    assert theirs.ended
    theirs.finish()
    answers = [theirs.seal(b"one"), theirs.seal(b"two"), theirs.seal(b"three", final=True)]
    assert [ours.open(each) for each in answers] == [b"one", b"two", b"three"]
    ours.finish()
    with pytest.raises(InputError, match="final"):
        ours.seal(b"more")


def test_what_broke_off_is_not_taken_for_complete() -> None:
    ours, theirs = opened()
    theirs.open(ours.seal(b"half"))
    with pytest.raises(IntegrityError, match="broke off"):
        theirs.finish()


def test_claims_are_there_once_it_is_open() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder().offer(initiator.hello())
    assert initiator.claims is None
    initiator.open(offer, NOON)
    assert initiator.claims is not None
    assert not initiator.claims.software_only


@pytest.mark.parametrize("what", ["drop", "repeat", "swap", "final", "number", "other channel", "reflect"])
def test_frames_that_are_not_as_sent_do_not_open(what: str) -> None:
    ours, theirs = opened()
    first, second = ours.seal(b"first"), ours.seal(b"second")
    if what in ("drop", "swap"):
        frame = second
    elif what == "repeat":
        theirs.open(first)
        frame = first
    elif what == "final":
        frame = first[:8] + b"\x01" + first[9:]
    elif what == "number":
        theirs.open(first)
        frame = second[:7] + b"\x00" + second[8:]
    elif what == "other channel":
        frame = opened()[0].seal(b"first")
    else:
        frame = theirs.seal(b"first")
    with pytest.raises(IntegrityError):
        theirs.open(frame)


def test_every_bit_of_a_frame_counts() -> None:
    ours, theirs = opened()
    frame = ours.seal(b"prompt")
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            theirs.open(changed)
    assert theirs.open(frame) == b"prompt"  # what failed did not count


def test_evidence_that_the_owner_refuses_opens_nothing() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder(AttesterDouble(hardware=False)).offer(initiator.hello())
    with pytest.raises(PolicyRefused, match="not hardware-protected"):
        initiator.open(offer, NOON)
    with pytest.raises(InputError, match="Begin anew"):  # its nonce is used
        initiator.open(offer, NOON)


def tampered(offer: bytes, index: int, value: bytes) -> bytes:
    fields = msgspec.msgpack.decode(offer)
    fields[index] = value
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize("careless", [False, True])
def test_a_relay_that_puts_its_own_key_in_is_refused(careless: bool) -> None:
    """Also by a policy that overlooks report data: the channel does not."""
    initiator = Initiator(PURPOSE, AppraiserDouble(unbound=careless))
    offer, _ = responder().offer(initiator.hello())
    own = HpkePrivateKey.generate().public_key.to_bytes()
    with pytest.raises(PolicyRefused, match="freshness"):
        initiator.open(tampered(offer, 3, own), NOON)


@pytest.mark.parametrize("careless", [False, True])
def test_recorded_evidence_is_refused(careless: bool) -> None:
    attester = AttesterDouble()
    service = responder(attester)
    service.offer(Initiator(PURPOSE, AppraiserDouble()).hello())
    initiator = Initiator(PURPOSE, AppraiserDouble(unbound=careless))
    offer, _ = service.offer(initiator.hello())
    with pytest.raises(PolicyRefused, match="freshness"):
        initiator.open(tampered(offer, 4, attester.made[0].to_json()), NOON)


def test_evidence_for_another_purpose_is_refused() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder(purpose="cloister/other/v1").offer(initiator.hello())
    with pytest.raises(PolicyRefused, match="freshness"):
        initiator.open(offer, NOON)


def test_an_offer_to_somebody_else_is_refused() -> None:
    other = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder().offer(other.hello())
    initiator = Initiator(PURPOSE, AppraiserDouble())
    initiator.hello()
    with pytest.raises(InputError, match="another hello"):
        initiator.open(offer, NOON)


def test_an_offer_is_opened_once() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, waiting = responder().offer(initiator.hello())
    opening, _ = initiator.open(offer, NOON)
    waiting.accept(opening)
    with pytest.raises(IntegrityError, match="opened before"):
        waiting.accept(opening)


def test_a_recorded_opening_opens_no_later_offer_to_the_same_hello() -> None:
    service, initiator = responder(), Initiator(PURPOSE, AppraiserDouble())
    hello = initiator.hello()
    offer, _ = service.offer(hello)
    opening, _ = initiator.open(offer, NOON)
    _, later = service.offer(hello)
    with pytest.raises(InputError, match="another offer"):
        later.accept(opening)


def test_every_bit_of_an_opening_counts() -> None:
    key, initiator = HpkePrivateKey.generate(), Initiator(PURPOSE, AppraiserDouble())
    hello = initiator.hello()
    offer, _ = Responder(PURPOSE, key, AttesterDouble().attest).offer(hello)
    opening, _ = initiator.open(offer, NOON)
    Offered(key, hello, offer).accept(opening)
    for bit in range(0, 8 * len(opening), 7):
        changed = bytearray(opening)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((InputError, IntegrityError)):
            Offered(key, hello, offer).accept(changed)


def test_a_key_of_another_suite_is_refused() -> None:
    with pytest.raises(InputError, match="ML-KEM768-X25519"):
        Responder(PURPOSE, HpkePrivateKey.generate(KemSuite.X25519), AttesterDouble().attest)


def test_a_frame_has_a_limit() -> None:
    ours, theirs = opened()
    with pytest.raises(InputError, match="Split"):
        ours.seal(bytes(MAX_FRAME + 1))
    with pytest.raises(IntegrityError):
        theirs.open(bytes(MAX_FRAME + 26))


def test_nothing_secret_is_shown() -> None:
    ours, _ = opened()
    with pytest.raises(Exception, match=r"secret|pickle|copied"):
        ours.__reduce__()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_message_is_bad_input(data: bytes) -> None:
    initiator, service = Initiator(PURPOSE, AppraiserDouble()), responder()
    _, waiting = service.offer(initiator.hello())
    with pytest.raises(InputError):
        service.offer(data)
    with pytest.raises(InputError):
        initiator.open(data, NOON)
    with pytest.raises(InputError):
        waiting.accept(data)


def test_an_offer_without_evidence_is_bad_input() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder().offer(initiator.hello())
    with pytest.raises(InputError, match="evidence"):
        initiator.open(tampered(offer, 4, b"{}"), NOON)


def test_evidence_of_no_known_maker_is_refused() -> None:
    initiator = Initiator(PURPOSE, AppraiserDouble())
    offer, _ = responder(AttesterDouble(maker=b"another")).offer(initiator.hello())
    with pytest.raises(PolicyRefused, match="nobody known"):
        initiator.open(offer, NOON)


def test_evidence_is_asked_for_with_report_data_of_64_bytes() -> None:
    asked: list[bytes] = []
    attester = AttesterDouble()

    def attest(data: bytes) -> Evidence:
        asked.append(data)
        return attester.attest(data)

    service = Responder(PURPOSE, HpkePrivateKey.generate(), attest)
    for _ in range(3):
        service.offer(Initiator(PURPOSE, AppraiserDouble()).hello())
    assert {len(each) for each in asked} == {64}
    assert len(set(asked)) == 3
