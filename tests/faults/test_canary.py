from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.canary import Canary, Search, search_bytes, search_command_line, search_files

WORD = Canary.text("passphrase", "correct horse battery")
ROW = Canary.numbers("a row", [61.5, 132.25, 3.0625, 170.0])


def forms(content: bytes, canary: Canary) -> set[str]:
    return {hit.form for hit in search_bytes([canary], content)}


@pytest.mark.parametrize("shift", range(3))
def test_text_is_found_however_it_is_written(shift: int) -> None:
    around = os.urandom(30 + shift), os.urandom(30)
    value = b"correct horse battery"
    assert "plain" in forms(around[0] + value + around[1], WORD)
    assert "hex" in forms((around[0] + value + around[1]).hex().encode(), WORD)
    assert "HEX" in forms((around[0] + value + around[1]).hex().upper().encode(), WORD)
    assert "utf-16-le" in forms("correct horse battery".encode("utf-16"), WORD)
    assert f"base64+{shift}" in forms(base64.b64encode(around[0] + value + around[1]), WORD)


@given(st.binary(max_size=20), st.binary(min_size=10, max_size=40), st.binary(max_size=20))
def test_bytes_in_base64_are_found_wherever_they_lie(before: bytes, value: bytes, after: bytes) -> None:
    canary = Canary.secret("key", value)
    assert forms(base64.b64encode(before + value + after), canary)
    assert forms(base64.urlsafe_b64encode(before + value + after), canary)


@pytest.mark.parametrize("code", ["<f8", ">f8", "<f4", ">f4"])
def test_numbers_side_by_side_are_found_in_every_format(code: str) -> None:
    row = np.array([61.5, 132.25, 3.0625, 170.0]).astype(code)
    assert forms(os.urandom(13) + row.tobytes() + os.urandom(5), ROW) == {code}


def test_numbers_are_found_as_decimals() -> None:
    assert forms(json.dumps({"row": [61.5, 132.25, 3.0625, 170.0]}).encode(), ROW)
    assert forms(b"61.5,132.25,3.0625,170.0\n", ROW)


def test_what_is_not_there_is_not_found() -> None:
    noise = random.Random(1).randbytes(1 << 22)  # noqa: S311  # noise need not be secret
    assert not search_bytes([WORD, ROW, Canary.secret("key", bytes(range(32)))], noise)


def test_a_value_too_short_to_be_told_from_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="no form is long enough"):
        Canary.secret("short", b"a")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(0, 200))
def test_a_stream_in_pieces_is_as_good_as_whole(sizes: list[int], place: int) -> None:
    whole = bytes(place) + b"correct horse battery" + bytes(60)
    search, at, turn = Search([WORD], "wire"), 0, 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        search.feed(whole[at : at + size])
        at, turn = at + size, turn + 1
    assert search.seen == len(whole)
    assert [(hit.canary, hit.form, hit.source, hit.offset) for hit in search.hits] == [
        ("passphrase", "plain", "wire", place)
    ]


def test_files_are_searched_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "deep" / "deeper" / "log").write_bytes(bytes((4 << 20) - 7) + b"correct horse battery")
    (tmp_path / "correct horse battery").write_bytes(b"")
    (tmp_path / "clean").write_bytes(b"nothing")
    hits = search_files([WORD], tmp_path)
    assert {(Path(hit.source).name, hit.offset) for hit in hits if not hit.source.startswith("name")} == {
        ("log", (4 << 20) - 7)
    }
    assert [hit.source for hit in hits if hit.source.startswith("name")] == [
        f"name of {tmp_path}/correct horse battery"
    ]
    assert "correct" not in repr([hit.canary for hit in hits])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        search_files([WORD], tmp_path / "absent")


def test_arguments_of_a_process_are_searched() -> None:
    command = [sys.executable, "-c", "input()", "correct horse battery"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # the process has been made and does not run yet
        assert search_command_line([WORD], process.pid)
        assert not search_command_line([ROW], process.pid)
        process.communicate(b"\n")
