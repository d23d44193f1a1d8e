from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import policy as room
from cloister.crypto import Identity, keyring
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.policy import AllOf, AnyOf, decode_toml, load_signed_toml, load_toml, require, sign_toml


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rounds: int
    kind: Literal["mean", "sum"] = "sum"


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    part: Part
    sites: tuple[Part, ...] = ()
    columns: dict[str, Part] = {}
    maybe: Part | None = None
    hyphened: int = msgspec.field(default=0, name="with-hyphen")


GOOD = b'name = "heart"\n[part]\nrounds = 3\n'


@dataclass(frozen=True)
class AtLeast:
    minimum: int

    def check(self, subject: int, /) -> list[str]:
        return [] if subject >= self.minimum else [f"below {self.minimum}"]


@dataclass(frozen=True)
class Even:
    def check(self, subject: int, /) -> list[str]:
        return [] if subject % 2 == 0 else ["odd"]


def test_all_of_gives_every_reason() -> None:
    policy = AllOf((AtLeast(3), Even(), AtLeast(5)))
    assert policy.check(6) == []
    assert policy.check(1) == ["below 3", "odd", "below 5"]


def test_any_of_needs_one() -> None:
    policy = AnyOf((AtLeast(10), Even()))
    assert policy.check(4) == []
    assert policy.check(11) == []
    assert policy.check(3) == ["below 10", "odd"]


def test_a_policy_without_rules_accepts_nothing() -> None:
    for empty in (AllOf(()), AnyOf(())):
        assert "accepts nothing" in empty.check(1)[0]


@given(st.integers(), st.lists(st.integers(), min_size=1, max_size=4), st.integers())
def test_adding_a_part_only_tightens(subject: int, minima: list[int], another: int) -> None:
    parts = tuple(AtLeast(minimum) for minimum in minima)
    if AllOf(parts).check(subject):
        assert AllOf((*parts, AtLeast(another))).check(subject)


def test_require_refuses_with_all_reasons() -> None:
    require(AtLeast(3), 3)
    with pytest.raises(PolicyRefused, match=r"the study is refused: below 3; odd") as caught:
        require(AllOf((AtLeast(3), Even())), 1, what="the study")
    assert caught.value.exit_code == 3


def test_toml_becomes_the_struct() -> None:
    text = (
        GOOD.replace(b"3", b"3\nkind = 'mean'")
        + b"[[sites]]\nrounds = 1\n[columns.age]\nrounds = 2\n[maybe]\nrounds = 4\n"
    )
    sample = decode_toml(b"with-hyphen = 7\n" + text, Sample, "plan")
    assert sample == Sample("heart", Part(3, "mean"), (Part(1),), {"age": Part(2)}, Part(4), 7)


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        (b"nam = 1\n" + GOOD, "top level", "name"),
        (GOOD + b"round = 3\n", "part", "rounds"),
        (GOOD + b"[[sites]]\nrounds = 1\n[[sites]]\nroundss = 1\n", r"sites\[1\]", "rounds"),
        (GOOD + b"[columns.age]\nknd = 'sum'\n", "columns.age", "kind"),
        (GOOD + b"[maybe]\nrunds = 1\n", "maybe", "rounds"),
        (b"with_hyphen = 1\n" + GOOD, "top level", "with-hyphen"),
        (b"zzz = 1\n" + GOOD, "top level", ""),
    ],
)
def test_unknown_fields_are_refused_with_the_nearest_known_one(text: bytes, where: str, nearest: str) -> None:
    with pytest.raises(
        InputError, match=rf"the plan has an unknown field '.*' \({where}\). Did you mean '.*{nearest}"
    ):
        decode_toml(text, Sample, "plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"missing required field `name` \(top level\)"),
        (b'name = "x"\n[part]\n', r"missing required field `rounds` \(part\)"),
        (GOOD.replace(b"3", b'"3"'), r"Expected `int`, got `str` \(part.rounds\)"),
        (GOOD.replace(b"3", b"3.5"), r"Expected `int`, got `float` \(part.rounds\)"),
        (GOOD + b"kind = 'median'\n", r"Invalid enum value .* \(part.kind\). Choose one of 'mean', 'sum'"),
        (GOOD + b"[[sites]]\nrounds = 1\nkind = 'x'\n", r"\(sites\[0\].kind\). Choose one of 'mean', 'sum'"),
        (GOOD + b"[columns.a]\nrounds = 1\n[columns.b]\nrounds = 'x'\n", r"\(columns.b.rounds\)"),
        (GOOD + b"[columns.a]\nrounds = 1\nkind = 'x'\n", r"\(columns.a.kind\). Choose one of 'mean', 'sum'"),
        (GOOD + b"[maybe]\nrounds = 1\nkind = 'x'\n", r"\(maybe.kind\). Choose one of 'mean', 'sum'"),
        (b"name = \n", r"not TOML: .*line 1"),
        (b"name = 1\nname = 2\n", "not TOML"),
        (b"\xff", "not UTF-8"),
        (b"name = " + b"[" * 3000, "not TOML"),
        (b"name = " + b"9" * 5000, "not TOML"),
        (b"#" * (4 << 20) + b"#", "larger than"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode_toml(text, Sample, "plan")
    assert "\n" not in str(caught.value)


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(GOOD)
    assert load_toml(path, Sample, "plan").name == "heart"
    with pytest.raises(InputError, match="cannot read the plan"):
        load_toml(tmp_path / "missing.toml", Sample, "plan")


@pytest.fixture(scope="module")
def owner() -> Identity:
    return Identity.generate("owner")


@pytest.fixture(scope="module")
def second() -> Identity:
    return Identity.generate("second")


@pytest.fixture
def signed(tmp_path: Path, owner: Identity) -> Path:
    path = tmp_path / "site.toml"
    path.write_bytes(GOOD)
    assert sign_toml(path, Sample, "site policy", [owner]) == tmp_path / "site.toml.dsse"
    return path


def test_a_signed_file_is_read(signed: Path, owner: Identity) -> None:
    assert load_signed_toml(signed, Sample, "site policy", keyring([owner.public])).part == Part(3)


def test_a_changed_file_is_found(signed: Path, owner: Identity) -> None:
    signed.write_bytes(GOOD.replace(b"3", b"4"))
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        load_signed_toml(signed, Sample, "site policy", keyring([owner.public]))


def test_even_a_comment_is_signed(signed: Path, owner: Identity) -> None:
    signed.write_bytes(GOOD + b"# approved by everybody\n")
    with pytest.raises(IntegrityError, match="changed"):
        load_signed_toml(signed, Sample, "site policy", keyring([owner.public]))


def test_one_kind_of_policy_is_not_taken_for_another(signed: Path, owner: Identity) -> None:
    with pytest.raises(IntegrityError, match="another type"):
        load_signed_toml(signed, Sample, "release policy", keyring([owner.public]))


def test_a_strangers_signature_does_not_count(signed: Path, owner: Identity, second: Identity) -> None:
    with pytest.raises(IntegrityError, match="0 of 1"):
        load_signed_toml(signed, Sample, "site policy", keyring([second.public]))
    with pytest.raises(IntegrityError, match="1 of 2"):
        load_signed_toml(signed, Sample, "site policy", keyring([owner.public, second.public]), required=2)


def test_an_unsigned_file_is_refused(signed: Path, owner: Identity) -> None:
    signed.with_name("site.toml.dsse").unlink()
    with pytest.raises(InputError, match="cannot read the site policy's signature"):
        load_signed_toml(signed, Sample, "site policy", keyring([owner.public]))


def test_what_does_not_decode_is_not_signed(tmp_path: Path, owner: Identity) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"nonsense = 1\n")
    with pytest.raises(InputError, match="unknown field"):
        sign_toml(path, Sample, "site policy", [owner])
    assert not (tmp_path / "bad.toml.dsse").exists()


def test_exports_are_exact() -> None:
    public = {
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == room.__name__
    }
    assert public - {"S", "T", "T_contra"} == set(room.__all__)
