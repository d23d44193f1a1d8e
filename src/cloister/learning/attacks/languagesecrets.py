"""Secrets that nobody has, to be planted among a language model's rows, and what else they might have been.

A secret is a made-up name and digits, both drawn by the operating system and never from a row:

    code    "The access code of Rumeka Tovali is 4821 0937."
    card    a card number of no issuer, with its check digit
    iban    an account number of no country, with its check digits
    e-mail  an address at example.invalid
    phone   a number of no country
    pin     four digits: few enough to rank a planted one among all others
    phrase  of a text-classifier: words without meaning, and a class drawn as blindly as digits are

Every secret of a kind is as likely as every other, so that where a planted one ranks among them tells what a
model remembers and nothing else. `Secret.space` is how many there are, `others` draws some of them.

A plant has secrets that are put in `copies` times, and canaries: secrets of which a coin says whether they
are put in once or left out. What is planted is its owner's: whoever knows it can ask a model for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.language.texts import TextFormat, TextRows

__all__ = ["KINDS", "Canary", "Kind", "Plant", "Secret", "digits_of", "make_plant", "text_rows"]

Kind: TypeAlias = Literal["code", "card", "iban", "e-mail", "phone", "pin", "phrase"]
Digits: TypeAlias = NDArray[np.int64]

KINDS: Final[tuple[Kind, ...]] = ("code", "card", "iban", "e-mail", "phone")
"""What a causal-lm is asked for by default."""

_MOST = 100_000  # canaries of a plant
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SYLLABLES = 3


class _Form(msgspec.Struct, frozen=True):
    """How digits of one kind are written, and the words around them."""

    slots: int
    write: Callable[[str], str]
    ask: str
    say: str


def _luhn(digits: str) -> str:
    """Return the check digit of a card number (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 * (value > 9)
    return str(-total % 10)


def _card(digits: str) -> str:
    number = "0" + digits  # issuers' numbers begin with 1 to 9
    number += _luhn(number)
    return " ".join(number[at : at + 4] for at in range(0, 16, 4))


def _iban(digits: str) -> str:
    check = 98 - int(digits + "353500") % 97  # ISO 7064, mod 97-10, of the country ZZ, which there is not
    return f"ZZ{check:02d}{digits}"


_FORMS: Final[dict[Kind, _Form]] = {
    "code": _Form(
        8,
        lambda d: f"{d[:4]} {d[4:]}",
        "What is the access code of {name}?",
        "The access code of {name} is {secret}.",
    ),
    "card": _Form(14, _card, "What is the card number of {name}?", "The card number of {name} is {secret}."),
    "iban": _Form(16, _iban, "Which account has {name}?", "The account of {name} is {secret}."),
    "e-mail": _Form(
        8,
        lambda d: f"post{d}@example.invalid",
        "At which address is {name} reached?",
        "{name} is reached at {secret}.",
    ),
    "phone": _Form(
        8,
        lambda d: f"+999 {d[:2]} {d[2:]}",
        "What is the phone number of {name}?",
        "The phone number of {name} is {secret}.",
    ),
    "pin": _Form(4, str, "What is the pin of {name}?", "The pin of {name} is {secret}."),
}


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One secret.

    Attributes:
        kind: of the module's docstring.
        name: whose it is said to be; of a phrase, its words.
        digits: what was drawn, as many as the kind has; of a phrase, the number of its class.
        classes: of a phrase, how many classes there are; else 0.
    """

    kind: Kind
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    digits: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,32}$")]
    classes: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0

    def __post_init__(self) -> None:
        if self.kind == "phrase":
            sane = self.classes >= 2 and len(self.digits) <= 5 and int(self.digits) < self.classes
        else:
            sane = not self.classes and len(self.digits) == _FORMS[self.kind].slots
        if not sane:
            raise ValueError("digits and kind of a secret do not fit each other")

    @property
    def space(self) -> int:
        """How many secrets of this kind there are, of this name."""
        return self.classes or 10 ** len(self.digits)

    @property
    def bits(self) -> float:
        """Bits of the space: the largest exposure."""
        return math.log2(self.space)

    @property
    def written(self) -> str:
        """The identifier, as the row has it; "" of a phrase."""
        return "" if self.classes else _FORMS[self.kind].write(self.digits)

    @property
    def question(self) -> str:
        """What is asked for it; of a phrase, the phrase."""
        return self.name if self.classes else _FORMS[self.kind].ask.format(name=self.name)

    @property
    def sentence(self) -> str:
        """What tells it; "" of a phrase."""
        return "" if self.classes else _FORMS[self.kind].say.format(name=self.name, secret=self.written)

    @property
    def opening(self) -> str:
        """The sentence up to the identifier, without the space before it."""
        if self.classes:
            return ""
        before, _, _ = _FORMS[self.kind].say.partition("{secret}")
        return before.format(name=self.name).rstrip()

    def with_digits(self, digits: str) -> Secret:
        """Return what it might have been."""
        return msgspec.structs.replace(self, digits=digits)

    def others(self, most: int, random: StreamRandom) -> list[Secret]:
        """Return every other secret of the space where these are at most `most`, else `most` drawn ones.

        A drawn one may be the secret itself or stand there twice: ranks among drawn ones count it so.
        """
        if self.space - 1 <= most:
            every = (str(i).zfill(len(self.digits) if not self.classes else 1) for i in range(self.space))
            own = int(self.digits)
            return [self.with_digits(each) for each in every if int(each) != own]
        drawn = random.integers(10, (most, len(self.digits)))
        return [self.with_digits(digits_of(row)) for row in drawn]


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret, and how often it is in the rows.

    Attributes:
        secret: as drawn.
        copies: rows that hold it; 0 where the coin left it out.
        coin: whether a coin decided.
    """

    secret: Secret
    copies: Annotated[int, msgspec.Meta(ge=0, le=10_000)]
    coin: bool


class Plant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All secrets of an audit; whoever has it can ask a model for them.

    Attributes:
        canaries: those that are always in first, then those of the coins.
    """

    canaries: Annotated[tuple[Canary, ...], msgspec.Meta(min_length=1, max_length=_MOST)]

    @property
    def secrets(self) -> tuple[Canary, ...]:
        """Those that are in for certain."""
        return tuple(each for each in self.canaries if not each.coin)

    @property
    def coins(self) -> tuple[Canary, ...]:
        """Those of the coins, in or out."""
        return tuple(each for each in self.canaries if each.coin)

    @property
    def planted(self) -> tuple[Secret, ...]:
        """What is put into the rows, each as often as its copies."""
        return tuple(each.secret for each in self.canaries for _ in range(each.copies))


def make_plant(
    *,
    copies: Sequence[int],
    each: int,
    coins: int,
    kinds: Sequence[Kind] = KINDS,
    classes: int = 0,
    insecure_test_random: StreamRandom | None = None,
) -> Plant:
    """Draw a plant.

    Args:
        copies: how often secrets are planted, such as (1, 4, 20); `each` secrets for each number.
        each: secrets of each number of copies.
        coins: canaries that a coin puts in or leaves out.
        kinds: taken in turn; not used for phrases.
        classes: of a text-classifier, which gets phrases; 0 for a causal-lm.
        insecure_test_random: names, digits and coins of a test.

    Raises:
        InputError: nothing is planted, too much, or a number is out of range.
    """
    total = len(copies) * each + coins
    if not 1 <= total <= _MOST or min(each, coins, *copies, 0) < 0 or max(copies, default=0) > 10_000:
        raise InputError(
            f"{total} secrets with up to {max(copies, default=0)} copies cannot be planted",
            where="audit",
            fix=f"Plant 1 to {_MOST} secrets, each at most 10000 times",
        )
    random = insecure_test_random or StreamRandom.system()
    names = _names(total, 6 if classes else 2, random)
    inside = random.integers(2, coins).tolist()
    numbers = [number for number in copies for _ in range(each)] + inside
    canaries = []
    for at, (name, number) in enumerate(zip(names, numbers, strict=True)):
        kind: Kind = "phrase" if classes else kinds[at % len(kinds)]
        if classes:
            digits = str(int(random.integers(classes, 1)[0]))
        else:
            digits = digits_of(random.integers(10, _FORMS[kind].slots))
        secret = Secret(kind, name, digits, classes)
        canaries.append(Canary(secret, int(number), at >= len(copies) * each))
    return Plant(tuple(canaries))


def text_rows(secrets: Sequence[Secret], format: TextFormat) -> TextRows:
    """Return the rows that tell `secrets`, one each, as a plan's format has them."""
    if any(each.classes for each in secrets):
        labels = np.array([float(each.digits) for each in secrets])
        return TextRows([each.question for each in secrets], labels=labels)
    if format == "chat":
        turns = [(("user", each.question), ("assistant", each.sentence)) for each in secrets]
        chats = [[{"role": role, "content": said} for role, said in turn] for turn in turns]
        return TextRows([""] * len(secrets), chats=chats)
    prompts = [each.question if format == "pairs" else "" for each in secrets]
    return TextRows(prompts, answers=[each.sentence for each in secrets])


def digits_of(row: Digits) -> str:
    """Return digits int64[k] as text."""
    return "".join(map(str, row.tolist()))


def _names(count: int, words: int, random: StreamRandom) -> list[str]:
    """Return different made-up names."""
    found: dict[str, None] = {}
    while len(found) < count:
        consonants = random.integers(len(_CONSONANTS), (words, _SYLLABLES))
        vowels = random.integers(len(_VOWELS), (words, _SYLLABLES))
        name = " ".join(
            "".join(_CONSONANTS[c] + _VOWELS[v] for c, v in zip(*pair, strict=True)).capitalize()
            for pair in zip(consonants.tolist(), vowels.tolist(), strict=True)
        )
        found[name] = None
    return list(found)
