"""The parameters of CKKS, all of them fixed here. Nobody chooses any, and none is read from a file.

    linear    regression, logistic, softmax: one product with constants         N =  8,192,  96 bits of data
    hidden    one hidden layer, its activation a polynomial of degree <= 32     N = 16,384, 336 bits of data

The Homomorphic Encryption Standard (Albrecht et al. 2018, table 1) allows 218 bits in all at N = 8,192 and
438 at N = 16,384 for 128 bits of security with a ternary secret; `linear` has 152 with the special prime and
`hidden` 392. SEAL checks the same table again when it is given them (`sec_level_type::tc128`).

A row's value lies in a slot of its own; N / 2 rows share a ciphertext.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CIRCUITS", "HIDDEN", "LINEAR", "SCALE", "SCORE_LIMIT", "Circuit", "Parameters"]

Circuit = Literal["linear", "hidden"]

SCALE: Final = 2.0**40
"""By what values are multiplied before they become integers: noise of about 2**13 is 2**-27 of a value."""

SCORE_LIMIT: Final = 2.0**14
"""No score may reach this: the last modulus, of 56 bits, holds 2**15 on either side at that scale."""

_ALLOWED_BITS: Final = {8192: 218, 16384: 438}


@dataclass(frozen=True)
class Parameters:
    """One set.

    Attributes:
        circuit: what it is for.
        degree: N, of the polynomials.
        primes: the moduli; the last is for keys alone, the first is what answers come under.
    """

    circuit: Circuit
    degree: int
    primes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.bits > _ALLOWED_BITS[self.degree] or any(q % (2 * self.degree) != 1 for q in self.primes):
            raise ValueError("parameters of less than 128 bits of security")

    @property
    def bits(self) -> int:
        """Bits of all moduli together."""
        return sum(prime.bit_length() for prime in self.primes)

    @property
    def slots(self) -> int:
        """Rows in a ciphertext."""
        return self.degree // 2

    @property
    def data(self) -> tuple[int, ...]:
        """The moduli of a fresh ciphertext."""
        return self.primes[:-1]

    @property
    def scales(self) -> tuple[float, ...]:
        """What a value is multiplied by in a ciphertext of l moduli, at index l - 1.

        A product of two has the square of it, and rescaling divides by the last modulus; so the next is
        that quotient, exactly, and sums of values that came different ways agree.
        """
        found = [SCALE]
        for prime in reversed(self.data[1:]):
            found.append(found[-1] * found[-1] / prime)
        return tuple(reversed(found))


LINEAR: Final = Parameters("linear", 8192, (72057594037370881, 1099511480321, 72057594037616641))
HIDDEN: Final = Parameters(
    "hidden",
    16384,
    (
        72057594037338113,
        1099504549889,
        1099505827841,
        1099506352129,
        1099506515969,
        1099507695617,
        1099508121601,
        1099510054913,
        72057594037370881,
    ),
)
CIRCUITS: Final[dict[Circuit, Parameters]] = {"linear": LINEAR, "hidden": HIDDEN}
