"""What `[privacy]` of a plan means for a roster and a model: integers, noise, events, and both epsilons.

`PrivacyTerms.of` in this order:

1. the grid: the finest for which a batch's sum and all noise fit the ring; its sensitivity S in units covers
   rounding and floating point, or the plan is refused;
2. the noise multiplier z: as written, else the smallest that keeps `epsilon`, rounded up to four digits so
   that every party calculates the same;
3. the counted variance sigma^2 = (z S)^2 + s^2, of which the accountant sees (z S)^2 (docs/proofs);
4. each site's share: sigma^2 / (m - max(c, 1)), or sigma^2 / m where the plan writes adversary = "hub"; in
   local mode all of it;
5. the events against hub and outsiders (m shares), and with max(c, 1) sites colluding.

All parties derive the same terms from plan, roster size and model size; nothing here sees a row. Epsilons
are calculated when asked for: accounting takes a second, and a site that only trains needs none.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import PlanError
from cloister.learning.language.layout import width_of
from cloister.learning.models import Model
from cloister.learning.plan import Plan
from cloister.learning.private import Bounded, NumpyPrivate, PrivateModel, joint_sensitivity
from cloister.learning.sections import PrivacySection
from cloister.privacy.accounting import (
    MIN_SHARE_VARIANCE,
    Cost,
    Event,
    IntegerGaussian,
    MixedGaussian,
    Poisson,
    calibrate_noise,
    epsilon,
    renyi,
    rounds_within,
)
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid, share_variance
from cloister.secagg import Params

__all__ = ["PrivacyFacts", "PrivacyTerms", "private_model"]

_TABLE_DISTANCE = 2.0**-56
"""More than any sampler's table is away from its distribution; for calibration, before a table is built."""


class PrivacyFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The terms as a record keeps them: what was claimed, and all that its proof rests on.

    Attributes:
        mode, unit, sites_per_unit, adversary, delta, clip: as the plan writes them.
        clip_units: what the clip is on the grid of integers.
        noise_multiplier: deviation of the accounted noise over sensitivity.
        share_variance: variance of one site's noise, in units squared.
        events_hub: what hub and outsiders see.
        events_colluders: what a hub sees with max(c, 1) colluding sites.
    """

    mode: Literal["distributed", "local"]
    unit: str
    sites_per_unit: int | None
    adversary: Literal["colluders", "hub"]
    delta: float
    clip: float
    clip_units: int
    noise_multiplier: float
    share_variance: float
    events_hub: tuple[Event, ...]
    events_colluders: tuple[Event, ...]

    @property
    def epsilon_hub(self) -> float:
        """Epsilon at `delta` against the hub and outsiders."""
        return epsilon(self.events_hub, self.delta)

    @property
    def epsilon_colluders(self) -> float:
        """Epsilon at `delta` against a hub with max(c, 1) colluding sites; never the smaller."""
        return epsilon(self.events_colluders, self.delta)

    @property
    def epsilon_claimed(self) -> float:
        """The one of the two that `[privacy] epsilon` speaks of."""
        return self.epsilon_hub if self.adversary == "hub" else self.epsilon_colluders


def private_model(model: Model | PrivateModel) -> PrivateModel:
    """Return what clips a model's examples one by one: of a built-in model the closed form; a module does it
    itself, and so does a language model with a site's rows (`learning.torch.language.private`)."""
    return NumpyPrivate(model) if isinstance(model, Model) else model


@dataclass(frozen=True)
class PrivacyTerms:
    """What hub and sites derive alike; see the module's docstring.

    Attributes:
        section: `[privacy]` of the plan.
        grid: the integers that travel.
        coordinates: integers in a vector: the model's parameters, and one more under an adaptive clip.
        sensitivity: most that one unit moves the vector in L2, in units of the grid, rounding included.
        noise_multiplier: z, deviation of the accounted noise over sensitivity.
        share_variance: variance of one site's noise, in units squared.
        events_hub: what hub and outsiders see over all attempts of the plan.
        events_colluders: the same with max(c, 1) sites telling the hub their noise.
        block_attempts: attempts that a ledger debits at a time.
        attempts: attempts of the plan.
    """

    section: PrivacySection
    grid: IntegerGrid
    coordinates: int
    sensitivity: float
    noise_multiplier: float
    share_variance: float
    events_hub: tuple[Event, ...]
    events_colluders: tuple[Event, ...]
    block_attempts: int
    attempts: int

    @classmethod
    def of(cls, plan: Plan, params: Params, model: Bounded) -> PrivacyTerms:
        """Return the terms of a plan with `[privacy]`.

        Args:
            plan: the plan.
            params: n, c, t, m of the roster.
            model: what is trained; its size, or that of its longest window, and its float error count.

        Raises:
            PlanError: rounding would cost more than 0.5 % of the clip, or `epsilon` cannot be kept with the
                noise multiplier that is written.
        """
        if plan.privacy is None:
            raise PlanError("the plan claims no privacy", where="[privacy]", fix="Add the table")
        return cls.derive(plan, params, _coordinates(model), model.float_bound(plan.privacy.microbatch))

    @classmethod
    def derive(cls, plan: Plan, params: Params, size: int, float_bound: float) -> PrivacyTerms:
        """Return the terms as `of`, for whoever does not have the model.

        Args:
            plan: the plan.
            params: n, c, t, m of the roster.
            size: parameters that a round moves: the model's, d, or as many as its longest window has.
            float_bound: of a microbatch's sum, as `PrivateModel.float_bound`.

        Raises:
            PlanError: as `of`.
        """
        section = plan.privacy
        if section is None:
            raise PlanError("the plan claims no privacy", where="[privacy]", fix="Add the table")
        if section.sites_per_unit is not None and section.sites_per_unit > params.parties:
            raise PlanError(
                f"sites_per_unit = {section.sites_per_unit} with {params.parties} sites",
                where="[privacy] sites_per_unit",
                fix="Write at most the number of sites",
            )
        build = _Build(plan, section, params, size, float_bound)
        return build.terms(_noise_multiplier(section, build))

    @property
    def blocks(self) -> int:
        """How many blocks of attempts the whole plan takes."""
        return -(-self.attempts // self.block_attempts)

    @property
    def facts(self) -> PrivacyFacts:
        """What a record keeps of the terms."""
        section = self.section
        return PrivacyFacts(
            mode=section.mode,
            unit=section.unit,
            sites_per_unit=section.sites_per_unit,
            adversary=section.adversary,
            delta=section.delta,
            clip=section.clip,
            clip_units=self.grid.clip_units,
            noise_multiplier=self.noise_multiplier,
            share_variance=self.share_variance,
            events_hub=self.events_hub,
            events_colluders=self.events_colluders,
        )

    def rounds_that_fit(self, plan: Plan) -> int | None:
        """Return how many rounds `[privacy] epsilon` allows with this noise, None where none is written.

        Spare rounds as the plan writes them are counted in.
        """
        target = self.section.epsilon
        if target is None:
            return None
        events = self.events_hub if self.section.adversary == "hub" else self.events_colluders
        steps = events[0].count // self.attempts

        def of_rounds(rounds: int) -> tuple[Event, ...]:
            count = (rounds + plan.spare_rounds) * steps
            return tuple(msgspec.structs.replace(event, count=count) for event in events)

        most = max(2 * plan.training.rounds, 16)
        return rounds_within(target, self.section.delta, of_rounds, most)

    def as_sent(self, integers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a window's sum as it travels: zeros behind a shorter window, the bit of a clip at the end.

        Args:
            integers: int64[w], or one more under an adaptive clip.
        """
        bit = self.section.adaptive_quantile is not None
        whole = np.zeros(self.coordinates, dtype=np.int64)
        size = len(integers) - bit
        whole[:size] = integers[:size]
        if bit:
            whole[-1] = integers[-1]
        return whole

    def noise(self) -> DiscreteGaussian:
        """Return the distribution of one site's share of noise."""
        return _sampler(self.share_variance)

    def block_cost(self, order: int) -> Cost:
        """Return what one block costs a ledger whose cap has this Renyi order: the larger view's."""
        block = tuple(
            msgspec.structs.replace(event, count=event.count // self.attempts * self.block_attempts)
            for event in self.events_colluders
        )
        return renyi(block, order)


@dataclass(frozen=True)
class _Build:
    """Terms as a function of the noise multiplier."""

    plan: Plan
    section: PrivacySection
    params: Params
    size: int
    float_bound: float

    @property
    def local(self) -> bool:
        return self.section.mode == "local"

    @property
    def trusted_shares(self) -> int:
        """Shares that are counted when max(c, 1) sites collude."""
        return self.params.minimum - max(self.params.colluders, 1)

    @property
    def counted(self) -> int:
        """Shares whose summed variance is calibrated for the claim."""
        if self.local:
            return 1
        return self.params.minimum if self.section.adversary == "hub" else self.trusted_shares

    def grid(self, z: float) -> IntegerGrid:
        present = 1 if self.local else self.params.parties
        noise = 1.01 * z * math.sqrt(present / self.counted)
        batch = self.section.expected_units or self.plan.training.batch
        bits = self.plan.aggregation.bits
        assert bits != 8  # noqa: S101  # no plan has both
        return IntegerGrid.fit(bits, batch=batch, noise=noise)

    def sensitivity(self, grid: IntegerGrid) -> float:
        if self.section.by_record:
            return grid.sensitivity(self.size, self.float_bound)
        return joint_sensitivity(grid, self.size, norm_bit=self.section.adaptive_quantile is not None)

    def share(self, z: float) -> float:
        total = (z * self.sensitivity(self.grid(z))) ** 2 + MIN_SHARE_VARIANCE / 2
        if self.local:
            return total
        return share_variance(
            total,
            minimum=self.params.minimum,
            colluders=self.params.colluders,
            adversary=self.section.adversary,
        )

    def events(self, z: float, shares: int, distance: float) -> tuple[Event, ...]:
        """Return what somebody sees to whom `shares` shares of noise are unknown."""
        grid = self.grid(z)
        sensitivity, variance = self.sensitivity(grid), self.share(z) * shares
        coordinates = self.size + (self.section.adaptive_quantile is not None)
        sites = self.section.sites_per_unit or 1
        mechanism: IntegerGaussian | MixedGaussian
        if sites == 1:
            mechanism = IntegerGaussian(
                variance=variance,
                sensitivity=sensitivity,
                coordinates=coordinates,
                shares=shares,
                distance=distance,
            )
        else:
            mechanism = MixedGaussian(
                variance=variance,
                sensitivity=sensitivity,
                coordinates=coordinates,
                shares=shares,
                distance=distance,
                sites=sites,
            )
        steps = self.plan.training.local_steps if self.local else 1
        count = self.plan.attempts * steps
        sampler = Poisson(rate=self.section.rate)
        return (Event(mechanism=mechanism, sampler=sampler, relation="zero-out", count=count),)

    def claimed_events(self, z: float) -> tuple[Event, ...]:
        return self.events(z, self.counted, _TABLE_DISTANCE)

    def terms(self, z: float) -> PrivacyTerms:
        grid, share = self.grid(z), self.share(z)
        distance = _sampler(share).distance
        attempts = self.plan.attempts
        return PrivacyTerms(
            section=self.section,
            grid=grid,
            coordinates=self.size + (self.section.adaptive_quantile is not None),
            sensitivity=self.sensitivity(grid),
            noise_multiplier=z,
            share_variance=share,
            events_hub=self.events(z, 1 if self.local else self.params.minimum, distance),
            events_colluders=self.events(z, 1 if self.local else self.trusted_shares, distance),
            block_attempts=self.plan.block_attempts,
            attempts=attempts,
        )


def _noise_multiplier(section: PrivacySection, build: _Build) -> float:
    """Return z as written, else calibrated; refuse where the claim does not hold with what is written."""
    target, written = section.epsilon, section.noise_multiplier
    if written is None:
        return _calibrated(build)
    if target is not None:
        reached = epsilon(build.claimed_events(written), section.delta)
        if reached > target:
            raise PlanError(
                f"noise_multiplier = {written:g} gives epsilon {reached:.3f} and {target:g} is claimed",
                where="[privacy]",
                fix=f"Leave noise_multiplier out to have it calibrated ({_calibrated(build):g}), or train "
                "fewer rounds (`cloister study check` says how many fit)",
            )
    return written


@functools.lru_cache(maxsize=64)
def _calibrated(build: _Build) -> float:
    if build.section.epsilon is None:
        raise PlanError("there is no epsilon to calibrate for", where="[privacy]", fix="Write epsilon")
    exact = calibrate_noise(build.section.epsilon, build.section.delta, build.claimed_events)
    # four digits, upwards: the same at every party, whatever its libraries do with the last bits
    step = 10.0 ** (math.floor(math.log10(exact)) - 3)
    rounded = float(f"{math.ceil(exact / step) * step:.4g}")
    return rounded if rounded >= exact else float(f"{rounded + step:.4g}")


def _coordinates(model: Bounded) -> int:
    """Return how many parameters travel in a round; a shorter window's sum has zeros behind it."""
    windows = getattr(model, "windows", ())
    return width_of(windows) if windows else model.size


@functools.lru_cache(maxsize=64)
def _sampler(variance: float) -> DiscreteGaussian:
    return DiscreteGaussian(variance)
