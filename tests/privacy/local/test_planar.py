from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from tests.privacy.local.randomness import epsilon_shown, stream

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.privacy.local import PlanarLaplace, Rectangle, Region, estimate_cells, estimate_position
from cloister.privacy.local.planarnoise import (
    MIN_RATE,
    _drawn,
    coordinate_variance,
    masses,
    planar_distance,
    planar_noise,
)
from cloister.privacy.local.positions import transition
from cloister.privacy.mechanisms import DiscreteLaplace

TOWN = Region((48.0, 48.3), (11.4, 11.8))
PLANT = Rectangle((0.0, 400.0), (0.0, 300.0))


def drawn(rate: float, reach: int) -> NDArray[np.float64]:
    """P(z) of what the code draws: both coordinates discrete Laplace, kept with the chance that thresholds give."""
    used = rate * (1 - 1e-9)
    scale = math.sqrt(2) / used * (1 + 1e-15)
    side = np.arange(-reach, reach + 1, dtype=np.longdouble)
    manhattan = np.abs(side)[:, None] + np.abs(side)[None, :]
    t = np.maximum(used * np.sqrt(side[:, None] ** 2 + side[None, :] ** 2) - manhattan / scale, 0)
    weights = np.exp(-manhattan / scale) * np.exp(-t)
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0, 4.0])
def test_chances_on_the_lattice_differ_by_exp_of_rate_times_distance_at_most(rate: float) -> None:
    reach = math.ceil(60 / rate)
    chances = drawn(rate, reach)
    for shift in ((1, 0), (0, 1), (1, 1), (3, -2), (-4, 0)):
        a, b = shift
        here = chances[max(a, 0) : len(chances) + min(a, 0), max(b, 0) : len(chances) + min(b, 0)]
        there = chances[max(-a, 0) : len(chances) + min(-a, 0), max(-b, 0) : len(chances) + min(-b, 0)]
        worst = float(np.max(here / there))
        assert worst <= math.exp(rate * math.hypot(a, b))
        assert worst >= math.exp(rate * math.hypot(a, b)) * (1 - 1e-6)  # reached right behind the nearer one


@pytest.mark.parametrize("rate", [0.1, 1.0, 1.7, 3.0, 8.0])
def test_two_thirds_of_the_draws_are_kept(rate: float) -> None:
    """What the bound on the distance divides by."""
    side = np.arange(-math.ceil(60 / rate), math.ceil(60 / rate) + 1)
    decay = math.exp(-rate / math.sqrt(2))
    kept = np.exp(-rate * np.hypot(side[:, None], side[None, :])).sum() / ((1 + decay) / (1 - decay)) ** 2
    assert kept > 2 / 3
    assert planar_distance(rate) >= 4 / kept * DiscreteLaplace(_drawn(rate)[1]).distance


@pytest.mark.parametrize("rate", [0.4, 1.5])
def test_drawn_noise_follows_those_chances(rate: float) -> None:
    z = planar_noise(rate, 60_000, StreamRandom(bytes(32)), insecure_test_random=stream(1))
    reach = math.ceil(60 / rate)
    expected = masses(rate, reach) * len(z)
    seen = np.zeros_like(expected)
    np.add.at(seen, (np.clip(z[:, 0] + reach, 0, 2 * reach), np.clip(z[:, 1] + reach, 0, 2 * reach)), 1)
    keep = expected > 5
    observed = np.append(seen[keep], seen[~keep].sum())
    wanted = np.append(expected[keep], expected[~keep].sum())
    assert stats.chisquare(observed, wanted).pvalue > 1e-6


def test_noise_is_drawn_wider_than_it_is_claimed_by_more_than_arithmetic_costs() -> None:
    """The proof's last step: (rate - drawn) * 1 step exceeds 6e-13 at the least rate there is."""
    for rate in (MIN_RATE, 0.01, 8.0):
        narrower, scale = _drawn(rate)
        assert rate - narrower > 6e-13
        assert scale * narrower >= math.sqrt(2)


def test_a_square_noise_is_not_taken_for_a_round_one() -> None:
    """The wrong variant that forgets to reject: product Laplace gives far more away along the diagonal."""
    rate, scale = 0.5, math.sqrt(2) / 0.5
    side = np.arange(-80, 81)
    square = np.exp(-(np.abs(side)[:, None] + np.abs(side)[None, :]) / scale)
    assert float(np.max(square[2:, 2:] / square[:-2, :-2])) == pytest.approx(
        math.exp(rate * math.hypot(2, 2))
    )
    assert float(np.max(square[2:, :] / square[:-2, :])) < math.exp(
        rate * 2
    )  # there it hides more than it must
    tight = np.exp(-rate * (np.abs(side)[:, None] + np.abs(side)[None, :]))
    assert float(np.max(tight[2:, 2:] / tight[:-2, :-2])) > math.exp(rate * math.hypot(2, 2))


def test_a_fine_lattice_is_the_planar_laplace_of_the_paper() -> None:
    rate = 0.01
    z = planar_noise(rate, 100_000, StreamRandom(bytes(32)), insecure_test_random=stream(2))
    radius = np.hypot(z[:, 0], z[:, 1]) * rate
    assert stats.kstest(radius, stats.gamma(2).cdf).pvalue > 1e-6  # C(r) = 1 - (1 + er) exp(-er), equation 3
    angle = np.arctan2(z[:, 1], z[:, 0])
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-6
    assert z[:, 0].var() == pytest.approx(coordinate_variance(rate), rel=0.03)
    assert planar_distance(rate) < 1e-30


@pytest.mark.parametrize("rate", [0.049, 0.051])
def test_both_ways_to_the_variance_meet(rate: float) -> None:
    side = np.arange(-1200, 1201) ** 2
    assert coordinate_variance(rate) == pytest.approx(float(masses(rate, 1200).sum(axis=1) @ side), rel=1e-5)


SMALL = PlanarLaplace(Rectangle((0.0, 4000.0), (0.0, 3000.0)), 0.0008, 1000.0)


def test_truncated_chances_by_brute_force() -> None:
    first, second = SMALL.sides[0] + 1, SMALL.sides[1] + 1
    reach = 60
    chances = masses(SMALL.rate, reach)
    brute = np.zeros((first * second, first * second))
    side = np.arange(-reach, reach + 1)
    for i in range(first):
        for j in range(second):
            ends = (
                np.clip(i + side, 0, first - 1)[:, None] * second + np.clip(j + side, 0, second - 1)[None, :]
            )
            brute[i * second + j] = np.bincount(ends.reshape(-1), chances.reshape(-1), first * second)
    assert transition(SMALL) == pytest.approx(brute, abs=1e-12)


def test_truncated_chances_differ_by_exp_epsilon_d_at_most() -> None:
    """Section 4.3: cutting off at the region's border costs nothing."""
    chances = transition(SMALL)
    second = SMALL.sides[1] + 1
    for x in range(len(chances)):
        for y in range(len(chances)):
            d = 1000.0 * math.hypot(x // second - y // second, x % second - y % second)
            assert float(np.max(chances[x] / chances[y])) <= math.exp(SMALL.epsilon * d) * (1 + 1e-9)


def test_positions_between_lattice_points_pay_for_the_step_and_no_more() -> None:
    chances = transition(SMALL)
    second = SMALL.sides[1] + 1
    generator = np.random.default_rng(0)
    pairs = generator.uniform([0, 0], [4000, 3000], (400, 2, 2))
    pairs[:50, 1] = pairs[:50, 0] + generator.uniform(-3, 3, (50, 2))  # close together, some across a border
    pairs[0] = [[1499.9, 1499.9], [1500.1, 1500.1]]
    excess = []
    for x, y in np.clip(pairs, 0, [4000, 3000]):
        (i, j), (k, m) = SMALL.points(np.stack([x, y]))
        worst = float(np.max(np.log(chances[i * second + j] / chances[k * second + m])))
        excess.append(worst - SMALL.epsilon * math.dist(x, y))
    assert max(excess) <= SMALL.epsilon * math.sqrt(2) * SMALL.step * (1 + 1e-9)
    assert max(excess) > 0  # so the term is not for nothing


def test_released_positions_are_lattice_points_of_the_region() -> None:
    planar = PlanarLaplace.of(TOWN, 0.0005)
    positions = np.tile([[48.137, 11.575], [48.0, 11.4], [60.0, -20.0]], (2000, 1))
    released = planar.perturb(positions)
    points = planar.read(released)
    assert np.array_equal(planar.region.from_plane(points * planar.step), released)
    assert released.min(axis=0).tolist() >= [48.0, 11.4]
    assert np.all(released.max(axis=0) <= [48.3, 11.8])
    with pytest.raises(InputError, match="no point"):
        planar.read(released + 1e-5)


def test_the_default_step_is_a_hundredth_of_the_range() -> None:
    for epsilon, step in ((0.01, 1.0), (0.005, 2.0), (0.003, 2.0), (0.0004, 20.0), (math.log(4) / 200, 1.0)):
        assert PlanarLaplace.of(TOWN, epsilon).step == step


def test_an_attacker_finds_no_more_than_epsilon_d() -> None:
    """Two places 100 m apart, told apart along the line through them."""
    planar = PlanarLaplace.of(TOWN, 0.01, truncated=False)
    north = planar.region.metres_per_degree[0]
    here, there = (
        planar.perturb(
            np.tile([48.1 + metres / north, 11.5], (40_000, 1)), insecure_test_random=stream(int(metres))
        )
        for metres in (0.0, 100.0)
    )
    shown = epsilon_shown(there[:, 0], here[:, 0])
    assert 0.3 < shown <= 0.01 * 100 * (1 + 0.0142)


def test_noise_of_a_quarter_and_a_seeded_stream_are_caught() -> None:
    claimed, wrong = 0.01, PlanarLaplace.of(PLANT, 0.04, truncated=False)
    here, there = (
        wrong.perturb(np.tile([100.0, y], (40_000, 1)), insecure_test_random=stream(int(y)))
        for y in (100.0, 200.0)
    )
    assert epsilon_shown(there[:, 1], here[:, 1]) > claimed * 100
    positions = np.tile([[100.0, 100.0]], (50, 1))
    seeded = [wrong.perturb(positions, insecure_test_random=stream(0)) for _ in range(2)]
    fresh = [wrong.perturb(positions) for _ in range(2)]
    assert np.array_equal(*seeded)
    assert not np.array_equal(*fresh)


def geodesic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Metres between two positions on WGS 84, by Vincenty's inverse formula (1975)."""
    axis, f = 6378137.0, 1 / 298.257223563
    u1, u2 = (math.atan((1 - f) * math.tan(math.radians(p[0]))) for p in (a, b))
    turn = math.radians(b[1] - a[1])
    angle = turn
    for _ in range(200):
        x = math.cos(u2) * math.sin(angle)
        y = math.cos(u1) * math.sin(u2) - math.sin(u1) * math.cos(u2) * math.cos(angle)
        sin_s = math.hypot(x, y)
        if sin_s == 0:
            return 0.0
        cos_s = math.sin(u1) * math.sin(u2) + math.cos(u1) * math.cos(u2) * math.cos(angle)
        s = math.atan2(sin_s, cos_s)
        sin_a = math.cos(u1) * math.cos(u2) * math.sin(angle) / sin_s
        cos2_a = 1 - sin_a**2
        middle = cos_s - 2 * math.sin(u1) * math.sin(u2) / cos2_a if cos2_a else 0.0
        c = f / 16 * cos2_a * (4 + f * (4 - 3 * cos2_a))
        before = angle
        angle = turn + (1 - c) * f * sin_a * (s + c * sin_s * (middle + c * cos_s * (2 * middle**2 - 1)))
        if abs(angle - before) < 1e-14:
            break
    polar = axis * (1 - f)
    u = cos2_a * (axis**2 - polar**2) / polar**2
    big_a = 1 + u / 16384 * (4096 + u * (u * (320 - 175 * u) - 768))
    big_b = u / 1024 * (256 + u * (u * (74 - 47 * u) - 128))
    change = (
        big_b
        * sin_s
        * (
            middle
            + big_b
            / 4
            * (cos_s * (2 * middle**2 - 1) - big_b / 6 * middle * (4 * sin_s**2 - 3) * (4 * middle**2 - 3))
        )
    )
    return polar * big_a * (s - change)


def test_the_geodesic_is_right() -> None:
    """Flinders Peak to Buninyong, published for WGS 84's close relative GRS 80."""
    flinders = np.array([-(37 + 57 / 60 + 3.72030 / 3600), 144 + 25 / 60 + 29.52440 / 3600])
    buninyong = np.array([-(37 + 39 / 60 + 10.15610 / 3600), 143 + 55 / 60 + 35.38390 / 3600])
    assert geodesic(flinders, buninyong) == pytest.approx(54972.271, abs=0.001)


@given(
    st.floats(-84, 84),
    st.floats(0.001, 12),
    st.floats(-180, 120),
    st.floats(0.001, 60),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_plane_never_makes_a_distance_longer(
    south: float, height: float, west: float, width: float, seed: int
) -> None:
    try:
        region = Region((south, south + height), (west, west + width))
    except InputError:
        return
    generator = np.random.default_rng(seed)
    corners = np.array([region.latitude, region.longitude]).T
    places = generator.uniform(corners[0], corners[1], (12, 2))
    places[:4] = [corners[0], corners[1], [corners[0, 0], corners[1, 1]], [corners[1, 0], corners[0, 1]]]
    plane = region.to_plane(places)
    assert region.from_plane(plane) == pytest.approx(places, abs=1e-9)
    for i in range(12):
        for j in range(i):
            assert math.dist(plane[i], plane[j]) <= geodesic(places[i], places[j]) * (1 + 1e-9) + 1e-6


def test_a_plane_without_the_margin_would_make_some_distances_longer() -> None:
    """Two places on the northern edge: the geodesic runs north of it, and is shorter than the edge."""
    region = Region((48.0, 50.0), (0.0, 20.0))
    edge = np.array([[50.0, 0.0], [50.0, 20.0]])
    true = geodesic(edge[0], edge[1])
    parallel = (
        6378137.0 * math.cos(math.radians(50)) / math.sqrt(1 - 0.00669438 * math.sin(math.radians(50)) ** 2)
    )
    assert parallel * math.radians(20) > true
    assert math.dist(*region.to_plane(edge)) <= true


def test_the_price_of_the_plane_is_stated() -> None:
    assert TOWN.stretch < 1.01
    with pytest.raises(InputError, match="too wide"):
        Region((18.0, 54.0), (73.0, 120.0))
    wide = Region((47.0, 55.0), (6.0, 15.0))
    assert 1.1 < wide.stretch < 1.25


def test_mean_positions_are_unbiased_and_intervals_cover() -> None:
    planar = PlanarLaplace.of(TOWN, 0.005, truncated=False)
    generator = np.random.default_rng(1)
    true = generator.uniform([48.05, 11.45], [48.25, 11.75], (60, 2))
    trials = 1500
    released = planar.perturb(np.tile(true, (trials, 1)), insecure_test_random=stream(9)).reshape(
        trials, -1, 2
    )
    estimates = [estimate_position(planar, rows) for rows in released]
    for axis in (0, 1):
        found = np.array([each[axis].value for each in estimates])
        assert abs(found.mean() - true[:, axis].mean()) < 5 * found.std() / math.sqrt(trials)
        assert np.mean([each[axis].deviation for each in estimates]) == pytest.approx(found.std(), rel=0.06)
        assert (
            0.93
            <= np.mean([each[axis].low <= true[:, axis].mean() <= each[axis].high for each in estimates])
            < 0.98
        )


def test_cells_are_unbiased_and_intervals_cover() -> None:
    cells = np.array([[0, 0]] * 120 + [[2, 1]] * 200 + [[4, 3]] * 30 + [[3, 3]] * 50)
    trials = 800
    released = SMALL.perturb(np.tile(cells * 1000.0, (trials, 1)), insecure_test_random=stream(4))
    rows = released.reshape(trials, -1, 2)
    estimates = [estimate_cells(SMALL, each) for each in rows]
    for (i, j), true in {(0, 0): 120, (2, 1): 200, (4, 3): 30, (3, 3): 50, (1, 1): 0}.items():
        found = np.array([each[i][j].value for each in estimates])
        assert abs(found.mean() - true) < 5 * found.std() / math.sqrt(trials)
        assert np.mean([each[i][j].deviation for each in estimates]) == pytest.approx(found.std(), rel=0.1)
        assert 0.92 <= np.mean([each[i][j].low <= true <= each[i][j].high for each in estimates]) <= 0.98


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Region((48.0, 47.0), (11.0, 12.0)), "region in degrees"),
        (lambda: Region((86.0, 87.0), (11.0, 12.0)), "region in degrees"),
        (lambda: Region((0.0, 1.0), (0.0, 61.0)), "region in degrees"),
        (lambda: Region((math.nan, 1.0), (0.0, 1.0)), "region in degrees"),
        (lambda: Rectangle((0.0, 0.0), (0.0, 1.0)), "two finite bounds"),
        (lambda: Rectangle((0.0, math.inf), (0.0, 1.0)), "two finite bounds"),
        (lambda: PlanarLaplace.of(PLANT, 0.0), "positive"),
        (lambda: PlanarLaplace.of(PLANT, math.nan), "positive"),
        (lambda: PlanarLaplace(PLANT, 0.01, 0.001), "0.001 to 8"),
        (lambda: PlanarLaplace(PLANT, 0.01, 10_000.0), "0.001 to 8"),
        (lambda: PlanarLaplace(PLANT, 0.001, 350.0), "does not fit"),
        (lambda: PlanarLaplace.of(Region((80.0, 80.4), (0.0, 1.0)), 1e-5, truncated=False), "leave"),
        (lambda: PlanarLaplace.of(PLANT, 0.01).perturb(np.array([[math.nan, 1.0]])), "pairs"),
        (lambda: PlanarLaplace.of(PLANT, 0.01).perturb(np.array([1.0, 2.0])), "pairs"),
        (lambda: estimate_position(PlanarLaplace.of(PLANT, 0.01), np.zeros((3, 2))), "truncated"),
        (lambda: estimate_cells(PlanarLaplace.of(PLANT, 0.01), np.zeros((3, 2))), "at most 1024"),
        (
            lambda: estimate_cells(PlanarLaplace.of(PLANT, 0.01, truncated=False), np.zeros((3, 2))),
            "truncated",
        ),
        (lambda: estimate_cells(SMALL, np.zeros((0, 2))), "no released"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()  # type: ignore[operator]


def test_it_is_data() -> None:
    for region in (TOWN, PLANT):
        planar = PlanarLaplace.of(region, 0.01)
        assert msgspec.json.decode(msgspec.json.encode(planar), type=PlanarLaplace) == planar
