from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from cloister.crypto import decrypt, encrypt
from cloister.errors import InputError, IntegrityError
from cloister.learning import checkpoint, load_checkpoint, save_checkpoint

KEY, PLAN = bytes(range(32)), b"\x07" * 32
ARRAYS = {"params": np.arange(5.0), "tail": np.ones((2, 3))}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_file_is_what_the_library_and_one_call_make(tmp_path: Path, dtype: type) -> None:
    arrays = {"b": np.arange(700_000, dtype=dtype).reshape(2, -1), "a": np.ones(3, dtype=np.float64)}
    save_checkpoint(tmp_path / "x", KEY, plan_digest=PLAN, round=1, arrays=arrays)
    data = (tmp_path / "x").read_bytes()[len(checkpoint._MAGIC) :]
    plain = decrypt(KEY, data, checkpoint._bound_to(PLAN, 1))
    for name, array in load(plain).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
    (tmp_path / "x").write_bytes(
        checkpoint._MAGIC + encrypt(KEY, save(arrays), checkpoint._bound_to(PLAN, 1))
    )
    again = load_checkpoint(tmp_path / "x", KEY, plan_digest=PLAN, round=1)
    assert {name: array.dtype for name, array in again.items()} == {"b": dtype, "a": np.float64}
    np.testing.assert_array_equal(again["b"], arrays["b"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "state.checkpoint"
    save_checkpoint(target, KEY, plan_digest=PLAN, round=9, arrays=ARRAYS)
    return target


def test_arrays_come_back(path: Path) -> None:
    again = load_checkpoint(path, KEY, plan_digest=PLAN, round=9)
    assert again.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(again[name], array)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_opens_for_its_own_key_plan_and_round_alone(path: Path) -> None:
    for key, plan, done in (
        (os.urandom(32), PLAN, 9),
        (KEY, b"\x08" * 32, 9),
        (KEY, PLAN, 10),
        (KEY, PLAN, 8),
    ):
        with pytest.raises(IntegrityError):
            load_checkpoint(path, key, plan_digest=plan, round=done)


def test_the_parameters_are_not_in_the_file(path: Path) -> None:
    assert np.arange(5.0).tobytes() not in path.read_bytes()
    assert b"params" not in path.read_bytes()


def test_no_byte_may_change_and_none_may_be_missing(path: Path) -> None:
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(IntegrityError):
            load_checkpoint(path, KEY, plan_digest=PLAN, round=9)
    for length in (0, 5, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(IntegrityError):
            load_checkpoint(path, KEY, plan_digest=PLAN, round=9)


def test_what_a_member_wrote_wrongly_is_refused(path: Path) -> None:
    """The key is shared by all members: content is checked even where it decrypts."""
    bound = checkpoint._bound_to(PLAN, 9)
    for plain in (b"not safetensors", save({"params": np.zeros(3, dtype=np.int32)})):
        path.write_bytes(checkpoint._MAGIC + encrypt(KEY, plain, bound))
        with pytest.raises(IntegrityError):
            load_checkpoint(path, KEY, plan_digest=PLAN, round=9)


def test_floats_alone_are_written_and_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        save_checkpoint(tmp_path / "x", KEY, plan_digest=PLAN, round=0, arrays={"a": np.zeros(2, np.int64)})
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "none", KEY, plan_digest=PLAN, round=0)
