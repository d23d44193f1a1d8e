"""Attacks on a declared budget that do not overdraw it but go around it: a plan written by somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.runtime.parties import PURPOSE, parties, plan_for, schema

from cloister.crypto import Identity
from cloister.errors import PolicyRefused
from cloister.learning import PrivacySection
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Party, Study

PRIVATE = PrivacySection(noise_multiplier=20.0, delta=1e-4, clip=1.0, rate=1.0)


@pytest.fixture
def hub() -> Identity:
    return Identity.generate("hub")


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Party]]:
    """Three sites of which the first has declared a budget for the rows it trains on."""
    first, *others = parties(tmp_path, [40, 25, 30])
    with ExitStack() as ledgers:
        yield [with_budget(tmp_path, first, ledgers), *others]


def with_budget(root: Path, party: Party, ledgers: ExitStack) -> Party:
    ledger = ledgers.enter_context(Ledger.open(root / party.identity.name / "ledger", party.identity))
    ledger.declare("people", Cap.of(5.0, 1e-3))
    ledger.bind("people", party.vault.manifest("train").dataset_id, party.vault.fingerprints("train"))
    return replace(party, ledger=ledger)


@pytest.mark.parametrize("public", [True, False])
def test_a_plan_that_claims_nothing_does_not_train_on_rows_with_a_budget(
    hub: Identity, members: list[Party], public: bool
) -> None:
    """Whoever writes the plan may not decide that the owner's promise is off."""
    plan = plan_for(hub, members, data={"public_rows": public})
    with pytest.raises(PolicyRefused, match="budget"):
        Study(plan, hub, members)


def test_nor_on_a_copy_of_them_under_another_name(hub: Identity, members: list[Party]) -> None:
    vault = members[0].vault
    with vault.open("train", purpose=PURPOSE) as dataset:
        rows = dataset.table()
    vault.add_table(rows.slice(3, 5), name="copy", schema=schema(), purposes=[PURPOSE])
    plan = plan_for(hub, members)
    sites = (msgspec.structs.replace(plan.sites[0], dataset="copy"), *plan.sites[1:])
    with pytest.raises(PolicyRefused, match="budget"):
        Study(msgspec.structs.replace(plan, sites=sites), hub, members)


def test_rows_with_a_budget_are_not_evaluated_on_for_nothing(
    tmp_path: Path, hub: Identity, members: list[Party]
) -> None:
    """Every round's loss on the rows that are trained on would leave beside the noise."""
    plan = plan_for(hub, members, training={"batch": 48, "local_steps": 1})
    plan = msgspec.structs.replace(plan, privacy=PRIVATE)
    with ExitStack() as ledgers:
        all_paying = [members[0], *(with_budget(tmp_path, each, ledgers) for each in members[1:])]
        Study(plan, hub, all_paying)
        with pytest.raises(PolicyRefused, match="evaluat"):
            Study(plan, hub, [replace(each, held_out="train") for each in all_paying])


def test_rows_without_a_budget_are_their_owners_business(hub: Identity, members: list[Party]) -> None:
    ledger = members[0].ledger
    assert ledger is not None
    other = replace(members[1], ledger=None)
    plan = plan_for(hub, members)
    Study(plan, hub, [replace(members[0], ledger=None), other, members[2]])
