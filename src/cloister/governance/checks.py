"""The twelve steps of `verify`, one function each; the numbers are those of its docstring.

Each takes the case, raises a CloisterError that says what does not hold, or returns what it found as a
sentence part. A step may use what earlier steps have put into the case, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UnsetType

from cloister.crypto import (
    envelope_signers,
    keyring,
    open_bytes,
    open_envelope,
    sealed_recipients,
    sha256,
)
from cloister.governance.case import Case, require
from cloister.governance.certificate import ABSENT, PAYLOAD_TYPE, Certificate, Epoch, decode_statement
from cloister.governance.enclave import check_enclave
from cloister.governance.folder import (
    CERTIFICATE,
    MODEL,
    MODEL_CARD,
    PLAN,
    PROOF,
    SEALED_MODEL,
    appraisal_path,
    check_complete,
    countersignature_path,
    debit_path,
    manifest_path,
)
from cloister.governance.modelcard import language_of, model_card
from cloister.governance.policy import plan_policy
from cloister.governance.privacy import check_privacy
from cloister.governance.proof import check_head, check_inclusion, decode_proof
from cloister.inference import AdapterArtifact, ModelArtifact, artifact_from_bytes, in_memory_file
from cloister.learning import parse_plan
from cloister.learning.language.adapter import plan_card
from cloister.runtime import Countersignature, read_countersignature
from cloister.secagg import Params, Roster
from cloister.vault import open_manifest

__all__ = ["CHECKS"]


def _folder(case: Case) -> str:
    # 1. exactly the files of a release (names and limits were checked while reading)
    check_complete(case.files)
    return f"{len(case.files)} files"


def _signature(case: Case) -> str:
    # 2. signed by one identity that the verifier trusts
    envelope = case.files[CERTIFICATE]
    signers = envelope_signers(envelope)
    require(len(signers) == 1, f"the certificate has {len(signers)} signatures where a release has one")
    require(
        signers[0] in case.trusted, f"the certificate is signed by {signers[0][:16]!r}, whom you do not trust"
    )
    case.signer = case.trusted[signers[0]]
    case.payload = open_envelope(envelope, PAYLOAD_TYPE, keyring([case.signer]))
    return f"signed by {case.signer.name}, {case.signer.fingerprint[:16]}"


def _statement(case: Case) -> str:
    # 3. well-formed, and the signer names itself
    statement = decode_statement(case.payload)
    require(
        statement.predicate.signer == case.signer.fingerprint,
        "the certificate names another signer than it has",
    )
    case.certificate = Certificate(statement, case.files[CERTIFICATE])
    return f"release of study {statement.predicate.study}"


def _files(case: Case) -> str:
    # 4. files and subjects are the same, one by one
    subjects = case.known.statement.subjects()
    sealed = SEALED_MODEL in case.files
    expected = subjects.keys() - ({MODEL} if sealed else set())
    present = case.files.keys() - {CERTIFICATE, PROOF}
    require(MODEL in subjects, f"the certificate does not name {MODEL}")
    for name in sorted(expected | present):
        require(name in present, f"{name} is missing")
        require(name in expected, f"{name} is not covered by the certificate")
        require(sha256(case.files[name]).hex() == subjects[name], f"{name} is not what the certificate names")
    return f"{len(present)} files have the digests stated"


def _plan(case: Case) -> str:
    # 5. the plan, what is said of it, and the role of the signer
    case.plan = plan = parse_plan(case.files[PLAN], allow_two=case.allow_two)
    facts, summed = case.facts, case.facts.aggregation
    require(plan.digest.hex() == facts.plan, "plan.toml is not the plan whose digest the certificate states")
    said = (facts.study, facts.purpose, facts.training.algorithm, facts.training.model, facts.training.rounds)
    planned = (
        plan.study.name,
        plan.study.purpose,
        plan.training.algorithm,
        plan.model.kind,
        plan.training.rounds,
    )
    require(said == planned, "name, purpose, algorithm, model or rounds are not the plan's")
    view = plan.aggregation
    require(
        (summed.bits, summed.hub_view, summed.value_range) == (view.bits, view.hub_view, view.value_range),
        "ring width, hub view or value range are not the plan's",
    )
    _check_language(case)
    if view.hub_view == "sum":
        require(
            facts.signer == plan.hub.identity, f"{case.signer.name} signed, who is not the hub of the plan"
        )
    else:
        sites = {participant.fingerprint for participant in facts.participants}
        require(facts.signer in sites, f"{case.signer.name} signed, who is no site that may see the model")
    reasons = plan_policy(plan).check(facts)
    require(not reasons, f"the plan does not allow this release: {'; '.join(reasons)}")
    return (
        f"digest {facts.plan[:16]}, {case.signer.name} is its {'hub' if view.hub_view == 'sum' else 'site'}"
    )


def _check_language(case: Case) -> None:
    """Require what is said of a language model to be the plan's, and its card to say just that."""
    stated = case.facts.language
    if isinstance(stated, UnsetType):
        require(case.plan.language is None, "the certificate says nothing of the plan's language model")
        require(MODEL_CARD not in case.files, f"{MODEL_CARD} is for language models")
        return
    require(
        language_of(case.plan, trained=stated.trained, tensors=stated.tensors, audit=stated.audit) == stated,
        "base, tokenizer, method or rank are not the plan's",
    )
    require(
        case.files.get(MODEL_CARD) == model_card(case.known.statement, case.plan),
        f"{MODEL_CARD} does not say what the certificate says",
    )


def _roster(case: Case) -> str:
    # 6. every participant trusted, planned, in agreement, and shown the evidence that the plan asks for
    facts, planned = case.facts, {site.name: site.identity for site in case.plan.sites}
    for participant in facts.participants:
        name = participant.name
        require(planned.get(name) == participant.fingerprint, f"{name} is not a site of the plan")
        require(
            participant.fingerprint in case.trusted,
            f"you do not trust {name}, {participant.fingerprint[:16]}",
        )
    names = [participant.name for participant in facts.participants]
    present = set(names)
    require(names == [name for name in planned if name in present], "the participants stand in another order")
    case.members = tuple(case.trusted[participant.fingerprint] for participant in facts.participants)
    require(names == [member.name for member in case.members], "you know a participant by another name")
    epochs = facts.aggregation.epochs
    places = [manifest_path]
    places += [] if facts.privacy is None else [debit_path]
    places += [] if facts.enclave is None else [appraisal_path]
    sites = {place(member.name) for member in case.members for place in places}
    sites |= {countersignature_path(epoch.number, name) for epoch in epochs for name in epoch.members}
    for path in sorted(sites | {name for name in case.files if "/" in name}):
        require(path in case.files, f"{path} is missing")
        require(path in sites, f"{path} is of no participant")
    for epoch in epochs:
        _check_roster(case, epoch)
    often = "" if len(epochs) == 1 else f" of {len(epochs)} epochs"
    evidence = check_enclave(case)
    shown = f"; {evidence}" if evidence else ""
    return f"{len(case.members)} trusted sites countersigned plan and roster{often}{shown}"


def _check_roster(case: Case, epoch: Epoch) -> None:
    """Require an epoch's roster to be as stated, and every member's signature over it and this plan."""
    facts, known = case.facts, {member.name: member for member in case.members}
    said = {participant.name: participant for participant in facts.participants}
    where = f"epoch {epoch.number}"
    require(
        len(epoch.members) >= case.plan.study.minimum_sites,
        f"fewer sites than the plan's minimum took part in {where}",
    )
    roster = Roster(tuple(known[name] for name in epoch.members))
    require(
        roster.digest.hex() == epoch.roster,
        f"the members of {where} are not the roster that the certificate states",
    )
    for member in roster.members:
        envelope = case.files[countersignature_path(epoch.number, member.name)]
        require(
            sha256(envelope).hex() == epoch.countersignatures[member.name],
            f"{member.name}'s countersignature of {where} is another",
        )
        brought = said[member.name]
        agreed = Countersignature(
            facts.plan, epoch.roster, epoch.number, member.name, brought.manifest, brought.rows
        )
        require(
            read_countersignature(envelope, member) == agreed,
            f"{member.name} did not countersign this plan, roster, manifest and row count in {where}",
        )


def _manifests(case: Case) -> str:
    # 7. each site's own signature over its dataset
    for participant, member in zip(case.facts.participants, case.members, strict=True):
        envelope = case.files[manifest_path(member.name)]
        require(
            sha256(envelope).hex() == participant.manifest,
            f"{member.name}'s manifest is another than it countersigned",
        )
        manifest = open_manifest(envelope, member)
        require(
            manifest.schema_sha256 == case.plan.data.schema,
            f"{member.name}'s rows have another schema than the plan's",
        )
        require(
            manifest.rows == participant.rows,
            f"{member.name}'s manifest counts other rows than the certificate",
        )
        require(
            case.plan.study.purpose in manifest.purposes,
            f"{member.name}'s manifest does not allow the study's purpose",
        )
        case.schema = manifest.schema
    return "each signed by its site, with the plan's schema and purpose"


def _aggregation(case: Case) -> str:
    # 8. n, c, t, m by the formula in every epoch; m survivors in every round
    summed = case.facts.aggregation
    case.params = tuple(case.plan.params(len(epoch.members)) for epoch in summed.epochs)
    for epoch, params in zip(summed.epochs, case.params, strict=True):
        stated = Params(epoch.parties, epoch.colluders, epoch.threshold, epoch.minimum)
        require(stated == params, f"n, c, t or m of epoch {epoch.number} do not follow from the plan")
    for epoch, run in summed.runs():
        survivors = epoch.survivors(run)
        require(
            survivors >= epoch.minimum,
            f"round {run.first} has {survivors} survivors, {epoch.minimum} are the minimum",
        )
    _, last = summed.runs()[-1]
    attempts = last.attempt + last.count
    require(
        attempts <= case.plan.attempts, f"{attempts} attempts were made, the plan has {case.plan.attempts}"
    )
    numbers = "; ".join(
        f"n {each.parties}, c {each.colluders}, t {each.threshold}, m {each.minimum}"
        for each in dict.fromkeys(case.params)
    )
    return f"{numbers}; every round had m survivors"


def _model(case: Case) -> str:
    # 9. a safetensors model of this plan and schema
    data = case.files.get(MODEL)
    if data is None:
        data = _opened(case)
    if data is None:
        names = ", ".join(recipient.name for recipient in case.facts.recipients)
        case.unchecked.append(f"model: it is sealed to {names}; a recipient can verify what is inside")
        return f"sealed to {names}, not opened"
    model = artifact_from_bytes(data)
    if isinstance(model, AdapterArtifact):
        return _language_model(case, model)
    require(case.plan.language is None, "the model is not of this plan and schema")
    require(
        model.card == ModelArtifact.of_plan(case.plan, case.schema, model.parameters).card,
        "the model is not of this plan and schema",
    )
    case.size = model.parameters.size
    return f"{model.card.model.kind}, {case.size} parameters, safetensors"


def _language_model(case: Case, model: AdapterArtifact) -> str:
    stated = case.facts.language
    require(
        case.plan.language is not None and model.card == plan_card(case.plan, case.schema),
        "the model is not of this plan and schema",
    )
    require(
        not isinstance(stated, UnsetType) and (stated.trained, stated.tensors) == (model.trained, model.size),
        "the model has other numbers than the certificate states",
    )
    case.size = model.width
    case.unchecked.append("base: that the adapter fits the base that the plan names shows when it is used")
    return f"{model.card.model.kind}, {model.trained} numbers trained, safetensors"


def _opened(case: Case) -> bytes | None:
    sealed = case.files[SEALED_MODEL]
    with in_memory_file(sealed) as path:
        readers = sealed_recipients(path)
    stated = [recipient.fingerprint for recipient in case.facts.recipients]
    require(sorted(readers) == sorted(stated), "the model is sealed to others than the certificate names")
    if case.reader is None or case.reader.fingerprint not in stated:
        return None
    data = open_bytes(sealed, case.reader)
    require(
        sha256(data).hex() == case.known.statement.subjects()[MODEL],
        "the sealed model is not what the certificate names",
    )
    return data


def _privacy(case: Case) -> str:
    # 10. the claim follows from plan, events and debits; what is absent has the reason this version gives
    require(
        case.facts.absent == {part: ABSENT[part] for part in case.facts.absent},
        "the certificate gives other reasons for what was not done than this version",
    )
    return check_privacy(case)


def _log(case: Case) -> str:
    # 11. under a head of the releaser's log
    proof = decode_proof(case.files[PROOF])
    keys = keyring([case.signer, *case.members])
    head, _ = check_head(proof, case.signer.fingerprint, keyring(case.members), keys)
    check_inclusion(proof, case.known, head)
    return f"entry {proof.index} of {head.size} in the log of {case.signer.name}"


def _cosignatures(case: Case) -> str:
    # 12. c + 1 others have seen that head
    proof = decode_proof(case.files[PROOF])
    keys = keyring([case.signer, *case.members])
    _, count = check_head(proof, case.signer.fingerprint, keyring(case.members), keys)
    needed = max(params.colluders for params in case.params) + 1
    require(
        count >= needed, f"{count} members other than the keeper cosign the tree head, {needed} are needed"
    )
    return f"{count} members cosign the tree head, {needed} are needed"


CHECKS: tuple[Callable[[Case], str], ...] = (
    _folder,
    _signature,
    _statement,
    _files,
    _plan,
    _roster,
    _manifests,
    _aggregation,
    _model,
    _privacy,
    _log,
    _cosignatures,
)
