"""A certificate's claim of privacy against a hub that signs whatever it likes, but cannot sign for the sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.governance import releases
from tests.governance.releases import (
    World,
    failure,
    forge,
    identity,
    make_plan,
    make_study,
    make_world,
    payload_of,
    schema,
)

from cloister.crypto import Identity, canonical_bytes, sha256, sign_envelope
from cloister.errors import PolicyRefused, VerificationError
from cloister.governance import ReleasePolicy, in_words
from cloister.governance.certificate import ABSENT, decode_statement
from cloister.governance.folder import debit_path
from cloister.learning import PrivacySection, plan_model
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.sections import ModelSection
from cloister.privacy.ledger import DEBIT_TYPE, Debit, Head

Files = dict[str, bytes]
PRIVACY = PrivacySection(noise_multiplier=8.0, epsilon=3.0, delta=1e-4, clip=1.0, rate=0.5)
TRAINING = {"local_steps": 1, "batch": 200}


def debit_of(world: World, site: Identity, terms: PrivacyTerms, **changes: Any) -> bytes:
    started = 5
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
    payload = canonical_bytes(msgspec.structs.replace(debit, **changes))
    return sign_envelope(DEBIT_TYPE, payload, [site])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("private"), training=TRAINING)
    plan = msgspec.structs.replace(made.study.plan, privacy=PRIVACY)
    made.study = make_study(plan, made.hub, made.sites)
    terms = terms_of(made)
    debits = {site.name: debit_of(made, site, terms) for site in made.sites}
    made.study = replace(made.study, privacy=terms.facts, debits=debits)
    return made


def terms_of(world: World) -> PrivacyTerms:
    plan = world.study.plan
    return PrivacyTerms.of(plan, plan.params(4), private_model(plan_model(plan, schema())[1]))


@pytest.fixture(scope="module")
def files(world: World) -> Files:
    return dict(world.release().files)


def test_an_honest_release_verifies_and_says_both_epsilons(world: World, files: Files) -> None:
    verdict = world.verify(forge(world, files))
    assert verdict.ok
    (found,) = [check.detail for check in verdict.steps if check.name == "privacy"]
    facts = world.study.privacy
    assert facts is not None
    assert facts.epsilon_hub < facts.epsilon_colluders <= 3.0
    assert "recomputed; 4 debits" in found
    assert any("no attack was run" in text for text in verdict.unchecked)


def changed(path: tuple[str | int, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        inner: Any = statement["predicate"]["privacy"]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(("epsilon_hub",), lambda value: value / 2),
        changed(("epsilon_colluders",), lambda value: value - 0.001),
        changed(("claim", "delta"), 1e-3),
        changed(("claim", "noise_multiplier"), 9.0),
        changed(("claim", "clip"), 0.5),
        changed(("claim", "share_variance"), lambda value: value * 2),
        changed(("claim", "events_hub", 0, "count"), lambda value: value - 1),
        changed(("claim", "events_hub", 0, "sampler", "rate"), 0.25),
        changed(("claim", "events_colluders", 0, "mechanism", "variance"), lambda value: value * 4),
        changed(("claim", "events_colluders", 0, "mechanism", "sensitivity"), lambda value: value / 2),
        changed(("debits", "site0"), "0" * 64),
        changed(
            ("audit",),
            {"bound": 9.0, "confidence": 0.95, "verdict": "consistent with the claim", "report": "0" * 64},
        ),
    ],
)
def test_a_claim_that_does_not_follow_is_refused(
    world: World, files: Files, change: Callable[[dict[str, Any]], None]
) -> None:
    assert failure(world.verify(forge(world, files, change))) == (10, "privacy")


def test_a_claim_left_out_is_refused(world: World, files: Files) -> None:
    def silent(statement: dict[str, Any]) -> None:
        predicate = statement["predicate"]
        predicate["privacy"] = None
        predicate["absent"]["privacy"] = ABSENT["privacy"]

    assert failure(world.verify(forge(world, files, silent))) is not None


def test_a_claim_for_a_study_without_one_is_refused(tmp_path: Path, world: World, files: Files) -> None:
    plain = make_world(tmp_path, training=TRAINING)
    released = dict(plain.release().files)
    privacy = payload_of(files)["predicate"]["privacy"]

    def boast(statement: dict[str, Any]) -> None:
        statement["predicate"]["privacy"] = privacy
        statement["predicate"]["absent"].pop("privacy")

    assert failure(plain.verify(forge(plain, released, boast))) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("study", "9" * 64), ("started", 1), ("rdp", 1e-9), ("delta", 0.0), ("order", 4096)],
)
def test_a_debit_that_is_too_small_or_of_another_study_is_refused(
    world: World, files: Files, field: str, value: Any
) -> None:
    own = debit_of(world, world.sites[1], terms_of(world), **{field: value})
    assert failure(world.verify(forge(world, files, debit(own), replace={debit_path("site1"): own}))) == (
        10,
        "privacy",
    )


def debit(envelope: bytes) -> Callable[[dict[str, Any]], None]:
    return changed(("debits", "site1"), sha256(envelope).hex())


def test_a_debit_that_the_hub_signs_for_a_site_is_refused(world: World, files: Files) -> None:
    forged = debit_of(world, world.hub, terms_of(world))
    verdict = world.verify(forge(world, files, debit(forged), replace={debit_path("site1"): forged}))
    assert failure(verdict) == (10, "privacy")


def test_a_missing_debit_is_refused(world: World, files: Files) -> None:
    less = {name: content for name, content in files.items() if name != debit_path("site2")}
    assert failure(world.verify(less)) is not None


def test_a_study_without_every_debit_is_not_released(tmp_path: Path, world: World) -> None:
    """A site that fell silent at the end has not shown what its ledger paid."""
    debits = {name: envelope for name, envelope in world.study.debits.items() if name != "site3"}
    study = replace(world.study, debits=debits)
    other = World(tmp_path, world.hub, world.sites, study, world.log, world.cosigners)
    with pytest.raises(VerificationError, match="site3"):
        other.release("silent")


def test_more_epsilon_than_the_plan_promised_is_not_released(tmp_path: Path, world: World) -> None:
    promised = msgspec.structs.replace(PRIVACY, noise_multiplier=2.0)
    plan = msgspec.structs.replace(world.study.plan, privacy=promised)
    study = make_study(plan, world.hub, world.sites)
    boastful = replace(study, privacy=world.study.privacy, debits=world.study.debits)
    other = World(tmp_path, world.hub, world.sites, boastful, world.log, world.cosigners)
    with pytest.raises((VerificationError, PolicyRefused)):
        other.release("boastful")


def test_policies_on_privacy(world: World, files: Files) -> None:
    predicate = decode_statement(canonical_bytes(payload_of(files))).predicate
    assert not ReleasePolicy(require_privacy=True, maximum_epsilon=3.0, maximum_delta=1e-4).check(predicate)
    strict = ReleasePolicy(maximum_epsilon=0.1, maximum_delta=1e-6, require_audit=True)
    reasons = " ".join(strict.check(predicate))
    for rule in ("maximum_epsilon", "maximum_delta", "require_audit"):
        assert rule in reasons


def test_the_words_hold_the_claim(world: World, files: Files) -> None:
    statement = decode_statement(canonical_bytes(payload_of(files)))
    for lang in ("en", "zh"):
        text = " ".join(in_words(statement, lang))  # type: ignore[arg-type]
        assert f"{statement.predicate.privacy.epsilon_hub:g}" in text  # type: ignore[union-attr]


def test_plans_differ_by_their_privacy() -> None:
    hub, members = identity("hub"), [identity(f"site{number}") for number in range(4)]
    plain = make_plan(hub, members, training=TRAINING)
    assert msgspec.structs.replace(plain, privacy=PRIVACY).digest != plain.digest


# --- a module of the user's own: the reader does not run it, and believes no figure for that ---------------

SIZE = 10


@pytest.fixture(scope="module")
def torch_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("module"), training=TRAINING)
    model = ModelSection(kind="torch", classes=2, code="0" * 64, factory="build", initial="1" * 64)
    plan = msgspec.structs.replace(made.study.plan, privacy=PRIVACY, model=model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(releases, "plan_model", lambda plan, schema: (None, SimpleNamespace(size=SIZE)))
        made.study = make_study(plan, made.hub, made.sites)
    terms = PrivacyTerms.derive(plan, plan.params(4), SIZE, 1e-9)
    debits = {site.name: debit_of(made, site, terms) for site in made.sites}
    made.study = replace(made.study, privacy=terms.facts, debits=debits)
    return made


def everywhere(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """The same change to both views; what is stated of them stays as large as it was."""

    def change(statement: dict[str, Any]) -> None:
        for events in ("events_hub", "events_colluders"):
            changed(("claim", events, 0, *path), value)(statement)

    return change


def test_a_release_of_a_module_verifies(torch_world: World) -> None:
    files = dict(torch_world.release("honest").files)
    verdict = torch_world.verify(forge(torch_world, files))
    assert verdict.ok
    assert any("float error" in text for text in verdict.unchecked)


@pytest.mark.parametrize(
    "change",
    [
        everywhere("mechanism", "variance", value=lambda value: float(value) * 4),
        everywhere("mechanism", "sensitivity", value=lambda value: value / 2),
        everywhere("mechanism", "coordinates", value=1),
        everywhere("mechanism", "shares", value=1),
        everywhere("mechanism", value={"kind": "gaussian", "sigma": 100.0, "sensitivity": 1.0}),
        everywhere("sampler", "rate", value=0.25),
        changed(("claim", "noise_multiplier"), 9.0),
        changed(("claim", "share_variance"), lambda value: value * 2),
        changed(("claim", "clip_units"), lambda value: value * 2),
        changed(("claim", "clip_units"), 0),
        changed(("claim", "events_hub"), []),
    ],
)
def test_a_claim_for_a_module_follows_from_the_plan_too(
    torch_world: World, change: Callable[[dict[str, Any]], None], request: pytest.FixtureRequest
) -> None:
    files = dict(torch_world.release(f"r{abs(hash(request.node.name))}").files)
    assert failure(torch_world.verify(forge(torch_world, files, change))) == (10, "privacy")
