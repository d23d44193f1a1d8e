"""How many of n sites may collude or drop out, and how many must agree before anything is revealed.

For n sites, of which up to c collude with the hub:

- the share threshold t is more than (n + c) / 2, by default the least such integer. One choice per honest
  site then means that no two survivor lists of one attempt can both gather t answers
  (docs/proofs/secure-sum.md);
- the minimum m = max(t, c + 2, noise minimum) is the shortest survivor list a site accepts: t of its
  members can still answer, at least two of them are honest, and the noise shares suffice where there is
  noise;
- n - m sites may drop out of an attempt, at any steps of it, and it still finishes.

Two sites have no privacy from each other, since each can subtract its own vector from the sum: they are
possible only on request (`allow_two`), for a tutorial.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import PlanError

__all__ = ["MAX_PARTIES", "Params", "default_colluders"]

MAX_PARTIES = 100
"""Every pair of sites shares a mask; beyond this number that would cost more than a sparse graph does."""


@dataclass(frozen=True)
class Params:
    """The four numbers of a secure sum; `derive` makes them, the constructor only refuses nonsense.

    Args:
        parties: n, 2 to 100 sites.
        colluders: c, how many of them may work with the hub.
        threshold: t, shares needed to rebuild a secret, and signatures needed to certify a list; t > (n +
            c) / 2.
        minimum: m, the shortest survivor list; max(t, c + 2) <= m <= n.

    Raises:
        PlanError: the numbers contradict each other.
    """

    parties: int
    colluders: int
    threshold: int
    minimum: int

    def __post_init__(self) -> None:
        n, c, t, m = self.parties, self.colluders, self.threshold, self.minimum
        if any(type(value) is not int for value in (n, c, t, m)):
            raise PlanError("parties, colluders, threshold and minimum are whole numbers")
        if not 2 <= n <= MAX_PARTIES:
            raise PlanError(
                f"a secure sum of {n} sites is not possible", fix=f"Take 2 to {MAX_PARTIES} sites"
            )
        if not 0 <= c <= n - 2:
            raise PlanError(
                f"colluders = {c} of {n} sites leaves fewer than two honest ones",
                fix="Lower colluders in [aggregation], or add sites",
            )
        if 2 * t <= n + c or t > n:
            raise PlanError(
                f"threshold = {t} with {n} sites and {c} colluders",
                fix=f"Take a threshold of {least_threshold(n, c)} to {n}: more than (sites + colluders) / 2",
            )
        if m < max(t, c + 2):
            raise PlanError(
                f"a minimum of {m} survivors is too low",
                fix=f"At least {max(t, c + 2)} are needed for privacy",
            )
        if m > n:
            raise PlanError(
                f"the plan needs {m} survivors in every round and has {n} sites",
                fix="Add sites, or lower colluders, threshold or the noise minimum",
            )

    @classmethod
    def derive(
        cls,
        parties: int,
        *,
        colluders: int | None = None,
        threshold: int | None = None,
        noise_minimum: int | None = None,
        allow_two: bool = False,
    ) -> Params:
        """Fill in what the plan leaves open.

        Args:
            parties: n sites on the roster.
            colluders: c; default max(1, ceil(n / 3) - 1), and 0 for two sites.
            threshold: t; default the least integer above (n + c) / 2.
            noise_minimum: survivors whose noise shares suffice; default max(t, c + 2), which adds nothing.
            allow_two: let two sites sum. Each can then compute the other's vector; for the tutorial alone.

        Raises:
            PlanError: the numbers contradict each other, or two sites were not asked for.
        """
        if parties == 2 and not allow_two:
            raise PlanError(
                "with two sites each can compute the other's update from the sum",
                fix="Add a third site; two are possible in the tutorial alone",
            )
        if parties == 2 and colluders:
            raise PlanError("two sites cannot withstand a colluder", fix="Set colluders = 0, or add sites")
        if noise_minimum is not None and noise_minimum < 1:
            raise PlanError(
                f"noise minimum = {noise_minimum}", fix="Give a whole number of sites, at least 1"
            )
        c = colluders if colluders is not None else default_colluders(parties)
        t = threshold if threshold is not None else least_threshold(parties, c)
        return cls(parties, c, t, max(t, c + 2, noise_minimum or 0))

    @property
    def tolerated_dropouts(self) -> int:
        """How many sites may drop out of an attempt that still finishes: n - m."""
        return self.parties - self.minimum


def default_colluders(parties: int) -> int:
    """Return max(1, ceil(n / 3) - 1) for three sites and more, 0 for two."""
    return 0 if parties <= 2 else max(1, -(-parties // 3) - 1)


def least_threshold(parties: int, colluders: int) -> int:
    """Return the least integer greater than (n + c) / 2."""
    return (parties + colluders) // 2 + 1
