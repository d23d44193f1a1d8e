"""The study as it is passes every check, in the code and in plain loops; each wrong variant fails one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from tests.learning.private import checks
from tests.learning.private.worlds import Array, Part, naive_study

from cloister.crypto import StreamRandom
from cloister.learning import Model
from cloister.learning.private import NumpyPrivate, PrivateSettings, simulate


def real_study(
    model: Model, start: Array, parts: Sequence[Part], conf: PrivateSettings, random: StreamRandom
) -> Array:
    return simulate(NumpyPrivate(model), start, parts, conf, insecure_test_random=random)


@pytest.mark.parametrize("study", [real_study, naive_study])
@pytest.mark.parametrize("check", checks.CHECKS)
def test_what_runs_passes(study: checks.Study, check: object) -> None:
    check(study)  # type: ignore[operator]


MUTATIONS = {
    "no clipping": (partial(naive_study, clip_each=False), checks.check_sensitivity),
    "each microbatch clipped, no row": (
        partial(naive_study, clip_each=False, clip_sums=True),
        checks.check_sensitivity,
    ),
    "each microbatch clipped, and each row": (
        partial(naive_study, clip_sums=True),
        checks.check_clips_each_row,
    ),
    "divided by the rows sampled": (
        partial(naive_study, divide=lambda sampled, divisor: sampled),
        checks.check_divisor,
    ),
    "divided twice": (
        partial(naive_study, divide=lambda sampled, divisor: divisor * divisor),
        checks.check_divisor,
    ),
    "each row rounded": (partial(naive_study, round_each=True), checks.check_rounds_once),
    "a share of noise missing": (
        partial(naive_study, shares=lambda present: max(present - 1, 1)),
        checks.check_noise,
    ),
    "one noise whatever is present": (partial(naive_study, shares=lambda present: 1), checks.check_noise),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_variant_is_caught(name: str) -> None:
    study, check = MUTATIONS[name]
    with pytest.raises(AssertionError):
        check(study)


def test_rounding_each_row_breaks_nothing_but_accuracy_and_rounding_the_whole_is_not_what_runs() -> None:
    """The check tells rounding for each microbatch from rounding for each row and for the whole step."""

    def whole(
        model: Model, start: Array, parts: Sequence[Part], conf: PrivateSettings, random: StreamRandom
    ) -> Array:
        rows = sum(len(y) for _, y in parts)
        wide = PrivateSettings(
            conf.training, conf.rate, conf.clip, conf.grid, rows, conf.share_variance, conf.present
        )
        return naive_study(model, start, parts, wide, random)

    with pytest.raises(AssertionError, match="rounded once"):
        checks.check_rounds_once(whole)


def test_the_sampler_of_a_study_is_the_one_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that samples otherwise than `poisson_rows` ends elsewhere on the same coins."""
    from tests.learning.private.test_poisson import fixed_size
    from tests.learning.private.worlds import make_model, make_params, make_rows, settings, stream

    model = make_model("logistic", 4)
    start, part, conf = make_params(model), make_rows(model, 64), settings()
    real = real_study(model, start, [part], conf, stream(1))
    np.testing.assert_allclose(real, naive_study(model, start, [part], conf, stream(1)), atol=1e-12)
    other = naive_study(model, start, [part], conf, stream(1), sampler=fixed_size)
    assert np.abs(other - real).max() > 1e-3
