"""Releases of language models: honest ones verify, and say what they are; others name the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tests.governance.languagereleases import make_language_world
from tests.governance.releases import World, failure, forge, make_world
from tests.inference.language.models import make_tiny_model
from tests.inference.language.released import trained_vector

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import InputError, IntegrityError, VerificationError
from cloister.governance import Released, in_words
from cloister.governance.audit import MEMORISED, AuditReport, LanguageFindings, asked, judge, numbers_digest
from cloister.governance.certificate import AskedSecrets, Privacy, decode_statement
from cloister.governance.folder import MODEL, MODEL_CARD
from cloister.governance.modelcard import model_card
from cloister.inference import AdapterArtifact, artifact_from_bytes
from cloister.inference.tensors import read_tensors, write_tensors
from cloister.learning.attacks.languageexposure import Exposure
from cloister.learning.attacks.languagememory import Remembered
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.sections import PrivacySection
from cloister.log import Log
from cloister.report.audit import audit_summary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, base: Path) -> World:
    return make_language_world(tmp_path_factory.mktemp("language"), base)


@pytest.fixture(scope="module")
def released(world: World, base: Path) -> Released:
    return world.release(base=base)


@pytest.fixture(scope="module")
def files(released: Released) -> dict[str, bytes]:
    return dict(released.files)


@pytest.mark.parametrize(
    ("kind", "language"),
    [
        ("text-classifier", {}),
        ("causal-lm", {"method": "lora-alternating"}),
        ("causal-lm", {"method": "full", "rank": 0, "format": "text"}),
    ],
)
def test_every_kind_is_released_and_verifies(
    base: Path, tmp_path: Path, kind: str, language: dict[str, Any]
) -> None:
    world = make_language_world(tmp_path, base, kind, **language)
    released = world.release(base=base, recipients=[world.sites[0].public])
    assert MODEL not in released.files
    shut, opened = (world.verify(dict(released.files), reader=r) for r in (None, world.sites[0]))
    assert shut.ok, shut.failed
    assert opened.ok, opened.failed
    assert any(line.startswith("model:") for line in shut.unchecked)
    assert any(line.startswith("base:") for line in opened.unchecked)
    words = " ".join(in_words(released.certificate.statement))
    assert "public language model" in words
    assert in_words(released.certificate.statement, "zh")


def test_the_release_is_the_adapter_by_name(
    world: World, files: dict[str, bytes], base: Path, tmp_path: Path
) -> None:
    artifact = artifact_from_bytes(files[MODEL])
    assert isinstance(artifact, AdapterArtifact)
    assert artifact.card.plan == world.study.plan.digest.hex()
    vector = trained_vector(world.study.plan, base, tmp_path)
    stated = world.verify(files).certificate
    assert stated is not None
    language = stated.statement.predicate.language
    assert not isinstance(language, msgspec.UnsetType)
    assert (language.trained, language.tensors) == (vector.size, artifact.size)
    assert language.trained < language.tensors


def test_the_card_says_what_the_certificate_says(world: World, files: dict[str, bytes]) -> None:
    card = files[MODEL_CARD].decode()
    plan = world.study.plan
    assert plan.language is not None
    for part in (
        "# support",
        plan.language.base,
        plan.language.tokenizer,
        plan.digest.hex(),
        "site0 (100 rows)",
        "5 of fedavg",
        "| differential privacy | none |",
        "| guarantee | none is claimed |",
        "| audit | none is stated |",
        "word for word",
        "cloister serve RELEASE --base BASE",
    ):
        assert part in card, part


def audit_at_chance(world: World, source: str = "rehearsed") -> AuditReport:
    """An audit of this plan that found nothing, where nothing is claimed."""
    plan = world.study.plan
    assert plan.language is not None
    hidden = Exposure("pin", 20, 13.3, 1.0, 0.9, 1.1, None, None, 0.5, 999)
    run = Remembered("as planned", "at chance", (), (hidden, hidden), 0.5, (), 1e-5, None)
    verdict, said = judge(None, None, 0.99, (), run)
    return AuditReport(
        claimed=None,
        bound=None,
        confidence=0.99,
        verdict=verdict,
        explanation=said,
        study=plan.study.name,
        plan=plan.digest.hex(),
        hub_view="sum",
        rows="synthetic",
        claim=None,
        canaries=None,
        bounds=(),
        checks=(),
        membership=None,
        inversion=(),
        conditions=(),
        seconds=1.0,
        created="2026-03-01T12:00:00Z",
        language=LanguageFindings(
            plan.language.base,
            "causal-lm",
            source,  # type: ignore[arg-type]
            100,
            (run,),
            numbers_digest(world.study.parameters) if source == "planted" else msgspec.UNSET,
        ),
    )


@pytest.mark.parametrize("model", [msgspec.UNSET, "0" * 64])
def test_an_audit_that_asked_another_model_of_the_plan_is_not_this_ones(
    base: Path, tmp_path: Path, model: Any
) -> None:
    """A plan may be run twice; what the first one's model forgot, the second's may remember."""
    world = make_language_world(tmp_path, base)
    report = audit_at_chance(world, "planted")
    other = replace(report, language=replace(report.language, model=model))
    with pytest.raises(VerificationError, match="another model"):
        world.release(base=base, audit=other)


def test_a_report_that_was_rewritten_contradicts_itself(base: Path, tmp_path: Path) -> None:
    world = make_language_world(tmp_path, base)
    report = audit_at_chance(world)
    (run,) = report.language.runs  # type: ignore[union-attr]
    runs = (replace(run, verdict="memorised"),)
    told = replace(report, language=replace(report.language, runs=runs))
    with pytest.raises(VerificationError, match="both"):
        world.release(base=base, audit=told)


@pytest.mark.parametrize("source", ["rehearsed", "planted"])
def test_an_audit_at_chance_without_a_claim_is_said_to_guarantee_nothing(
    base: Path, tmp_path: Path, source: str
) -> None:
    world = make_language_world(tmp_path, base)
    report = audit_at_chance(world, source)
    assert "guarantees nothing" in report.explanation
    assert "no guarantee" in audit_summary(report).splitlines()[0]
    released = world.release(base=base, audit=report)
    verdict = world.verify(dict(released.files))
    assert verdict.ok, verdict.failed
    predicate = released.certificate.statement.predicate
    assert predicate.privacy is None
    assert not isinstance(predicate.language, msgspec.UnsetType)
    digest = sha256(canonical_bytes(report)).hex()
    assert predicate.language.audit == AskedSecrets(source, 2, 0.99, digest)  # type: ignore[arg-type]
    (said,) = [line for line in in_words(released.certificate.statement) if "attack" in line]
    assert "found nothing: the secrets that" in said
    assert "(2) were not told from others (0.99 confidence)" in said
    assert "No guarantee is claimed" in said
    assert ("ran the training anew" in said) == (source == "rehearsed")
    assert any("没有声明任何保证" in line for line in in_words(released.certificate.statement, "zh"))
    card = released.files[MODEL_CARD].decode()
    assert "| differential privacy | none |\n| guarantee | none is claimed |" in card
    assert (
        f"found nothing: the planted secrets (2) were not told from others at confidence 0.99 (report {digest})"
        in card
    )
    assert "That guarantees nothing, and no guarantee is claimed" in card


def test_no_audit_is_stated_that_is_none_or_stands_beside_a_claim(world: World, released: Released) -> None:
    report = audit_at_chance(world)
    assert isinstance(report.language, LanguageFindings)
    run = msgspec.structs.replace(report.language.runs[0], exposures=(), p_value=None)
    blind = msgspec.structs.replace(report, language=msgspec.structs.replace(report.language, runs=(run,)))
    assert asked(report) is not None
    assert asked(blind) is None  # it asked for nothing
    with pytest.raises(VerificationError, match="remembers"):
        asked(msgspec.structs.replace(report, verdict=MEMORISED))
    statement = msgspec.to_builtins(released.certificate.statement)
    stated = {"source": "planted", "secrets": 2, "confidence": 0.9, "report": "0" * 64}
    statement["predicate"]["language"]["audit"] = stated
    assert decode_statement(canonical_bytes(statement)).predicate.language
    section = PrivacySection(noise_multiplier=4.0, delta=1e-5, clip=1.0, rate=0.1)
    plan = world.study.plan
    assert plan.language is not None
    language = msgspec.structs.replace(plan.language, overlong="truncate")
    training = msgspec.structs.replace(plan.training, local_steps=1)
    plan = msgspec.structs.replace(plan, privacy=section, language=language, training=training)
    claim = PrivacyTerms.derive(plan, plan.params(4), 100, 1e-6).facts
    debits = dict.fromkeys((each.name for each in world.sites), "0" * 64)
    claimed = Privacy(claim, claim.epsilon_hub, claim.epsilon_colluders, debits, None)
    statement["predicate"]["privacy"] = msgspec.to_builtins(claimed)
    del statement["predicate"]["absent"]["privacy"]
    with pytest.raises(VerificationError, match="stands beside no claim, and there is one"):
        decode_statement(canonical_bytes(statement))


def test_no_text_of_a_plan_is_more_than_text_in_the_card(world: World, released: Released) -> None:
    """A purpose, or a name of a layer, is whatever a plan's author wrote."""
    written = (
        "# Privacy | epsilon 0.1 <img src=x onerror=alert(1)> [click](javascript:alert(1)) `x` **y** &lt;"
    )
    statement, plan = released.certificate.statement, world.study.plan
    assert plan.language is not None
    plan = msgspec.structs.replace(
        plan, language=msgspec.structs.replace(plan.language, targets=(written, "q_proj"))
    )
    predicate = msgspec.structs.replace(statement.predicate, purpose=written)
    card = model_card(msgspec.structs.replace(statement, predicate=predicate), plan).decode()
    assert "<" not in card
    assert "\n# Privacy" not in card
    assert "[click](" not in card
    for part in ("&lt;img src=x", "\\[click\\](", "\\| epsilon", "\\*\\*y", "q_proj"):
        assert part in card, part


def test_a_release_needs_its_base_and_no_other(world: World, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beside its base"):
        world.release("without")
    other = make_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(IntegrityError, match="base model here is not"):
        world.release("other", base=other)
    assert not (world.root / "without").exists()
    study = dataclasses.replace(world.study, parameters=world.study.parameters[:-1])
    broken = dataclasses.replace(world, study=study)
    with pytest.raises(IntegrityError, match="parameters"):
        broken.release("short", base=base)


def changed_model(files: dict[str, bytes], change: Callable[[dict[str, Any]], object]) -> bytes:
    tensors, text = read_tensors(files[MODEL])
    card = msgspec.json.decode(text)
    change(card)
    return write_tensors(tensors, canonical_bytes(card).decode())


def first_b(files: dict[str, bytes]) -> str:
    return next(name for name in read_tensors(files[MODEL])[0] if ".lora_B." in name)


def test_what_a_malicious_hub_can_forge_does_not_verify(world: World, files: dict[str, bytes]) -> None:
    assert world.verify(forge(world, files)).ok

    def stated(**changes: Any) -> Callable[[dict[str, Any]], None]:
        return lambda statement: statement["predicate"]["language"].update(changes)

    def dropped(statement: dict[str, Any]) -> None:
        del statement["predicate"]["language"]

    tensors, text = read_tensors(files[MODEL])
    fewer = {name: each for name, each in tensors.items() if ".layers.0." not in name}
    scaled = changed_model(files, lambda card: card["language"].update(alpha=1000.0))
    cases: list[tuple[dict[str, bytes], int]] = [
        (forge(world, files, stated(base="0" * 64)), 5),
        (forge(world, files, stated(rank=8)), 5),
        (forge(world, files, stated(method="full")), 5),
        (forge(world, files, dropped), 5),
        (forge(world, files, replace={MODEL_CARD: b"# A model that is always right\n"}), 5),
        (forge(world, files, stated(trained=1)), 5),  # the card would have to say so, too
        (forge(world, files, replace={MODEL: scaled}), 9),
        (forge(world, files, replace={MODEL: write_tensors(fewer, text)}), 9),
        (
            forge(world, files, replace={MODEL: changed_model(files, lambda c: c["model"].update(seed=1))}),
            9,
        ),
        ({name: each for name, each in files.items() if name != MODEL_CARD}, 4),
    ]
    for number, (forged, step) in enumerate(cases):
        found = failure(world.verify(forged))
        assert found is not None, number
        assert found[0] == step, (number, found)


def test_a_card_of_other_numbers_is_found_in_the_model(world: World, files: dict[str, bytes]) -> None:
    """Certificate and card may agree on a lie; the model, where it is there, does not."""
    released = world.verify(files).certificate
    assert released is not None
    statement = released.statement
    facts = msgspec.structs.replace(statement.predicate.language, trained=7)  # type: ignore[type-var]
    predicate = msgspec.structs.replace(statement.predicate, language=facts)
    card = model_card(msgspec.structs.replace(statement, predicate=predicate), world.study.plan)

    def change(stated: dict[str, Any]) -> None:
        stated["predicate"]["language"]["trained"] = 7

    forged = forge(world, files, change, replace={MODEL_CARD: card})
    assert failure(world.verify(forged)) == (9, "model")


def test_a_tables_release_has_no_such_card(tmp_path: Path, files: dict[str, bytes]) -> None:
    world = make_world(tmp_path)
    table = dict(world.release().files)
    assert MODEL_CARD not in table
    card = {"name": MODEL_CARD, "digest": {"sha256": "0" * 64}}

    def name_it(statement: dict[str, Any]) -> None:
        statement["subject"] = sorted([*statement["subject"], card], key=lambda each: str(each["name"]))

    forged = forge(world, {**table, MODEL_CARD: b"x"}, name_it)
    found = failure(world.verify(forged))
    assert found is not None
    assert found[0] in (4, 5)
    with_language = forge(world, table, replace={MODEL: files[MODEL]})
    assert failure(world.verify(with_language)) == (9, "model")


def test_a_model_that_the_hub_must_not_see_is_released_by_a_site(base: Path, tmp_path: Path) -> None:
    world = make_language_world(tmp_path, base, aggregation={"hub_view": "none", "bits": 8})
    signer = world.sites[0]
    log = Log(tmp_path / "site.log", signer.fingerprint)
    released = world.release(base=base, signer=signer, log=log, recipients=[world.sites[1].public])
    verdict = world.verify(dict(released.files), reader=world.sites[1])
    assert verdict.ok, verdict.failed
    card = released.files[MODEL_CARD].decode()
    assert "| hub | saw neither |" in card
    assert "8 bits a number" in card
    with pytest.raises(VerificationError):
        world.release("by-the-hub", base=base)
