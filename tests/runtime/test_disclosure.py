"""A dry run says everything that leaves a site, and nothing that a row holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.invitations import hub, known, own, people, plan_of
from tests.runtime.parties import CHEAP, PURPOSE, schema, table

from cloister.errors import PlanError
from cloister.learning import EnclaveSection, Plan
from cloister.runtime.disclosure import Disclosure, Item, disclosure_of
from cloister.runtime.forecast import forecast, sizes_of
from cloister.runtime.sitepolicy import decide
from cloister.vault import LocalKeystore, Manifest, Vault


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("vault")
    keys = LocalKeystore.initialise(root / "keystore.json", "x", cost=CHEAP)
    vault = Vault(root, people()["north"], keys)
    return vault.add_table(table(60, 1), name="rows", schema=schema(), purposes=[PURPOSE], consent="asked")


def dry(plan: Plan, manifest: Manifest, **options: Any) -> Disclosure:
    decision = decide(plan, hub(), None, known(), own=own())
    return disclosure_of(plan, manifest, decision, own=own(), manifest_bytes=2000, **options)


def item(disclosure: Disclosure, word: str) -> Item:
    (found,) = (each for each in disclosure.items if word in each.what)
    return found


def test_everything_that_a_site_sends_is_there(manifest: Manifest) -> None:
    plan = plan_of()
    sizes = sizes_of(plan, schema())
    disclosure = dry(plan, manifest, forecast=forecast(plan, sizes))
    assert disclosure.verdict == "ask"
    assert disclosure.obstacles == ()
    assert (disclosure.rows, disclosure.partners) == (60, ("south", "west"))
    assert disclosure.columns == ("a", "b", "y")
    assert disclosure.not_read == ()
    words = (
        "public keys",
        "number of rows: 60",
        "manifest",
        "shares",
        "masked update",
        "took part",
        "after every round",
    )
    assert len(disclosure.items) == len(words)
    for word in words:
        item(disclosure, word)
    assert "readers of the release" not in item(disclosure, "masked update").readers
    asking = msgspec.structs.replace(plan, enclave=EnclaveSection(required=True))
    attested = dry(asking, manifest, forecast=forecast(asking, sizes))
    assert len(attested.items) == len(words) + 2
    assert item(attested, "evidence of the worker").readers == ("hub",)
    assert any("evidence" in each for each in attested.unknown)
    assert item(disclosure, "masked update").size == plan.attempts * (12 + 400)
    assert "no noise" in item(disclosure, "masked update").protection
    assert disclosure.epsilon_hub is None
    assert any("claims no privacy" in each for each in disclosure.unknown)
    assert disclosure.sent_bytes is not None
    assert "how well models fit held-out rows" in disclosure.stays


def test_what_the_plan_opens_is_said(manifest: Manifest) -> None:
    public = dry(plan_of(data={"public_rows": True}), manifest)
    assert item(public, "held-out rows").readers == ("hub", "partners", "readers of the release")
    assert "how well models fit held-out rows" not in public.stays
    assert any("public_rows" in reason for reason in public.reasons)
    blind = dry(plan_of(aggregation={"hub_view": "none"}), manifest)
    for word in ("masked update", "after every round"):
        assert "hub" in item(dry(plan_of(), manifest), word).readers
        assert "hub" not in item(blind, word).readers
    local = dry(plan_of(data={"scaling": "local"}), manifest)
    assert any("means and deviations" in each for each in local.stays)
    named = dry(plan_of(release={"recipients": ("south",)}), manifest)
    assert named.recipients == ("south",)


def test_a_claim_is_stated_with_both_epsilons(manifest: Manifest) -> None:
    plan = plan_of(privacy={})
    terms = sizes_of(plan, schema()).terms
    assert terms is not None
    both = (terms.facts.epsilon_hub, terms.facts.epsilon_colluders)
    disclosure = dry(plan, manifest, epsilons=both)
    assert (disclosure.epsilon_hub, disclosure.epsilon_colluders) == both
    assert (disclosure.delta, disclosure.unit) == (1e-5, "record")
    assert "ledger" in item(disclosure, "ledger").what
    assert "noise" in item(disclosure, "masked update").protection
    assert "which units a step sampled" in disclosure.stays


def test_what_is_not_known_is_null_with_a_reason(manifest: Manifest) -> None:
    disclosure = dry(plan_of(), manifest, obstacle="the model is Python code")
    assert disclosure.sent_bytes is None
    assert disclosure.received_bytes is None
    assert item(disclosure, "masked update").size is None
    assert any("Python code" in each for each in disclosure.unknown)


def test_obstacles(manifest: Manifest) -> None:
    other = msgspec.structs.replace(manifest, name="others", schema_sha256="0" * 64, purposes=("other",))
    plan = plan_of()
    unpinned = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, initial=""))
    assert len(dry(unpinned, other).obstacles) == 4


def test_a_unit_column_is_read_and_others_are_not(manifest: Manifest) -> None:
    plan = plan_of(data={"features": ("a",)})
    assert dry(plan, manifest).not_read == ("b",)


def test_a_site_that_is_not_named_has_nothing_to_disclose(manifest: Manifest) -> None:
    plan = plan_of()
    decision = decide(plan, hub(), None, known(), own=own())
    with pytest.raises(PlanError, match="does not name"):
        disclosure_of(plan, manifest, decision, own="f" * 64, manifest_bytes=1)


def test_it_is_json(manifest: Manifest, tmp_path: Path) -> None:
    encoded = msgspec.json.encode(dry(plan_of(), manifest))
    assert msgspec.json.decode(encoded)["rows"] == 60
