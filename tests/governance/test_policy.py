"""Release policies: every rule refuses by name, and combining only ever tightens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.governance.releases import identity, make_plan, make_world

from cloister.crypto import keyring
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.governance import DEFAULT_POLICY, Predicate, ReleasePolicy, gate, plan_policy
from cloister.governance.certificate import Recipient
from cloister.policy import load_signed_toml, sign_toml


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Predicate:
    """Four sites with 100 rows each; round 3 of 5 lost one."""
    world = make_world(tmp_path_factory.mktemp("policy"), lost={2: {"site1"}})
    return world.release().certificate.statement.predicate


ALLOWED, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("rule", "holds", "refuses"),
    [
        ("purposes", ("heart disease research", "x"), ("advertising",)),
        ("minimum_sites", 4, 5),
        ("minimum_survivors", 3, 4),
        ("minimum_rows", 100, 101),
        ("maximum_rounds", 5, 4),
        ("require_privacy", False, True),
        ("recipients", (), (ALLOWED,)),
    ],
)
def test_each_rule_refuses_by_name(facts: Predicate, rule: str, holds: Any, refuses: Any) -> None:
    assert ReleasePolicy(**{rule: holds}).check(facts) == []
    gate(facts, [ReleasePolicy(**{rule: holds})])
    with pytest.raises(PolicyRefused, match=rule) as caught:
        gate(facts, [ReleasePolicy(), ReleasePolicy(**{rule: refuses})])
    assert caught.value.exit_code == 3


def test_recipients_are_compared_by_key(facts: Predicate) -> None:
    policy = ReleasePolicy(recipients=(ALLOWED,))

    def to(*fingerprints: str) -> Predicate:
        readers = tuple(Recipient("analyst", fingerprint) for fingerprint in fingerprints)
        return msgspec.structs.replace(facts, recipients=readers)

    assert policy.check(to(ALLOWED)) == []
    assert policy.check(to(OTHER)) == ["recipients: analyst is not an allowed recipient"]
    assert len(policy.check(to(ALLOWED, OTHER))) == 1


def test_every_failing_rule_is_named_once(facts: Predicate) -> None:
    strict = ReleasePolicy(minimum_sites=9, minimum_rows=900, require_privacy=True)
    with pytest.raises(PolicyRefused) as caught:
        gate(facts, [strict, strict])
    for rule in ("minimum_sites", "minimum_rows", "require_privacy"):
        assert str(caught.value).count(rule) == 1


def test_no_policy_is_no_permission(facts: Predicate) -> None:
    with pytest.raises(PolicyRefused, match="needs a policy"):
        gate(facts, [])


def test_the_built_in_policy_asks_for_three(facts: Predicate) -> None:
    gate(facts)
    summed = facts.aggregation
    epoch = msgspec.structs.replace(summed.epochs[0], members=summed.epochs[0].members[:2])
    few = msgspec.structs.replace(
        facts, aggregation=msgspec.structs.replace(summed, epochs=(*summed.epochs, epoch))
    )
    with pytest.raises(PolicyRefused, match=r"minimum_sites.*minimum_survivors"):
        gate(few)
    assert DEFAULT_POLICY.minimum_sites == 3


policies = st.builds(
    ReleasePolicy,
    recipients=st.sampled_from([(), (ALLOWED,), (OTHER,)]),
    purposes=st.sampled_from([(), ("heart disease research",), ("other",)]),
    minimum_sites=st.integers(0, 6),
    minimum_survivors=st.integers(0, 6),
    minimum_rows=st.integers(0, 200),
    maximum_rounds=st.none() | st.integers(0, 9),
    require_privacy=st.booleans(),
)


def passes(facts: Predicate, chosen: list[ReleasePolicy]) -> bool:
    try:
        gate(facts, chosen)
    except PolicyRefused:
        return False
    return True


@given(st.lists(policies, min_size=1, max_size=3), policies)
@settings(max_examples=200)
def test_adding_a_policy_never_opens_the_gate(
    facts: Predicate, chosen: list[ReleasePolicy], more: ReleasePolicy
) -> None:
    assert passes(facts, [*chosen, more]) == (passes(facts, chosen) and passes(facts, [more]))


def test_the_plans_recipients_are_a_policy() -> None:
    hub, sites = identity("hub"), [identity(f"site{n}") for n in range(3)]
    open_plan = make_plan(hub, sites)
    assert plan_policy(open_plan) == ReleasePolicy()
    named = make_plan(hub, sites, release={"recipients": ("site1", "hub", ALLOWED, "analyst")})
    assert plan_policy(named).recipients == (sites[1].fingerprint, hub.fingerprint, ALLOWED, "0" * 64)


def test_a_signed_policy_file(tmp_path: Path) -> None:
    owner, stranger = identity("site0"), identity("stranger")
    path = tmp_path / "release.toml"
    path.write_text('purposes = ["heart disease research"]\nminimum_sites = 4\n')
    sign_toml(path, ReleasePolicy, "release policy", [owner])
    keys = keyring([owner.public])
    loaded = load_signed_toml(path, ReleasePolicy, "release policy", keys)
    assert loaded == ReleasePolicy(purposes=("heart disease research",), minimum_sites=4)
    with pytest.raises(IntegrityError):
        load_signed_toml(path, ReleasePolicy, "release policy", keyring([stranger.public]))
    path.write_text("minimum_sites = 0\n")
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        load_signed_toml(path, ReleasePolicy, "release policy", keys)
    path.write_text("minimum_site = 4\n")
    with pytest.raises(InputError, match="Did you mean 'minimum_sites'"):
        sign_toml(path, ReleasePolicy, "release policy", [owner])
