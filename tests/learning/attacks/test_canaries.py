from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from tests.learning.attacks.mechanisms import (
    DELTA,
    FEATURES,
    MODELS,
    claim_for,
    classes,
    events_for,
    mechanism_for,
    random_rows,
)

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.attacks import Canaries, Game, game_bounds, make_canaries, play
from cloister.learning.attacks.canarygame import _log_ratios
from cloister.privacy.accounting import epsilon
from cloister.privacy.auditing import distance_of


@pytest.mark.parametrize("name", MODELS)
def test_canaries_are_long_and_apart(name: str) -> None:
    model = MODELS[name]
    mechanism = mechanism_for(model, claim_for(model, noise=1.0, rate=0.5, steps=2))
    start = model.initial(0)
    canaries = make_canaries(mechanism, start, features=FEATURES, classes=classes(model))
    signals = mechanism.signals(start, canaries.rows, 1.0)
    lengths = np.linalg.norm(signals, axis=1)
    assert 3 <= len(canaries) <= min(24, model.size)
    assert (lengths > 0.3 * mechanism.claim.grid.clip_units).all()
    alike = np.abs(signals @ signals.T) / np.outer(lengths, lengths)
    assert (alike - np.eye(len(canaries))).max() <= 0.36


def test_a_model_that_nothing_moves_has_no_canaries() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=1.0, rate=0.5, steps=2, clip=1e12))
    with pytest.raises(InputError, match="no canary"):
        make_canaries(mechanism, np.zeros(model.size), features=FEATURES, classes=3)


def test_the_log_ratio_is_that_of_two_mixtures() -> None:
    """One canary against one number: log of (1 - q) N(0, v) + q N(p, v) over N(0, v), k sites as well."""
    model = MODELS["logistic"]
    for copies in (1, 2):
        claim = replace(
            claim_for(model, noise=1.5, rate=0.3, steps=1), sites_per_unit=copies, share_variance=1e12
        )
        signal = np.zeros((1, model.size))
        signal[0, 2] = 1.3e6
        nobody = np.zeros((0, model.size))
        deviation = np.sqrt(claim.variance)
        for place in (-2e6, 0.0, 1e6, 4e6):
            seen = np.zeros(model.size, dtype=np.int64)
            seen[2] = place
            q = claim.rate
            weights = [(1 - q), q] if copies == 1 else [(1 - q) ** 2, 2 * q * (1 - q), q * q]
            mixed = sum(w * norm.pdf(place, j * 1.3e6, deviation) for j, w in enumerate(weights))
            expected = np.log(mixed / norm.pdf(place, 0, deviation))
            assert _log_ratios(seen, signal, nobody, claim)[0] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_what_others_add_is_taken_out() -> None:
    model = MODELS["logistic"]
    claim = claim_for(model, noise=0.01, rate=1.0, steps=1)
    signal, other = np.zeros((2, model.size)), np.zeros((1, model.size))
    signal[0, 0] = signal[1, 1] = other[0, 0] = 1e6
    for inside in (0, 1):
        seen = (other[0] + inside * signal[0] + signal[1]).astype(np.int64)
        ratios = _log_ratios(seen, signal, other, claim)
        assert (ratios[0] > 0) == bool(inside)
        assert ratios[1] > 0


def coins() -> StreamRandom:
    return StreamRandom.from_seed(1, "coins")


def play_some(name: str, runs: int, **changes: object) -> tuple[Game, object]:
    model = MODELS[name]
    claim = claim_for(model, **{"noise": 2.0, "rate": 0.2, "steps": 20, **changes})  # type: ignore[arg-type]
    mechanism, start = mechanism_for(model, claim), model.initial(0)
    canaries = make_canaries(mechanism, start, features=FEATURES, classes=classes(model))
    background = random_rows(5, claim.shares, 4, model)
    return play(mechanism, start, canaries, background, runs=runs, insecure_test_random=coins()), claim


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_adversary_comes_near_to_what_the_claim_allows(name: str) -> None:
    """The best guesser of one bit is right with (1 + TV) / 2; ours must be within three points of it, not above."""
    game, claim = play_some(name, 220, noise=1.0, rate=0.2, steps=12)
    allowed = (1 + distance_of(events_for(claim, MODELS[name].size))) / 2  # type: ignore[arg-type]
    right = float(((game.white > 0) == game.included).mean())
    error = 0.5 / np.sqrt(game.canaries)
    assert allowed - 0.03 - 3 * error < right < allowed + 3 * error
    assert allowed > 0.62


def test_a_sound_mechanism_is_not_refuted_and_not_vacuously_so() -> None:
    game, claim = play_some("logistic", 60, noise=1.0, rate=0.3, steps=10)
    events = events_for(claim, MODELS["logistic"].size)  # type: ignore[arg-type]
    bound, bounds = game_bounds(game, events, DELTA, confidence=0.95)
    claimed = epsilon(events, DELTA)
    assert 0.1 * claimed < bound <= claimed
    assert bound == max(bounds[0].epsilon, bounds[1].epsilon)
    assert {each.confidence for each in bounds[:2]} == {0.975}
    assert all(0 <= each.correct <= each.guesses <= game.canaries for each in bounds)
    assert [each.attack for each in bounds] == ["white-box"] * 5 + ["black-box"]


def test_everything_in_the_clear_is_told() -> None:
    game, _ = play_some("logistic", 12, noise=0.3, rate=1.0, steps=3)
    assert game.shares()[3:].mean() > 0.95
    events = events_for(claim_for(MODELS["logistic"], noise=3.0, rate=1.0, steps=3), 7)
    bound, _ = game_bounds(game, events, DELTA, confidence=0.95)
    assert bound > epsilon(events, DELTA)


def test_the_coins_are_fair_and_the_systems() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=2.0, rate=0.2, steps=1))
    canaries = make_canaries(mechanism, np.zeros(7), features=FEATURES, classes=0)
    one, other = (play(mechanism, np.zeros(7), canaries, random_rows(5, 3, 4), runs=40) for _ in range(2))
    assert abs(one.included.mean() - 0.5) < 5 * 0.5 / np.sqrt(one.canaries)
    assert not np.array_equal(one.included, other.included)


def test_guesses_of_a_run_do_not_know_its_coins() -> None:
    """Shuffling one run's coins leaves its guesses, and those before it, as they were: only right or wrong moves."""
    rng = np.random.default_rng(0)
    included = rng.random((30, 8)) < 0.5
    white = rng.normal(size=included.shape) + included
    game = Game(included, white, white)
    changed = included.copy()
    changed[-1] = ~changed[-1]
    again = Game(changed, white, white)
    np.testing.assert_allclose(again.shares()[:-1], game.shares()[:-1])
    assert again.shares()[-1] == pytest.approx(1 - game.shares()[-1])


def test_guessing_learns_its_threshold_from_the_runs_before() -> None:
    rng = np.random.default_rng(1)
    included = rng.random((200, 5)) < 0.5
    far_off = rng.normal(size=included.shape) + 2.0 * included - 50.0  # a misstated noise shifts all ratios
    assert Game(included, far_off, far_off).shares()[20:].mean() > 0.8


def test_the_surest_are_guessed() -> None:
    included = np.array([[True, False, True, False]])
    scores = np.array([[3.0, -3.0, -1.0, 1.0]])
    game = Game(included, scores, scores)
    assert game.surest(scores, 2) == 2
    assert game.surest(scores, 4) == 2


def test_a_unit_at_two_sites_is_put_to_two() -> None:
    model = MODELS["logistic"]
    claim = claim_for(model, noise=0.01, rate=1.0, steps=1, sites_per_unit=2)
    mechanism = mechanism_for(model, claim)
    start = np.zeros(model.size)
    canaries = make_canaries(mechanism, start, features=FEATURES, classes=0)
    one = Canaries(canaries.X[:1], canaries.y[:1])
    nobody = [(np.zeros((0, FEATURES)), np.zeros(0))] * 3
    game = play(mechanism, start, one, nobody, runs=20)
    assert ((game.white > 0) == game.included).all()


def test_a_game_needs_runs_and_parts() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=1.0, rate=0.5, steps=2))
    canaries = make_canaries(mechanism, np.zeros(7), features=FEATURES, classes=0)
    for runs, sites in ((0, 3), (1, 2)):
        with pytest.raises(InputError):
            play(mechanism, np.zeros(7), canaries, random_rows(1, sites, 2), runs=runs)


def test_progress_is_told() -> None:
    model = MODELS["logistic"]
    mechanism = mechanism_for(model, claim_for(model, noise=1.0, rate=0.5, steps=1))
    canaries = make_canaries(mechanism, np.zeros(7), features=FEATURES, classes=0)
    told: list[tuple[int, int]] = []
    play(
        mechanism,
        np.zeros(7),
        canaries,
        random_rows(1, 3, 2),
        runs=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_one_canary_alone_is_a_plain_test() -> None:
    included = np.tile([[True, False], [False, True]], (200, 1))
    clear = np.where(included, 1.0, -1.0)
    events = events_for(claim_for(MODELS["logistic"], noise=1.0, rate=1.0, steps=1), 7)
    _, bounds = game_bounds(Game(included, clear, clear), events, DELTA, confidence=0.95)
    (plain,) = [bound for bound in bounds if bound.method == "one canary"]
    assert (plain.guesses, plain.correct) == (400, 400)
    # both rates with all of 200 right, at 97.5 %: Clopper and Pearson's end is 0.025^(1/200)
    end = 0.025 ** (1 / 200)
    assert plain.epsilon == pytest.approx(np.log((end - DELTA) / (1 - end)), rel=1e-6)
    same = np.zeros((50, 2), dtype=bool)
    _, bounds = game_bounds(Game(same, clear[:50], clear[:50]), events, DELTA, confidence=0.95)
    assert [bound.epsilon for bound in bounds if bound.method == "one canary"] == [0.0]
