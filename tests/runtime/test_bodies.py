from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.learning.plans import make_plan

from cloister.errors import StorageError
from cloister.mapped import forget, mapped
from cloister.runtime.bodies import (
    LEAST_BYTES,
    PART_BYTES,
    Joined,
    SealedBody,
    as_field,
    body_of,
    encode_around,
    parts_of,
)
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.hubjournal import MemoryJournal
from cloister.runtime.journal import EncryptedLog
from cloister.runtime.messages import CatchUp, Outcome, RoundStart, State, decode_message, encode_large

LARGE = os.urandom(LEAST_BYTES + 12_345)


@given(parts=st.lists(st.binary(max_size=9), max_size=6), data=st.data())
def test_joined_bodies_read_as_one(parts: list[bytes], data: st.DataObject) -> None:
    whole, body = b"".join(parts), Joined(parts)
    assert body.size == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert bytes(body.part(start, stop)) == whole[start:stop]


def test_a_message_around_a_body_has_the_bytes_of_the_plain_message() -> None:
    plain = State(3, memoryview(LARGE), False, [b"v"])
    for message in (State(3, as_field(LARGE), False, [b"v"]), State(3, as_field(b"small"), True, [])):
        body = body_of(encode_large(message))
        again = decode_message(b"".join(parts_of(body)), peer="x")
        assert isinstance(again, State)
        assert again.rounds == message.rounds
    encoded = b"".join(parts_of(body_of(encode_large(State(3, as_field(LARGE), False, [b"v"])))))
    assert encoded == msgspec.msgpack.encode(plain)
    outcome = Outcome(1, 2, ["a"], as_field(LARGE))
    two = [outcome, outcome]
    plain_outcome = Outcome(1, 2, ["a"], memoryview(LARGE))
    assert b"".join(parts_of(body_of(encode_around(two)))) == msgspec.msgpack.encode([plain_outcome] * 2)
    for kind in (CatchUp(outcome), RoundStart(1, 2, outcome)):
        assert body_of(encode_large(kind)).size > len(LARGE)


def test_nothing_large_is_copied_into_a_message() -> None:
    body = body_of(encode_large(CatchUp(Outcome(1, 2, ["a"], as_field(LARGE)))))
    inside = memoryview(body.part(100, 200))
    assert inside.obj is LARGE


def test_what_is_set_aside_comes_back_and_is_not_readable_on_the_disk(tmp_path: Path) -> None:
    plain = b"in the clear" * (PART_BYTES // 4)
    body = SealedBody(tmp_path, plain)
    assert list(tmp_path.iterdir()) == []
    assert b"".join(parts_of(body, 100_001)) == plain
    assert bytes(body.part(PART_BYTES - 3, PART_BYTES + 4)) == plain[PART_BYTES - 3 : PART_BYTES + 4]
    on_disk = os.pread(body._file, 2 * len(plain), 0)
    assert b"in the clear" not in on_disk
    assert "secret" in repr(body) or "bytes" in repr(body)
    os.pwrite(body._file, b"\x00" * 64, 0)
    body._last = (-1, b"")
    with pytest.raises(StorageError, match="altered"):
        body.part(0, 5)
    with pytest.raises(StorageError):
        SealedBody(tmp_path / "none", plain)


def test_a_journal_in_memory_keeps_a_model_as_it_was() -> None:
    """A state for who comes later may go again rounds after it was made, and a float32 model moves in place."""
    start = np.zeros(LEAST_BYTES // 4 + 5, dtype=np.float32)
    model = GlobalModel(make_plan(), start, None, spend=True)
    kept = MemoryJournal().set_aside(model.snapshot())
    start += 1.0
    again = GlobalModel(make_plan(), np.empty_like(start), None)
    again.restore(b"".join(parts_of(body_of(kept))))
    assert not again.params.any()


def test_a_mapped_file_keeps_what_leaves_memory(tmp_path: Path) -> None:
    room = mapped(tmp_path, 3_000_001)
    assert list(tmp_path.iterdir()) == []
    data = os.urandom(3_000_001)
    for start in range(0, len(data), 100_000):
        part = room[start : start + 100_000]
        part[:] = data[start : start + 100_000]
        forget(part)
    assert bytes(room) == data
    forget(room)
    assert bytes(room[5:50]) == data[5:50]
    forget(memoryview(bytearray(10_000)))  # no file: nothing happens
    with pytest.raises(StorageError, match="no room"):
        mapped(tmp_path, 1 << 60)


def test_a_log_takes_a_body_and_leaves_out_what_is_not_wanted(tmp_path: Path) -> None:
    log = EncryptedLog.create(tmp_path / "log", bytes(32))
    log.append(Joined([b"head", LARGE, b"tail"]), label=b"sum")
    log.append(b"small")
    assert [bytes(record) for record in log.records()] == [b"head" + LARGE + b"tail", b"small"]
    assert [bytes(record) for _, record in log.entries(skip=b"sum")] == [b"small"]
    log.replace([(b"sum", Joined([LARGE])), b"other"])
    assert [bytes(record) for record in log.records()] == [LARGE, b"other"]
    log.close()
    again = EncryptedLog.open(tmp_path / "log", bytes(32))
    assert [bytes(record) for _, record in again.entries(skip=b"sum")] == [b"other"]
    again.close()
