from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange.frames import ANSWER, REQUEST, FrameOpener, FrameSealer

KEY = bytes(range(32))


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.binary(max_size=300), max_size=8), st.binary(max_size=300), st.lists(st.integers(0)))
def test_frames_open_however_the_stream_is_cut(plain: list[bytes], last: bytes, cuts: list[int]) -> None:
    sealer, opener = FrameSealer(KEY, REQUEST), FrameOpener(KEY, REQUEST)
    stream = b"".join([*map(sealer.seal, plain), sealer.seal(last, final=True)])
    assert len(stream) == sum(len(each) + 20 for each in (*plain, last))
    found = [each for chunk in chunks(stream, cuts) for each in opener.feed(chunk)]
    assert found == [*plain, last]
    assert opener.ended
    opener.finish()
    assert opener.feed(b"") == []


def test_one_byte_at_a_time_the_largest_frame_opens() -> None:
    sealer, opener = FrameSealer(KEY, ANSWER), FrameOpener(KEY, ANSWER)
    stream = sealer.seal(bytes(65_536)) + sealer.seal(b"end", True)
    found = [each for at in range(len(stream)) for each in opener.feed(stream[at : at + 1])]
    assert found == [bytes(65_536), b"end"]


@given(st.integers(0), st.integers(1, 255))
def test_no_byte_can_be_changed(where: int, by: int) -> None:
    sealer = FrameSealer(KEY, REQUEST)
    stream = bytearray(sealer.seal(b"first") + sealer.seal(b"second", True))
    stream[where % len(stream)] ^= by
    opener = FrameOpener(KEY, REQUEST)

    def read() -> None:
        for at in range(0, len(stream), 9):
            opener.feed(stream[at : at + 9])
        opener.finish()  # a length that grew waits for more

    with pytest.raises(IntegrityError):
        read()


def test_nothing_opens_after_an_error() -> None:
    sealer, opener = FrameSealer(KEY, REQUEST), FrameOpener(KEY, REQUEST)
    first, second = sealer.seal(b"first"), sealer.seal(b"second", True)
    with pytest.raises(IntegrityError):
        opener.feed(first + second[:-1] + b"?")
    for attempt in (first, second, b""):
        with pytest.raises(IntegrityError):
            opener.feed(attempt)
    assert not opener.ended
    with pytest.raises(IntegrityError):
        opener.finish()


def test_an_error_after_the_final_frame_is_one() -> None:
    sealer, opener = FrameSealer(KEY, REQUEST), FrameOpener(KEY, REQUEST)
    opener.feed(sealer.seal(b"all", True))
    opener.finish()
    with pytest.raises(IntegrityError):
        opener.feed(b"\x00")
    with pytest.raises(IntegrityError):
        opener.finish()


@pytest.mark.parametrize("length", [0, 15, 65_553, 0x7FFF_FFFF])
def test_a_length_that_cannot_be_is_refused_before_its_bytes_come(length: int) -> None:
    for final in (0, 1 << 31):
        with pytest.raises(IntegrityError):
            FrameOpener(KEY, REQUEST).feed((length | final).to_bytes(4, "big"))


def test_limits_of_a_sealer() -> None:
    sealer = FrameSealer(KEY, REQUEST)
    with pytest.raises(InputError, match="65536"):
        sealer.seal(bytes(65_537))
    sealer.seal(bytes(65_536), final=True)
    with pytest.raises(InputError, match="after the final"):
        sealer.seal(b"")


def test_buffers_of_any_kind_are_taken_and_not_kept() -> None:
    sealer, opener = FrameSealer(KEY, REQUEST), FrameOpener(KEY, REQUEST)
    frame = bytearray(sealer.seal(memoryview(b"one")) + sealer.seal(bytearray(b"two"), True))
    assert opener.feed(memoryview(frame)[:30]) == [b"one"]
    late = bytearray(frame[30:])
    assert opener.feed(memoryview(late)[:5]) == []
    rest = bytes(late[5:])
    late[:] = bytes(len(late))
    assert opener.feed(rest) == [b"two"]


def test_neither_end_shows_its_key() -> None:
    for end in (FrameSealer(KEY, REQUEST), FrameOpener(KEY, REQUEST)):
        assert KEY.hex() not in repr(end)
        assert "secret" in repr(end)
