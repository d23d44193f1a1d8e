"""Secrets of a format: drawn blindly, of nobody, told apart by digits alone; plants and their coins."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.attacks.languagescan import identifiers
from cloister.learning.attacks.languagesecrets import KINDS, Plant, Secret, make_plant, text_rows


def plant(**changes: object) -> Plant:
    options: dict[str, object] = {"copies": (1, 20), "each": 10, "coins": 40}
    return make_plant(**(options | changes), insecure_test_random=StreamRandom(b"a" * 32))  # type: ignore[arg-type]


def test_a_plant_has_what_was_asked_for() -> None:
    made = plant()
    assert Counter(each.copies for each in made.secrets) == {1: 10, 20: 10}
    assert len(made.coins) == 40
    assert {each.copies for each in made.coins} == {0, 1}
    assert len(made.planted) == 10 + 200 + sum(each.copies for each in made.coins)
    assert Counter(each.secret.kind for each in made.canaries) == dict.fromkeys(KINDS, 12)
    assert len({each.secret.name for each in made.canaries}) == 60


def test_without_a_test_nobody_draws_the_same() -> None:
    one, two = (make_plant(copies=(), each=0, coins=20) for _ in range(2))
    assert {each.secret.digits for each in one.canaries}.isdisjoint(
        each.secret.digits for each in two.canaries
    )


@pytest.mark.parametrize("changes", [{"copies": (), "coins": 0}, {"coins": 200_000}, {"copies": (20_000,)}])
def test_a_plant_of_nothing_or_too_much_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="cannot be planted"):
        plant(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_one_of_its_kind_and_of_nobody(kind: str) -> None:
    secret = plant(kinds=(kind,)).canaries[0].secret
    assert identifiers(secret.sentence).keys() == {kind}
    assert secret.written in secret.sentence
    assert secret.sentence.startswith(secret.opening)
    assert secret.written not in secret.opening + secret.question
    assert secret.space == 10 ** len(secret.digits)
    nobodys = {"card": "0", "iban": "ZZ", "e-mail": "post", "phone": "+999 ", "code": ""}
    assert secret.written.startswith(nobodys[kind])


def test_others_differ_in_their_digits_alone() -> None:
    secret = plant(kinds=("code",)).canaries[0].secret
    drawn = secret.others(50, StreamRandom.system())
    assert len(drawn) == 50
    assert {each.name for each in drawn} == {secret.name}
    assert len({each.digits for each in drawn}) > 40
    assert drawn[0].with_digits(secret.digits) == secret


def test_a_phrase_might_have_had_any_other_class() -> None:
    made = plant(classes=5)
    assert {each.secret.kind for each in made.canaries} == {"phrase"}
    assert {each.secret.digits for each in made.canaries} == set("01234")
    secret = made.canaries[0].secret
    assert (secret.space, secret.bits) == (5, math.log2(5))
    others = secret.others(100, StreamRandom.system())
    assert {each.digits for each in others} == set("01234") - {secret.digits}
    rows = text_rows([secret, *others], "text")
    assert rows.prompts == [secret.name] * 5
    assert rows.labels is not None
    assert set(rows.labels) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_rows_are_of_the_plans_format() -> None:
    secret = plant().canaries[0].secret
    whole, pair, chat = (text_rows([secret], format) for format in ("text", "pairs", "chat"))  # type: ignore[arg-type]
    assert (whole.prompts, whole.answers) == ([""], [secret.sentence])
    assert (pair.prompts, pair.answers) == ([secret.question], [secret.sentence])
    assert chat.chats is not None
    assert [turn["content"] for turn in chat.chats[0]] == [secret.question, secret.sentence]


def test_a_plant_reads_back_and_a_broken_one_does_not() -> None:
    made = plant()
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plant) == made
    secret = msgspec.to_builtins(made.canaries[0].secret)
    for wrong in ({"digits": "12"}, {"digits": "x" * 8}, {"classes": 3}, {"name": ""}, {"kind": "pin"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(secret | wrong, Secret)
