from __future__ import annotations

import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import Identity
from cloister.errors import IntegrityError, ProtocolError
from cloister.runtime import Channel
from cloister.runtime.channel import peek

STUDY = bytes(range(32))
HUB, SITE, STRANGER = (Identity.generate(name) for name in ("hub", "site", "stranger"))


def pair(study: bytes = STUDY) -> tuple[Channel, Channel]:
    hub = Channel(HUB, SITE.public, study, initiator=True)
    site = Channel(SITE, HUB.public, study, initiator=False)
    assert site.receive(hub.hello) == []
    assert hub.receive(site.hello) == []
    return hub, site


def test_messages_go_both_ways_in_order() -> None:
    hub, site = pair()
    assert [site.receive(hub.seal(text)) for text in (b"one", b"two")] == [[b"one"], [b"two"]]
    assert hub.receive(site.seal(b"three")) == [b"three"]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=6))
def test_reordered_and_repeated_frames_are_delivered_once_in_order(
    order: list[int], repeats: list[int]
) -> None:
    hub, site = pair()
    frames = [hub.seal(bytes([number])) for number in range(6)]
    delivered = [payload for number in [*order, *repeats] for payload in site.receive(frames[number])]
    assert delivered == [bytes([number]) for number in range(6)]


def test_a_frame_may_overtake_its_hello() -> None:
    hub = Channel(HUB, SITE.public, STUDY, initiator=True)
    site = Channel(SITE, HUB.public, STUDY, initiator=False)
    site.receive(hub.hello)
    assert hub.receive(site.seal(b"early")) == []
    assert hub.receive(site.hello) == [b"early"]


def test_the_payload_is_not_readable_on_the_wire() -> None:
    hub, _ = pair()
    assert b"canary-4711" not in hub.seal(b"canary-4711" * 10)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_changed_bit_is_refused_and_changes_nothing(data: st.DataObject) -> None:
    hub, site = pair()
    frame = bytearray(hub.seal(b"payload"))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((ProtocolError, IntegrityError)):
        assert site.receive(bytes(frame)) == ["never"]
    frame[:] = hub.seal(b"next")  # what was refused did not move the session on
    assert site.receive(bytes(frame)) == []


def test_a_frame_of_another_study_is_refused() -> None:
    other, _ = pair(bytes(32))
    _, site = pair()
    with pytest.raises(ProtocolError, match="another study"):
        site.receive(other.seal(b"x"))


def test_a_frame_of_an_older_session_is_refused() -> None:
    old, _ = pair()
    _, site = pair()
    with pytest.raises(ProtocolError, match="another session"):
        site.receive(old.seal(b"x"))


def test_a_frame_is_not_accepted_back_by_its_sender() -> None:
    hub, _ = pair()
    with pytest.raises(ProtocolError):
        hub.receive(hub.seal(b"x"))


def test_a_hello_signed_by_somebody_else_is_refused() -> None:
    impostor = Channel(Identity.generate("hub"), SITE.public, STUDY, initiator=True)
    site = Channel(SITE, HUB.public, STUDY, initiator=False)
    with pytest.raises(IntegrityError):
        site.receive(impostor.hello)
    assert not site.ready


def test_a_second_hello_cannot_reset_a_session() -> None:
    hub, site = pair()
    with pytest.raises(ProtocolError, match="second session"):
        site.receive(Channel(HUB, SITE.public, STUDY, initiator=True).hello)
    assert site.receive(hub.seal(b"still here")) == [b"still here"]


def test_the_same_hello_again_is_a_duplicate() -> None:
    hub, site = pair()
    assert site.receive(hub.hello) == []
    assert hub.receive(site.hello) == []
    assert site.receive(hub.seal(b"still here")) == [b"still here"]


def test_what_others_send_before_the_hello_does_no_harm() -> None:
    _, old_site = pair()
    hub = Channel(HUB, SITE.public, STUDY, initiator=True)
    site = Channel(SITE, HUB.public, STUDY, initiator=False)
    site.receive(hub.hello)
    early = site.seal(b"early")
    forged = msgspec.msgpack.decode(early)
    forged[4] = bytes(range(64))  # ciphertext
    with pytest.raises(IntegrityError):
        hub.receive(msgspec.msgpack.encode(forged))
    assert hub.receive(old_site.seal(b"of an older session")) == []
    assert [hub.receive(early) for _ in range(20)] == [[]] * 20
    assert hub.receive(site.hello) == [b"early"]
    assert hub.receive(site.seal(b"next")) == [b"next"]


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.runtime.channel.MAX_MESSAGE", 1000)
    hub, site = pair()
    frames = [hub.seal(bytes(400)) for _ in range(4)]
    assert [site.receive(frame) for frame in frames[1:3]] == [[], []]
    with pytest.raises(ProtocolError, match="too much"):
        site.receive(frames[3])
    assert len(site.receive(frames[0])) == 3
    assert len(site.receive(frames[3])) == 1


def test_a_name_that_is_none_reaches_no_log() -> None:
    frame = msgspec.msgpack.decode(pair()[0].seal(b"x"))
    frame[1] = msgspec.msgpack.encode([1, STUDY, "\x1b[2Jroot\n", "site"])
    with pytest.raises(ProtocolError, match="no channel message"):
        peek(msgspec.msgpack.encode(frame))


def test_garbage_is_refused() -> None:
    _, site = pair()
    for garbage in (b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(1000)):
        with pytest.raises(ProtocolError):
            site.receive(garbage)


def test_nothing_is_sent_before_there_is_a_session() -> None:
    with pytest.raises(ProtocolError, match="no session"):
        Channel(HUB, STRANGER.public, STUDY, initiator=True).seal(b"x")


def test_a_channel_keeps_its_keys_to_itself() -> None:
    hub, _ = pair()
    assert repr(hub) == "Channel(hub to site, open)"
    with pytest.raises(TypeError):
        pickle.dumps(hub)


def test_sessions_have_fresh_keys() -> None:
    first, _ = pair()
    second, _ = pair()
    assert first.seal(b"same") != second.seal(b"same")
