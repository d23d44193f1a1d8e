"""Site policies: every rule refuses by name, adding one only tightens, and no file but the owner's counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.runtime.invitations import CODE, hub, known, own, people, plan_of
from tests.runtime.parties import PURPOSE, schema

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.learning import EnclaveSection, Plan, SiteEntry
from cloister.learning.sections import LanguageSection, ModelSection
from cloister.policy import decode_toml, sign_toml
from cloister.runtime.forecast import sizes_of
from cloister.runtime.privacyrules import PrivacyRules
from cloister.runtime.sitepolicy import (
    SITE_POLICY,
    Decision,
    SitePolicy,
    decide,
    load_site_policy,
    site_policy_path,
)

ORDER = {"accept": 0, "ask": 1, "refuse": 2}
TORCH = {"kind": "torch", "code": CODE, "factory": "build"}


def verdict(plan: Plan, policy: SitePolicy | None, **options: Any) -> Decision:
    return decide(plan, hub(), policy, options.pop("trusted", known()), own=own(), **options)


def accepting(**rules: Any) -> SitePolicy:
    return SitePolicy(decision="accept", **rules)


@pytest.mark.parametrize(
    ("rule", "holds", "refuses"),
    [
        ("studies", ("credit", "loans-*"), ("loans",)),
        ("studies", ("loans-?",), ("Loans-1",)),
        ("purposes", (PURPOSE,), ("advertising",)),
        ("hubs", ("hub",), ("south",)),
        ("partners", ("south", "west"), ("south",)),
        ("minimum_partners", 2, 3),
        ("minimum_sites", 3, 4),
        ("datasets", ("rows",), ("others",)),
        ("models", ("logistic", "mlp"), ("mlp",)),
        ("hub_view", "sum", "none"),
        ("enclave", "none", "attested"),
    ],
)
def test_each_rule_refuses_by_name(rule: str, holds: Any, refuses: Any) -> None:
    assert verdict(plan_of(), accepting(**{rule: holds})).verdict == "accept"
    refused = verdict(plan_of(), accepting(**{rule: refuses}))
    assert refused.verdict == "refuse"
    assert [reason.partition(":")[0] for reason in refused.reasons] == [rule]


def test_attested_is_what_a_plan_asks_of_everybody() -> None:
    attested = accepting(enclave="attested")
    asking = msgspec.structs.replace(plan_of(), enclave=EnclaveSection(required=True))
    lax = msgspec.structs.replace(plan_of(), enclave=EnclaveSection(required=False))
    assert verdict(asking, attested).verdict == "accept"
    assert verdict(asking, accepting()).verdict == "accept"
    for plan in (plan_of(), lax):
        refused = verdict(plan, attested)
        assert refused.verdict == "refuse"
        assert "[enclave] required" in refused.reasons[0]


def test_parties_are_named_by_fingerprint_too() -> None:
    prints = tuple(people()[name].fingerprint for name in ("south", "west", "hub"))
    assert verdict(plan_of(), accepting(hubs=prints[2:], partners=prints[:2])).verdict == "accept"
    assert verdict(plan_of(), accepting(hubs=prints[:2], partners=prints[1:])).verdict == "refuse"


def test_code_and_public_rows_have_to_be_allowed() -> None:
    code = plan_of(model=TORCH)
    assert "user_code" in verdict(code, accepting()).reasons[0]
    assert verdict(code, accepting(user_code=("d" * 64,))).verdict == "refuse"
    assert verdict(code, accepting(user_code=(CODE,))).verdict == "accept"
    public = plan_of(data={"public_rows": True})
    assert "public_rows" in verdict(public, accepting()).reasons[0]
    assert verdict(public, accepting(public_rows=True)).verdict == "accept"


@pytest.mark.parametrize(
    ("rule", "holds", "refuses"),
    [
        ("models", ("text-classifier",), ("causal-lm", "logistic")),
        ("bases", ("c" * 64, "a" * 64), ("b" * 64,)),
        ("max_rank", 8, 7),
    ],
)
def test_language_models_may_be_kept_to_kinds_bases_and_ranks(rule: str, holds: Any, refuses: Any) -> None:
    plan = language_plan()
    assert verdict(plan, accepting(**{rule: holds})).verdict == "accept"
    refused = verdict(plan, accepting(**{rule: refuses}))
    assert refused.verdict == "refuse"
    assert [reason.partition(":")[0] for reason in refused.reasons] == [rule]


def test_with_a_largest_rank_nothing_but_adapters_is_trained() -> None:
    whole = language_plan(method="full", rank=0)
    assert verdict(whole, accepting()).verdict == "accept"
    refused = verdict(whole, accepting(max_rank=64))
    assert refused.verdict == "refuse"
    assert "whole base" in refused.reasons[0]
    assert verdict(plan_of(), accepting(max_rank=1, bases=("b" * 64,))).verdict == "accept"


def language_plan(**language: Any) -> Plan:
    """Return a plan of a language model."""
    section = LanguageSection(**{"base": "a" * 64, "tokenizer": "d" * 64, "rank": 8} | language)
    model = ModelSection(kind="text-classifier", classes=2)
    return msgspec.structs.replace(plan_of(), model=model, language=section)


@pytest.mark.parametrize(
    ("rules", "claimed", "fits"),
    [
        ({"required": True}, None, False),
        ({"maximum_epsilon": 9.0}, None, False),
        ({"maximum_delta": 0.1}, None, False),
        ({"adversary": "colluders"}, None, False),
        ({"unit": "record"}, None, False),
        ({}, None, True),
        ({"required": True}, {}, True),
        ({"maximum_epsilon": 1.0}, {}, True),
        ({"maximum_epsilon": 0.99}, {}, False),
        ({"maximum_epsilon": 9.0}, {"epsilon": None, "noise_multiplier": 5.0}, False),
        ({"maximum_epsilon": 9.0}, {"adversary": "hub"}, False),
        ({"maximum_delta": 1e-5}, {}, True),
        ({"maximum_delta": 1e-6}, {}, False),
        ({"adversary": "colluders"}, {}, True),
        ({"adversary": "colluders"}, {"adversary": "hub"}, False),
        ({"adversary": "hub"}, {"adversary": "hub"}, True),
        ({"unit": "record"}, {}, True),
        ({"unit": "patient"}, {}, False),
    ],
)
def test_what_must_be_claimed(rules: dict[str, Any], claimed: dict[str, Any] | None, fits: bool) -> None:
    plan = plan_of() if claimed is None else plan_of(privacy=claimed)
    decision = verdict(plan, accepting(privacy=PrivacyRules(**rules)))
    assert decision.verdict == ("accept" if fits else "refuse"), decision
    if not fits:
        assert decision.reasons[0].startswith(f"privacy {next(iter(rules))}:")


def test_the_larger_epsilon_counts_where_it_is_known() -> None:
    plan = plan_of(privacy={"adversary": "hub"})
    terms = sizes_of(plan, schema()).terms
    assert terms is not None
    claim = terms.facts
    assert claim.epsilon_hub <= 1.0 < claim.epsilon_colluders
    above = PrivacyRules(maximum_epsilon=claim.epsilon_colluders + 0.001)
    assert verdict(plan, accepting(privacy=above), claim=claim).verdict == "accept"
    assert (
        verdict(plan, accepting(privacy=PrivacyRules(maximum_epsilon=1.0)), claim=claim).verdict == "refuse"
    )


@pytest.mark.parametrize(("said", "expected"), [("accept", "accept"), ("ask", "ask"), ("refuse", "refuse")])
def test_what_fits_gets_the_policys_decision(said: Any, expected: str) -> None:
    assert verdict(plan_of(), SitePolicy(decision=said)).verdict == expected
    assert verdict(plan_of(), SitePolicy(decision=said, minimum_sites=9)).verdict == "refuse"


def test_without_a_policy_everything_is_asked_about_and_what_is_unusual_is_said() -> None:
    assert verdict(plan_of(), None).verdict == "ask"
    assert verdict(plan_of(), SitePolicy()).verdict == "ask"
    unusual = verdict(plan_of(model=TORCH, data={"public_rows": True}), None)
    assert unusual.verdict == "ask"
    assert any("user_code" in reason for reason in unusual.reasons)
    assert any("public_rows" in reason for reason in unusual.reasons)


@pytest.mark.parametrize("policy", [None, SitePolicy(decision="accept")])
def test_no_policy_can_allow_strangers(policy: SitePolicy | None) -> None:
    """Attack: a hub that is not trusted, or is another; partners unknown, or under another's name."""
    plan, everybody = plan_of(), people()
    assert verdict(plan, policy, trusted=known("north", "south", "west")).verdict == "refuse"
    assert verdict(plan, policy, trusted=known("north", "south", "hub")).verdict == "refuse"
    assert verdict(plan, policy, trusted={}).verdict == "refuse"
    other = decide(plan, everybody["eve"].public, policy, known(*everybody), own=own())
    assert other.verdict == "refuse"
    assert "names another hub" in other.reasons[0]
    unnamed = decide(plan, hub(), policy, known(), own=everybody["eve"].fingerprint)
    assert unnamed.verdict == "refuse"
    renamed = plan_of(
        sites=(
            *plan.sites[:2],
            SiteEntry(name="west", identity=everybody["eve"].fingerprint, dataset="rows"),
        )
    )
    assert verdict(renamed, policy, trusted=known(*everybody)).verdict == "refuse"
    # the own identity need not be among the trusted ones
    fits = verdict(plan, SitePolicy(decision="accept"), trusted=known("south", "west", "hub"))
    assert fits.verdict == "accept"


def test_a_plan_with_very_many_strangers_has_a_short_answer() -> None:
    many = tuple(SiteEntry(name=f"s{i}", identity=f"{i:064x}", dataset="rows") for i in range(20_000))
    plan = plan_of(sites=(plan_of().sites[0], *many), aggregation={"colluders": 1})
    decision = verdict(plan, SitePolicy(decision="accept", partners=("south",)))
    assert decision.verdict == "refuse"
    assert len(" ".join(decision.reasons)) < 300


# --- tightening -------------------------------------------------------------------------------------------

texts = st.sampled_from([(), ("hub",), ("south", "west"), ("south",)])
privacy_rules = st.builds(
    PrivacyRules,
    required=st.booleans(),
    maximum_epsilon=st.none() | st.sampled_from([0.5, 1.0, 2.0]),
    maximum_delta=st.none() | st.sampled_from([1e-6, 1e-5]),
    adversary=st.sampled_from(["hub", "colluders"]),
    unit=st.none() | st.sampled_from(["record", "patient"]),
)
policies = st.builds(
    SitePolicy,
    decision=st.sampled_from(["accept", "ask", "refuse"]),
    studies=st.sampled_from([(), ("loans-*",), ("other",)]),
    purposes=st.sampled_from([(), (PURPOSE,), ("other",)]),
    hubs=texts,
    partners=texts,
    minimum_partners=st.integers(0, 4),
    minimum_sites=st.integers(0, 4),
    datasets=st.sampled_from([(), ("rows",), ("other",)]),
    models=st.sampled_from([(), ("logistic",), ("torch", "logistic"), ("mlp",)]),
    user_code=st.sampled_from([(), (CODE,)]),
    privacy=privacy_rules,
    hub_view=st.sampled_from(["sum", "none"]),
    public_rows=st.booleans(),
    enclave=st.sampled_from(["none", "attested"]),
)
PLANS = (
    plan_of(),
    plan_of(aggregation={"hub_view": "none"}),
    plan_of(data={"public_rows": True}),
    plan_of(model=TORCH),
    plan_of(privacy={}),
    plan_of(privacy={"adversary": "hub"}),
    plan_of(privacy={"epsilon": None, "noise_multiplier": 3.0}),
    msgspec.structs.replace(plan_of(), enclave=EnclaveSection(required=True)),
)
RULES = [name for name in SitePolicy.__struct_fields__ if name not in ("decision", "privacy")]


@given(policies, st.sampled_from(RULES), policies, st.sampled_from(PLANS))
def test_taking_a_rule_away_never_refuses_more(
    policy: SitePolicy, rule: str, other: SitePolicy, plan: Plan
) -> None:
    """For each rule: with it nothing passes that does not pass without it. Two rules refuse when left out."""
    loosest: dict[str, Any] = {"user_code": (CODE,), "public_rows": True}
    asked = loosest.get(rule, getattr(SitePolicy(), rule))
    without = msgspec.structs.replace(policy, **{rule: asked})
    with_it = msgspec.structs.replace(policy, **{rule: getattr(other, rule)})
    assert ORDER[verdict(plan, without).verdict] <= ORDER[verdict(plan, with_it).verdict]


@given(
    policies, privacy_rules, st.sampled_from(sorted(PrivacyRules.__struct_fields__)), st.sampled_from(PLANS)
)
def test_a_rule_on_privacy_only_tightens(
    policy: SitePolicy, other: PrivacyRules, rule: str, plan: Plan
) -> None:
    rules = msgspec.structs.replace(policy.privacy, **{rule: getattr(PrivacyRules(), rule)})
    without = msgspec.structs.replace(policy, privacy=rules)
    with_it = msgspec.structs.replace(
        policy, privacy=msgspec.structs.replace(rules, **{rule: getattr(other, rule)})
    )
    assert ORDER[verdict(plan, without).verdict] <= ORDER[verdict(plan, with_it).verdict]


@given(policies, st.sampled_from(PLANS))
def test_only_a_policy_that_says_accept_accepts(policy: SitePolicy, plan: Plan) -> None:
    decision = verdict(plan, policy)
    assert (decision.verdict == "accept") <= (policy.decision == "accept")
    assert decision.reasons
    assert verdict(plan, None).verdict == "ask"


@given(policies, st.sampled_from(PLANS), st.sets(st.sampled_from(["north", "south", "west", "hub", "eve"])))
def test_trusting_fewer_never_opens(policy: SitePolicy, plan: Plan, names: set[str]) -> None:
    fewer = verdict(plan, policy, trusted=known(*names) if names else {})
    assert ORDER[fewer.verdict] >= ORDER[verdict(plan, policy).verdict]


# --- the file ---------------------------------------------------------------------------------------------


@given(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=20), st.booleans())
def test_unknown_fields_are_refused_and_the_nearest_is_named(name: str, in_privacy: bool) -> None:
    kind = PrivacyRules if in_privacy else SitePolicy
    assume(name not in kind.__struct_fields__)
    text = f"{'[privacy]' if in_privacy else ''}\n'{name}' = 1\n"
    with pytest.raises(InputError, match="unknown field") as caught:
        decode_toml(text.encode(), SitePolicy, SITE_POLICY)
    assert "Did you mean" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        'decision = "always"',
        'hubs = ["No Such Name"]',
        'partners = ["../south"]',
        'datasets = ["a/b"]',
        'user_code = ["abc"]',
        'models = ["forest"]',
        "minimum_sites = -1",
        'enclave = "perhaps"',
        'hub_view = "all"',
        "public_rows = 1",
        "[privacy]\nmaximum_epsilon = 0.0",
        "[privacy]\nmaximum_epsilon = nan",
        "[privacy]\nmaximum_delta = 1.0",
        'studies = "loans"',
    ],
)
def test_values_out_of_range_are_refused(line: str) -> None:
    with pytest.raises(InputError):
        decode_toml(line.encode(), SitePolicy, SITE_POLICY)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    path = site_policy_path(tmp_path)
    path.parent.mkdir()
    path.write_text('decision = "accept"\n')
    sign_toml(path, SitePolicy, SITE_POLICY, [people()["north"]])
    return tmp_path


def load(home: Path) -> SitePolicy | None:
    return load_site_policy(home, people()["north"].public)


def test_a_signed_policy_is_read_and_none_is_none(signed: Path, tmp_path: Path) -> None:
    assert load(signed) == SitePolicy(decision="accept")
    assert load(tmp_path / "elsewhere") is None


def test_a_tampered_policy_is_refused(signed: Path) -> None:
    """Attack: a rule is taken away after signing."""
    path = site_policy_path(signed)
    path.write_text("# nothing\n" + path.read_text())
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        load(signed)


def test_a_policy_by_another_or_of_another_kind_is_refused(signed: Path) -> None:
    """Attack: eve signs a policy; the owner's release policy is put in its place."""
    path = site_policy_path(signed)
    for kind, signer in ((SITE_POLICY, "eve"), ("release policy", "north")):
        sign_toml(path, SitePolicy, kind, [people()[signer]])
        with pytest.raises(IntegrityError):
            load(signed)


def test_half_a_policy_is_refused(signed: Path) -> None:
    """Attack: one of the two files is removed, to get the answer of a home without a policy."""
    path = site_policy_path(signed)
    signature = path.with_name(path.name + ".dsse")
    kept = signature.read_bytes()
    signature.unlink()
    with pytest.raises(CloisterError, match="not signed"):
        load(signed)
    signature.write_bytes(kept)
    path.unlink()
    with pytest.raises(IntegrityError, match="is gone"):
        load(signed)
