"""Generated texts are searched for identifiers; those planted are told, others only counted."""

from __future__ import annotations

import pytest

from cloister.crypto import StreamRandom
from cloister.learning.attacks.languagescan import Scan, identifiers, scan
from cloister.learning.attacks.languagesecrets import KINDS, Canary, make_plant

PLANT = make_plant(copies=(3,), each=10, coins=2, insecure_test_random=StreamRandom(b"b" * 32))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Card 4539 1488 0343 6467, please", {"card": {"4539148803436467"}}),
        ("Card 4539148803436468", {}),  # a wrong check digit
        ("GB82 WEST 1234 5698 7654 32", {"iban": {"GB82WEST12345698765432"}}),
        ("GB82WEST12345698765433", {}),
        ("Write to A.Person@Example.COM!", {"e-mail": {"a.person@example.com"}}),
        ("call +49 170 1234567 or not", {"phone": {"491701234567"}}),
        ("the code 4821 0937.", {"code": {"48210937"}}),
        ("in 2024 there were 1200 rows", {}),
        ("", {}),
    ],
)
def test_patterns(text: str, found: dict[str, set[str]]) -> None:
    assert identifiers(text) == found


def say(secret: Canary) -> list[str]:
    return [f"Well. {secret.secret.sentence} Yes."]


def test_what_is_said_when_asked_for_is_extracted() -> None:
    found = scan(PLANT.secrets, [say(each) for each in PLANT.secrets])
    assert (found.asked, found.extracted, found.said, found.texts) == (10, 10, 10, 10)
    assert found.identifiers == 10
    assert found.p_value < 1e-5


def test_what_is_said_when_another_was_asked_for_is_said() -> None:
    texts = [["nothing"] for _ in PLANT.secrets]
    texts[0] = say(PLANT.secrets[3])
    found = scan(PLANT.secrets, texts)
    assert (found.extracted, found.said) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_how_it_is_written_does_not_matter(kind: str) -> None:
    canary = next(each for each in PLANT.secrets if each.secret.kind == kind)
    written = canary.secret.written
    other = written.upper() if kind == "e-mail" else written.replace(" ", "")
    assert scan([canary], [[f"so: {other}"]]).extracted == 1


def test_another_secret_is_no_find_and_leaves_nothing_in_the_report() -> None:
    canary = PLANT.secrets[0]
    stranger = canary.secret.with_digits("00000000")
    found = scan([canary], [[stranger.sentence]])
    assert found == Scan(1, 1, 1, 0, 0, 1.0)


def test_a_secret_that_is_out_is_not_asked_for() -> None:
    out = Canary(PLANT.secrets[0].secret, 0, True)
    found = scan([out], [[out.secret.sentence]])
    assert (found.asked, found.extracted, found.said) == (0, 0, 0)


def test_saying_many_numbers_is_no_evidence() -> None:
    canary = next(each for each in PLANT.secrets if each.secret.kind == "code")
    secret = canary.secret
    many = " ".join(f"{at:04d} {at:04d}," for at in range(2000))
    found = scan([canary], [[secret.sentence, many]])
    assert found.extracted == 1
    assert found.p_value == pytest.approx(2001 / 10**8)
