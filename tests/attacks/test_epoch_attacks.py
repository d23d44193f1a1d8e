"""A certificate over several epochs against a hub that signs whatever it likes, but cannot sign for the sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.governance.releases import (
    World,
    failure,
    forge,
    make_epoch,
    make_study,
    make_world,
    schema,
)

from cloister.crypto import Identity, canonical_bytes, sha256, sign_envelope
from cloister.errors import VerificationError
from cloister.governance.folder import countersignature_path, debit_path
from cloister.learning import PrivacySection, plan_model
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.privacy.ledger import DEBIT_TYPE, Debit, Head
from cloister.secagg import Roster

Files = dict[str, bytes]
Change = Callable[[list[dict[str, Any]]], None]
ROSTERS = {0: (0, (0, 1, 2, 3)), 3: (2, (1, 2, 3, 4))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("epochs"), sites=5, rosters=ROSTERS)


@pytest.fixture(scope="module")
def released(world: World) -> Files:
    return dict(world.release().files)


def forged(world: World, files: Files, change: Change, **options: Any) -> Files:
    return forge(world, files, lambda s: change(s["predicate"]["aggregation"]["epochs"]), **options)


def without(files: Files, name: str) -> tuple[Files, Callable[[dict[str, Any]], None]]:
    """A folder and a certificate that leave a file out."""

    def change(statement: dict[str, Any]) -> None:
        statement["subject"] = [each for each in statement["subject"] if each["name"] != name]

    return {path: content for path, content in files.items() if path != name}, change


def test_the_forger_of_these_tests_forges_well(world: World, released: Files) -> None:
    assert world.verify(forge(world, released)).ok


# --- countersignatures ------------------------------------------------------------------------------------


def test_an_epoch_that_misses_a_countersignature(world: World, released: Files) -> None:
    name = countersignature_path(2, "site4")
    bare = {path: content for path, content in released.items() if path != name}
    assert failure(world.verify(bare)) == (4, "files")
    less, change = without(released, name)
    verdict = world.verify(forge(world, less, change))
    assert failure(verdict) == (6, "roster")
    assert verdict.failed is not None
    assert "countersignatures/2/site4.dsse.json is missing" in verdict.failed.detail

    def unnamed(statement: dict[str, Any]) -> None:
        change(statement)
        del statement["predicate"]["aggregation"]["epochs"][1]["countersignatures"]["site4"]

    assert failure(world.verify(forge(world, less, unnamed))) == (3, "statement")


def test_a_countersignature_of_another_epoch(world: World, released: Files) -> None:
    """site1 agreed to epoch 0; that is no agreement to epoch 2."""
    replay = {countersignature_path(2, "site1"): released[countersignature_path(0, "site1")]}
    assert failure(world.verify(forge(world, released, replace=replay))) == (6, "roster")


def test_an_epoch_that_nobody_agreed_to(world: World, released: Files) -> None:
    """A third epoch with the signatures of the second."""
    again = {
        countersignature_path(7, f"site{n}"): released[countersignature_path(2, f"site{n}")]
        for n in range(1, 5)
    }

    def change(statement: dict[str, Any]) -> None:
        epochs = statement["predicate"]["aggregation"]["epochs"]
        epochs[1]["rounds"][0]["count"] = 1
        run = {"first": 5, "count": 1, "attempt": 4, "dropped": []}
        epochs.append({**epochs[1], "number": 7, "rounds": [run]})
        digests = [{"name": n, "digest": {"sha256": sha256(c).hex()}} for n, c in again.items()]
        statement["subject"] += digests

    assert failure(world.verify(forge(world, {**released, **again}, change))) == (6, "roster")


def test_a_file_of_an_epoch_that_is_not_stated(world: World, released: Files) -> None:
    name = countersignature_path(1, "site1")
    more = {name: released[countersignature_path(0, "site1")]}

    def change(statement: dict[str, Any]) -> None:
        statement["subject"].append({"name": name, "digest": {"sha256": sha256(more[name]).hex()}})

    assert failure(world.verify({**released, **more})) == (4, "files")
    assert failure(world.verify(forge(world, {**released, **more}, change))) == (6, "roster")


def test_a_member_moved_to_an_epoch_it_did_not_join(world: World, released: Files) -> None:
    def swap(epochs: list[dict[str, Any]]) -> None:
        last = epochs[1]
        last["members"][3] = "site0"
        last["countersignatures"]["site0"] = last["countersignatures"].pop("site4")

    assert failure(world.verify(forged(world, released, swap))) == (
        3,
        "statement",
    )  # site4 is left without one

    def both(epochs: list[dict[str, Any]]) -> None:
        last = epochs[1]
        last["members"].append("site0")
        last["parties"] = 5
        last["countersignatures"]["site0"] = epochs[0]["countersignatures"]["site0"]

    assert failure(world.verify(forged(world, released, both))) == (6, "roster")


def reorder(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["members"].reverse()


def swap_rosters(epochs: list[dict[str, Any]]) -> None:
    epochs[0]["roster"], epochs[1]["roster"] = epochs[1]["roster"], epochs[0]["roster"]


def renumber(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["number"] = 1


def lower_threshold(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["threshold"] -= 1


def lower_minimum(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["minimum"] -= 1


def too_few(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0]["dropped"] = ["site1", "site2"]


def outside(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0]["dropped"] = ["site0"]


def double_round(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0].update(first=3, count=3)


def missing_round(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0].update(first=5, count=1)


def fewer_rounds(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0]["count"] = 1


def same_attempt(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0]["attempt"] = 2


def many_attempts(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"][0]["attempt"] = 2**40


def backwards(epochs: list[dict[str, Any]]) -> None:
    epochs.reverse()


def same_number(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["number"] = 0


def drop_epoch(epochs: list[dict[str, Any]]) -> None:
    epochs.pop()


def no_rounds(epochs: list[dict[str, Any]]) -> None:
    epochs[1]["rounds"] = []


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (reorder, (6, "roster")),
        (swap_rosters, (6, "roster")),
        (renumber, (6, "roster")),
        (lower_threshold, (8, "aggregation")),
        (lower_minimum, (8, "aggregation")),
        (too_few, (8, "aggregation")),
        (many_attempts, (8, "aggregation")),
        (outside, (3, "statement")),
        (double_round, (3, "statement")),
        (missing_round, (3, "statement")),
        (fewer_rounds, (3, "statement")),
        (same_attempt, (3, "statement")),
        (backwards, (3, "statement")),
        (same_number, (3, "statement")),
        (drop_epoch, (3, "statement")),
        (no_rounds, (3, "statement")),
    ],
)
def test_epochs_told_otherwise(world: World, released: Files, change: Change, step: tuple[int, str]) -> None:
    assert failure(world.verify(forged(world, released, change))) == step


# --- privacy ----------------------------------------------------------------------------------------------

PRIVACY = PrivacySection(noise_multiplier=8.0, epsilon=3.0, delta=1e-4, clip=1.0, rate=0.5, block_attempts=2)
TRAINING = {"local_steps": 1, "batch": 200}


def private_world(root: Path, *, sites: int, rosters: dict[int, tuple[int, tuple[int, ...]]]) -> World:
    made = make_world(
        root,
        sites=sites,
        rosters=rosters,
        training=TRAINING,
        study={"minimum_sites": 3},
        aggregation={"colluders": 1},
    )
    plan = msgspec.structs.replace(made.study.plan, privacy=PRIVACY)
    study = make_study(plan, made.hub, made.sites, rosters=rosters)
    _, model = plan_model(plan, schema())
    terms = PrivacyTerms.of(plan, plan.params(len(study.epochs[0].members)), private_model(model))
    made.study = replace(study, privacy=terms.facts)
    debits = {site.name: debit_of(made, terms, site, 3) for site in made.sites}
    made.study = replace(made.study, debits=debits)
    return made


def debit_of(world: World, terms: PrivacyTerms, site: Identity, started: int) -> bytes:
    cost = terms.block_cost(8)
    debit = Debit(
        version=1,
        study=world.study.plan.digest.hex(),
        populations=("0" * 64,),
        started=started,
        blocks=terms.blocks,
        rdp=cost.rdp * started,
        delta=cost.delta * started,
        order=8,
        head=Head("0" * 32, 9, "1" * 64),
    )
    return sign_envelope(DEBIT_TYPE, canonical_bytes(debit), [site])


def test_a_private_study_of_two_epochs_with_the_same_terms(tmp_path: Path) -> None:
    world = private_world(tmp_path, sites=5, rosters=ROSTERS)
    verdict = world.verify(dict(world.release().files))
    assert verdict.ok
    (found,) = [step.detail for step in verdict.steps if step.name == "privacy"]
    assert "5 debits" in found


def test_a_private_study_whose_epochs_have_other_terms_is_not_released(tmp_path: Path) -> None:
    """With more sites more shares of noise are counted: the claim of one epoch is not that of the other."""
    world = private_world(tmp_path, sites=6, rosters={0: (0, (0, 1, 2, 3)), 3: (1, tuple(range(6)))})
    with pytest.raises(VerificationError, match=r"step 10, privacy: the events do not follow"):
        world.release()


def test_the_order_of_the_epochs_does_not_hide_other_terms(tmp_path: Path) -> None:
    world = private_world(tmp_path, sites=6, rosters={0: (0, tuple(range(6))), 3: (1, (0, 1, 2, 3))})
    with pytest.raises(VerificationError, match=r"step 10, privacy: the events do not follow"):
        world.release()


def test_a_member_of_one_epoch_owes_the_blocks_of_its_rounds(tmp_path: Path) -> None:
    """Blocks of two attempts: attempts 0 to 2 touch two blocks, attempts 3 and 4 two, all five three."""
    world = private_world(tmp_path, sites=5, rosters=ROSTERS)
    plan = world.study.plan
    _, model = plan_model(plan, schema())
    terms = PrivacyTerms.of(plan, plan.params(4), private_model(model))
    for name, started, ok in (
        ("site0", 2, True),
        ("site0", 1, False),
        ("site4", 2, True),
        ("site4", 1, False),
        ("site1", 2, False),
        ("site1", 3, True),
    ):
        site = next(each for each in world.sites if each.name == name)
        own = {**world.study.debits, name: debit_of(world, terms, site, started)}
        study = replace(world.study, debits=own)
        other = World(tmp_path, world.hub, world.sites, study, world.log, world.cosigners)
        if ok:
            other.release(f"{name}-{started}")
            continue
        with pytest.raises(
            VerificationError, match=f"step 10, privacy: {name}'s ledger debited {started} blocks"
        ):
            other.release(f"{name}-{started}")


def test_a_member_that_left_owes_its_debit_too(tmp_path: Path) -> None:
    world = private_world(tmp_path, sites=5, rosters=ROSTERS)
    files = dict(world.release("whole").files)
    less, change = without(files, debit_path("site0"))

    def silent(statement: dict[str, Any]) -> None:
        change(statement)
        del statement["predicate"]["privacy"]["debits"]["site0"]

    assert failure(world.verify(forge(world, less, change))) == (6, "roster")
    assert failure(world.verify(forge(world, less, silent))) == (3, "statement")
    debits = {name: envelope for name, envelope in world.study.debits.items() if name != "site0"}
    world.study = replace(world.study, debits=debits)
    with pytest.raises(VerificationError, match="no debit of site0"):
        world.release("silent")


def test_two_epochs_cannot_be_told_as_one(world: World, released: Files) -> None:
    """All five sites countersigned something, and never one roster of five."""
    everybody = make_epoch(world.study.plan, 0, world.sites)
    roster = Roster(everybody.members).digest.hex()

    def merge(epochs: list[dict[str, Any]]) -> None:
        first, last = epochs
        epochs[:] = [
            {
                **first,
                "roster": roster,
                "members": [f"site{n}" for n in range(5)],
                "parties": 5,
                "countersignatures": {**last["countersignatures"], **first["countersignatures"]},
                "rounds": [{"first": 1, "count": 5, "attempt": 0, "dropped": []}],
            }
        ]

    assert failure(world.verify(forged(world, released, merge))) == (6, "roster")
