"""What a certificate states of evidence, and a hub that states more than sites signed."""

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
    identity,
    make_plan,
    make_study,
    make_world,
    payload_of,
)

from cloister.crypto import Identity, sha256
from cloister.errors import PolicyRefused, VerificationError
from cloister.governance import DEFAULT_POLICY, in_words
from cloister.governance.folder import appraisal_path
from cloister.governance.policy import ReleasePolicy
from cloister.learning import EnclaveSection, Plan
from cloister.log import Log
from cloister.runtime.appraisal import AGGREGATOR, WORKER, Appraisal, Appraised, sign_appraisal

CLAIMS: dict[str, bool | None] = {
    "signature": True,
    "chain": True,
    "freshness": True,
    "hardware_rooted": True,
    "revocation_checked": None,
}


def accepted(agreed: Plan, whose: str, judge: str, /, **changes: Any) -> Appraisal:
    said = Appraisal(
        plan=agreed.digest.hex(),
        party=whose,
        by=judge,
        purpose=AGGREGATOR if whose == "hub" else WORKER,
        kind="snp",
        hardware=True,
        key=(sha256(identity("hub").public.to_json()) if whose == "hub" else sha256(whose.encode())).hex(),
        evidence=sha256(b"evidence", whose.encode(), judge.encode()).hex(),
        at="2026-03-01T11:00:00Z",
        claims=CLAIMS,
    )
    return msgspec.structs.replace(said, **changes)


SOFT: dict[str, Any] = {"hardware": False, "kind": "tpm", "claims": CLAIMS | {"hardware_rooted": False}}


def attested_world(
    root: Path,
    *,
    workers: dict[str, dict[str, Any]] | None = None,
    hub: dict[str, dict[str, Any]] | None = None,
    signed_by: dict[str, Identity] | None = None,
) -> World:
    """`workers` and `hub` map a site's name to changes of the appraisal of its worker, and of that of the hub by
    it; `signed_by` to who signs the latter."""
    world = make_world(root)
    plan = msgspec.structs.replace(
        make_plan(world.hub, world.sites), enclave=EnclaveSection(required=True, reattest_seconds=7200)
    )
    study = make_study(plan, world.hub, world.sites)
    kept = {}
    for site in world.sites:
        worker = accepted(plan, site.name, "hub", **(workers or {}).get(site.name, {}))
        said = accepted(plan, "hub", site.name, **(hub or {}).get(site.name, {}))
        signer = (signed_by or {}).get(site.name, site)
        kept[site.name] = Appraised(worker, sign_appraisal(said, signer).decode())
    world.study = replace(study, appraisals=kept)
    return world


def test_a_certificate_states_what_was_accepted_and_verifies(tmp_path: Path) -> None:
    world = attested_world(tmp_path)
    released = world.release()
    facts = released.certificate.statement.predicate
    assert facts.enclave is not None
    assert facts.enclave.hardware
    assert facts.enclave.reattest_seconds == 7200
    assert set(facts.enclave.workers) == {"site0", "site1", "site2", "site3"}
    assert "enclave" not in facts.absent
    verdict = world.verify(dict(released.files))
    assert verdict.ok
    assert "rooted in hardware" in verdict.steps[5].detail
    assert any(line.startswith("evidence:") for line in verdict.unchecked)
    english, chinese = (" ".join(in_words(released.certificate.statement, lang)) for lang in ("en", "zh"))
    assert "rooted in hardware (snp) before they worked together, at most 2 hours old" in english
    assert "not hardware-protected" not in english
    assert "以硬件为根的证据（snp）" in chinese


@pytest.mark.parametrize("who", ["worker", "hub"])
def test_software_anywhere_is_said_in_both_languages(tmp_path: Path, who: str) -> None:
    changed = {"site1": SOFT}
    world = attested_world(tmp_path, **{"workers" if who == "worker" else "hub": changed})
    released = world.release()
    statement = released.certificate.statement
    assert statement.predicate.enclave is not None
    assert not statement.predicate.enclave.hardware
    verdict = world.verify(dict(released.files))
    assert verdict.ok
    assert "not hardware-protected" in verdict.steps[5].detail
    english, chinese = (" ".join(in_words(statement, lang)) for lang in ("en", "zh"))
    assert "not hardware-protected" in english
    assert ("site1" if who == "worker" else "the hub") in english
    assert "没有硬件保护" in chinese


def test_without_evidence_it_is_said_too(tmp_path: Path) -> None:
    statement = make_world(tmp_path).release().certificate.statement
    assert statement.predicate.enclave is None
    assert "not hardware-protected" in " ".join(in_words(statement))
    assert "没有硬件保护" in " ".join(in_words(statement, "zh"))


def test_an_owner_may_ask_for_hardware(tmp_path: Path) -> None:
    asking = (DEFAULT_POLICY, ReleasePolicy(require_hardware=True))
    attested_world(tmp_path / "hard").release(policies=asking)
    for world in (make_world(tmp_path / "none"), attested_world(tmp_path / "soft", workers={"site0": SOFT})):
        with pytest.raises(PolicyRefused, match="require_hardware: the study was not hardware-protected"):
            world.release(policies=asking)


def test_a_study_that_misses_evidence_is_not_released(tmp_path: Path) -> None:
    world = attested_world(tmp_path)
    kept = {name: each for name, each in world.study.appraisals.items() if name != "site2"}
    world.study = replace(world.study, appraisals=kept)
    with pytest.raises(VerificationError, match="no evidence of site2"):
        world.release()
    assert Log(world.log.path, world.hub.fingerprint).head().size == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": {"site1": {"plan": "0" * 64}}},
        {"workers": {"site1": {"party": "site2"}}},
        {"workers": {"site1": {"by": "site0"}}},
        {"workers": {"site1": {"purpose": AGGREGATOR}}},
        {"workers": {"site1": {"claims": CLAIMS | {"freshness": None}}}},
        {"workers": {"site1": {"claims": CLAIMS | {"hardware_rooted": False}}}},
        {"workers": {"site1": {"claims": {}}}},
        {"hub": {"site1": {"plan": "0" * 64}}},
        {"hub": {"site1": {"party": "site2"}}},
        {"hub": {"site1": {"purpose": WORKER}}},
        {"hub": {"site1": {"key": "0" * 64}}},
        {"hub": {"site1": {"claims": CLAIMS | {"freshness": False}}}},
        {"hub": {"site1": {"claims": CLAIMS | {"hardware_rooted": None}}}},
    ],
)
def test_appraisals_that_do_not_fit_are_not_released(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="step 6"):
        attested_world(tmp_path, **changes).release()


def test_a_hub_cannot_sign_for_a_site(tmp_path: Path) -> None:
    world = attested_world(tmp_path)
    files = dict(world.release().files)
    path = appraisal_path("site1")
    said = sign_appraisal(accepted(world.study.plan, "hub", "site1"), world.hub)

    def state(statement: dict[str, Any]) -> None:
        statement["predicate"]["enclave"]["aggregator"]["site1"] = sha256(said).hex()

    assert failure(world.verify(forge(world, files, state, replace={path: said}))) == (6, "roster")


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        place = statement["predicate"]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def without_evidence(statement: dict[str, Any]) -> None:
    statement["predicate"]["enclave"] = None
    statement["predicate"]["absent"]["enclave"] = (
        "no hardware evidence was collected: honest execution rests on the parties that signed"
    )


def without_one(statement: dict[str, Any]) -> None:
    del statement["predicate"]["enclave"]["workers"]["site1"]


def another_worker(statement: dict[str, Any]) -> None:
    workers = statement["predicate"]["enclave"]["workers"]
    workers["site1"] = workers["site0"]


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (at("enclave", "reattest_seconds", value=3600), (6, "roster")),
        (at("enclave", "hardware", value=False), (6, "roster")),
        (at("enclave", "workers", "site1", "hardware", value=False), (6, "roster")),
        (at("enclave", "aggregator", "site1", value="0" * 64), (6, "roster")),
        (at("enclave", value={}), (3, "statement")),
        (at("absent", "enclave", value="none"), (3, "statement")),
        (without_evidence, (6, "roster")),
        (without_one, (6, "roster")),
        (another_worker, (6, "roster")),
    ],
)
def test_a_false_word_on_evidence_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], step: tuple[int, str]
) -> None:
    world = attested_world(tmp_path)
    files = dict(world.release().files)
    assert failure(world.verify(forge(world, files, change))) == step


def test_software_is_not_made_hardware_by_the_hubs_word(tmp_path: Path) -> None:
    """What sites signed of the hub stands against it."""
    world = attested_world(tmp_path, hub={"site0": SOFT})
    files = dict(world.release().files)
    forged = forge(world, files, at("enclave", "hardware", value=True))
    assert failure(world.verify(forged)) == (6, "roster")


def test_evidence_is_not_claimed_for_a_plan_that_asks_for_none(tmp_path: Path) -> None:
    plain, attested = make_world(tmp_path / "plain"), attested_world(tmp_path / "attested")
    claimed = payload_of(dict(attested.release().files))["predicate"]["enclave"]

    def claim(statement: dict[str, Any]) -> None:
        statement["predicate"]["enclave"] = claimed
        del statement["predicate"]["absent"]["enclave"]

    files = dict(plain.release().files)
    extra = {path: data for path, data in attested.release("again").files.items() if "appraisals/" in path}

    def claim_with_files(statement: dict[str, Any]) -> None:
        claim(statement)
        statement["subject"] += [
            {"name": path, "digest": {"sha256": sha256(data).hex()}} for path, data in extra.items()
        ]
        statement["subject"].sort(key=lambda subject: subject["name"])

    assert failure(plain.verify(forge(plain, files, claim))) == (6, "roster")
    assert failure(plain.verify(forge(plain, files, claim_with_files, replace=extra))) == (6, "roster")
