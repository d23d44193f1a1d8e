from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError
from cloister.privacy import accounting
from cloister.privacy.accounting import (
    Cost,
    Event,
    Everyone,
    FixedSize,
    Gaussian,
    IntegerGaussian,
    IntegerLaplace,
    Laplace,
    MixedGaussian,
    Poisson,
    PureDP,
    RandomisedResponse,
    Relation,
    epsilon,
    read_events,
    renyi,
    write_events,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "events.json").read_text())

INTEGER = IntegerGaussian(1e6, 900.0, 14, 3, 2.0**-110)
MIXED = MixedGaussian(1e6, 900.0, 14, 3, 2.0**-110, 2)
LAPLACE = IntegerLaplace(40.0, 10.0, 3, 2.0**-110)
EVENTS = [
    Event(Gaussian(1.0, 1.0), Poisson(0.01), "zero-out", 10),
    Event(INTEGER, Poisson(0.5, 1000), "zero-out", 1),
    Event(INTEGER, Poisson(0.1, 1000, 120), "zero-out", 3),
    Event(INTEGER, FixedSize(1000, 10), "replace-one", 5),
    Event(INTEGER, Everyone(), "replace-one", 1),
    Event(MIXED, Poisson(0.25), "zero-out", 7),
    Event(Laplace(2.0, 1.0), Poisson(1.0), "zero-out", 2),
    Event(LAPLACE, Everyone(), "zero-out", 2**40),
    Event(PureDP(0.5), Everyone(), "replace-one", 1),
    Event(RandomisedResponse(1.0, 5), Everyone(), "zero-out", 4),
]


def test_equal_events_have_equal_bytes() -> None:
    assert read_events(write_events(EVENTS)) == tuple(EVENTS)
    whole = Event(Gaussian(1, 2), Everyone(), "zero-out", 1)  # type: ignore[arg-type]
    real = Event(Gaussian(1.0, 2.0), Everyone(), "zero-out", 1)
    assert whole == real
    assert hash(whole) == hash(real)
    assert write_events([whole]) == write_events([real])
    assert write_events(read_events(write_events([real]))) == write_events([real])


@given(
    st.floats(1e-3, 1.0),
    st.floats(1e-6, 1e9, allow_nan=False),
    st.floats(1e-3, 1e3),
    st.integers(1, 2**40),
    st.sampled_from(["poisson", "capped", "everyone"]),
)
def test_any_event_survives_being_written(
    rate: float, sigma: float, sensitivity: float, count: int, kind: str
) -> None:
    samplers = {"poisson": Poisson(rate), "capped": Poisson(rate, 10**6, 500), "everyone": Everyone()}
    event = Event(Gaussian(sigma, sensitivity), samplers[kind], "zero-out", count)
    assert read_events(write_events([event])) == (event,)


@pytest.mark.parametrize("vector", VECTORS, ids=[str(v["about"]) for v in VECTORS])
def test_version_one_means_what_it_meant(vector: dict[str, object]) -> None:
    """Bytes, epsilon and Renyi cost as they were when version 1 was made."""
    text = str(vector["events"]).encode()
    events = read_events(text)
    assert write_events(events) == text
    assert epsilon(events, 1e-5) == pytest.approx(vector["epsilon at delta 1e-5"], rel=2e-3)
    assert renyi(events, 8).rdp == pytest.approx(vector["rdp at order 8"], rel=1e-9)


def test_vectors_cover_every_kind() -> None:
    kinds = {
        event[part]["kind"]
        for vector in VECTORS
        for event in json.loads(vector["events"])
        for part in ("mechanism", "sampler")
    }
    tags = {
        struct.__struct_config__.tag
        for name in accounting.__all__
        if isinstance(struct := getattr(accounting, name), type)
        and issubclass(struct, msgspec.Struct)
        and struct not in (Event, Cost)
    }
    assert kinds == tags


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda e: e.update(extra=1), "version 1"),
        (lambda e: e.update(version=2), "version 1"),
        (lambda e: e["mechanism"].update(kind="cauchy"), "version 1"),
        (lambda e: e["mechanism"].update(seed=1), "version 1"),
        (lambda e: e["sampler"].pop("rate"), "version 1"),
        (lambda e: e.update(count="10"), "version 1"),
        (lambda e: e.update(count=2.5), "version 1"),
        (lambda e: e.update(relation="add-or-remove"), "version 1"),
        (lambda e: e.update(relation="replace-one"), "not under replace-one"),
        (lambda e: e["sampler"].update(rate=1.5), "rate is out of range"),
        (lambda e: e["sampler"].update(cap=5), "no size"),
        (lambda e: e["mechanism"].update(sigma=0), "sigma is out of range"),
        (lambda e: e.update(count=0), "count of an event"),
        (lambda e: e.update(count=True), "version 1"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(
    change: Callable[[dict[str, object]], object], what: str
) -> None:
    event = json.loads(write_events(EVENTS[:1]))[0]
    change(event)
    with pytest.raises(InputError, match=what):
        read_events(json.dumps([event]).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 10_000, b"[null]", b"nul", b'[{"version":1}]'])
def test_noise_is_no_list_of_events(data: bytes) -> None:
    with pytest.raises(InputError):
        read_events(data)


@given(st.data())
def test_a_byte_changed_is_read_or_refused_never_a_crash(data: st.DataObject) -> None:
    text = bytearray(write_events(EVENTS))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255))
    try:
        events = read_events(bytes(text))
    except CloisterError:
        return
    assert read_events(write_events(events)) == events


@pytest.mark.parametrize(
    ("mechanism", "sampler", "relation", "reason"),
    [
        (INTEGER, FixedSize(100, 10), "zero-out", "fixed-size batch is not a Poisson sample"),
        (INTEGER, Poisson(0.1), "replace-one", "proved under zero-out, not under replace-one"),
        (MIXED, FixedSize(100, 10), "replace-one", "Gaussian noise alone"),
        (LAPLACE, FixedSize(100, 10), "replace-one", "Gaussian noise alone"),
        (MIXED, Poisson(0.1, 100, 20), "zero-out", "capped"),
        (LAPLACE, Poisson(0.1, 100, 20), "zero-out", "capped"),
        (PureDP(1.0), Poisson(0.1), "zero-out", "no sampled form"),
        (RandomisedResponse(1.0, 3), Poisson(0.1), "zero-out", "no sampled form"),
    ],
)
def test_what_no_theorem_covers_is_refused_with_its_reason(
    mechanism: accounting.Mechanism, sampler: accounting.Sampler, relation: Relation, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        Event(mechanism, sampler, relation, 1)
    assert refused.value.fix


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Poisson(0.0), "rate"),
        (lambda: Poisson(float("nan")), "rate"),
        (lambda: Poisson(0.1, cap=10), "no size"),
        (lambda: Poisson(0.1, 0), "size"),
        (lambda: FixedSize(10, 11), "batch"),
        (lambda: FixedSize(10, 0), "batch"),
        (lambda: Gaussian(float("inf"), 1.0), "sigma"),
        (lambda: Gaussian(1.0, -1.0), "sensitivity"),
        (lambda: IntegerGaussian(23.9, 5.0, 14, 3, 0.0), "below 8 grid units"),
        (lambda: IntegerGaussian(24.0, 5.0, 0, 3, 0.0), "coordinates"),
        (lambda: IntegerGaussian(24.0, 5.0, 1, 0, 0.0), "shares"),
        (lambda: IntegerGaussian(24.0, 5.0, 1, 3, -1e-9), "distance"),
        (lambda: MixedGaussian(24.0, 5.0, 1, 3, 0.0, 0), "sites"),
        (lambda: IntegerLaplace(1.0, 0.5, 1, 0.0), "sensitivity"),
        (lambda: PureDP(0.0), "epsilon"),
        (lambda: RandomisedResponse(1.0, 1), "categories"),
        (lambda: Cost(-1e-9, 0.0), "divergence"),
        (lambda: Cost(0.0, float("inf")), "delta"),
        (lambda: Cost(0.0, 0.0, 1), "order"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        make()


def test_events_are_frozen() -> None:
    with pytest.raises(AttributeError):
        EVENTS[0].count = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        EVENTS[0].sampler.rate = 0.5  # type: ignore[misc,union-attr]


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, cloister.privacy.accounting;"
        "print([m for m in ('dp_accounting', 'scipy', 'pandas', 'torch', 'opendp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_there() -> None:
    assert all(hasattr(accounting, name) for name in accounting.__all__)
