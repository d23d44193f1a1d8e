"""What both noises share: where randomness comes from, blocks, rings, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tests.privacy.mechanisms.goodness import fixed_random, replay

from cloister.crypto import Keystream
from cloister.errors import InputError
from cloister.privacy import mechanisms
from cloister.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, sampling
from cloister.privacy.mechanisms.sampling import IntegerNoise

NOISES = [DiscreteGaussian(8.0), DiscreteGaussian(2.0**40), DiscreteLaplace(20.0), DiscreteLaplace(1e5)]


def test_exports() -> None:
    assert mechanisms.__all__ == sorted(mechanisms.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(mechanisms, name) for name in mechanisms.__all__)


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_two_calls_differ_whatever_is_seeded(noise: IntegerNoise) -> None:
    seen = []
    for _ in range(3):
        np.random.seed(0)
        seen.append(tuple(noise.sample(64).tolist()))
    assert len(set(seen)) == 3
    first, second = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    noise.add_into(first)
    noise.add_into(second)
    assert not np.array_equal(first, second)


def test_every_call_asks_the_operating_system_once_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    random = fixed_random("system")

    def urandom(length: int) -> bytes:
        asked.append(length)
        return random(length)

    monkeypatch.setattr(sampling.os, "urandom", urandom)
    noise = DiscreteGaussian(2.0**40)
    noise.sample(20_000)
    noise.add_into(np.zeros(10, np.uint16))
    assert asked == [32, 32]


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_no_two_elements_of_a_call_share_random_bytes(
    noise: IntegerNoise, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[int, int]] = []
    take = Keystream.bytes

    def watch(self: Keystream, length: int, offset: int = 0) -> bytes:
        ranges.append((offset, offset + length))
        return take(self, length, offset)

    monkeypatch.setattr(Keystream, "bytes", watch)
    noise.sample(20_000)
    ranges.sort()
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 16 * 20_000 * len(noise._levels)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize("count", [0, 1, 14, 8191, 8192, 8193, 20_000])
@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint16])
def test_adding_is_sampling_modulo_the_ring(noise: IntegerNoise, count: int, dtype: type) -> None:
    samples = noise.sample(count, insecure_test_random=lambda n: replay()[:n])
    assert samples.dtype == np.int64
    assert samples.shape == (count,)
    target = np.arange(count).astype(dtype)
    expected = (np.arange(count) + samples).astype(dtype)
    noise.add_into(target, insecure_test_random=lambda n: replay()[:n])
    assert target.dtype == dtype
    assert np.array_equal(target, expected)


def test_a_matrix_is_a_target_and_int64_wraps_around() -> None:
    noise = DiscreteGaussian(8.0)
    samples = noise.sample(12, insecure_test_random=lambda n: replay()[:n]).reshape(3, 4)
    target = np.full((3, 4), 2**63 - 1, np.int64)
    noise.add_into(target, insecure_test_random=lambda n: replay()[:n])
    assert [int(v) for v in target.flat] == [
        (2**63 - 1 + int(s) + 2**63) % 2**64 - 2**63 for s in samples.flat
    ]


def test_other_targets_are_refused_and_left_alone() -> None:
    noise = DiscreteGaussian(8.0)
    locked = np.zeros(4, np.uint32)
    locked.flags.writeable = False
    for target in (
        np.zeros(4),
        np.zeros(4, np.int32),
        np.zeros(4, np.uint8),
        np.zeros(4, ">u4"),
        np.zeros(8, np.uint32)[::2],
        np.zeros((4, 4), np.uint32).T[:2],
        locked,
    ):
        with pytest.raises(InputError, match="int64, uint32 or uint16"):
            noise.add_into(target)  # type: ignore[arg-type]
        assert not target.any()
    with pytest.raises(InputError, match="negative"):
        noise.sample(-1)


@pytest.mark.parametrize("parameter", [math.nan, math.inf, -1.0, 0.0, 0.049, 2.0**56 * 1.001])
def test_other_parameters_are_refused(parameter: float) -> None:
    with pytest.raises(InputError, match="variance must be"):
        DiscreteGaussian(parameter)
    with pytest.raises(InputError, match="scale must be"):
        DiscreteLaplace(parameter)


def test_what_is_shown_is_the_public_parameter_and_nothing_else() -> None:
    noise = DiscreteGaussian(2.0**40)
    noise.sample(10)
    assert repr(noise) == str(noise) == "DiscreteGaussian(variance=1099511627776.0)"
    assert (noise.variance, DiscreteLaplace(3).scale) == (2.0**40, 3.0)
    assert repr(DiscreteLaplace(3)) == "DiscreteLaplace(scale=3.0)"
    kept = [name for kind in type(noise).__mro__ for name in getattr(kind, "__slots__", ())]
    assert sorted(kept) == ["_distance", "_levels", "_variance"]
    assert not hasattr(noise, "__dict__")
    with pytest.raises(AttributeError):
        noise.variance = 1.0  # type: ignore[misc]


def test_tables_are_made_once_and_cannot_be_written() -> None:
    first, second = DiscreteGaussian(123.0), DiscreteGaussian(123.0)
    assert first._levels is second._levels
    ((_, table),) = first._levels
    with pytest.raises(ValueError, match="read-only"):
        table._high[0] = 0
