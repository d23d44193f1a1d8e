from __future__ import annotations

import math

import numpy as np
import pytest
from tests.privacy.auditing.worlds import gaussian_delta

from cloister.errors import InputError
from cloister.privacy.auditing import GaussianTradeOff, PrivacyCurve

ALARMS = np.linspace(0.0, 1.0, 201)


def test_the_curve_of_a_gaussian_lies_just_below_its_own_trade_off() -> None:
    for mu in (0.3, 1.0, 2.5):
        exact = GaussianTradeOff(mu)
        curve = PrivacyCurve([(e, gaussian_delta(mu, e)) for e in np.linspace(0.0, 14.0, 400)])
        for alarm in ALARMS:
            assert exact.missed(alarm) - 0.01 <= curve.missed(alarm) <= exact.missed(alarm) + 1e-9


@pytest.mark.parametrize("tradeoff", [GaussianTradeOff(1.2), PrivacyCurve([(0.3, 0.1), (1.0, 1e-3)])])
def test_a_trade_off_is_symmetric_convex_and_falls(tradeoff: GaussianTradeOff | PrivacyCurve) -> None:
    values = np.array([tradeoff.missed(alarm) for alarm in ALARMS])
    assert (np.diff(values) <= 1e-12).all()
    assert (np.diff(values, 2) >= -1e-9).all()
    assert (values <= 1.0 - ALARMS + 1e-12).all()
    for alarm, value in zip(ALARMS, values, strict=True):
        assert tradeoff.missed(value) <= alarm + 1e-9  # its own inverse, where it does not stand still


def test_perfect_privacy_and_none() -> None:
    assert GaussianTradeOff(0.0).missed(0.25) == pytest.approx(0.75)
    assert PrivacyCurve([(0.0, 0.0)]).missed(0.25) == pytest.approx(0.75)
    assert PrivacyCurve([(0.0, 1.0)]).missed(0.0) == 0.0
    assert GaussianTradeOff(0.0).missed(0.0) == 1.0


def test_nonsense_is_refused() -> None:
    for bad in ([], [(-1.0, 0.0)], [(0.0, 2.0)], [(math.nan, 0.0)], [(math.inf, 0.0)]):
        with pytest.raises(InputError):
            PrivacyCurve(bad)
    with pytest.raises(InputError):
        GaussianTradeOff(-1.0)
