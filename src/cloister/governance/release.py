"""The release gate: nothing leaves before every policy agrees, and nothing leaves that would not verify.

`release`, in this order:

1. the statement is put together from the finished study, with the digest of every file that will lie in
   the folder;
2. the gate: the built-in policy, the plan's recipients, the organisation's own; every failing rule is named;
3. the certificate is signed;
4. its digest is appended to the releaser's log, which is on the disk before anybody hears of it;
5. the tree head is signed and every cosigner is asked; each demands a proof that the log continues what
   it saw before. One that finds a fork ends the release; c + 1 others than the keeper must sign;
6. the whole folder is verified in memory, as its reader will verify it;
7. it is written, and appears complete or not at all.

A crash after step 4 leaves an entry in the log that belongs to no release; that is harmless, and says
that one was tried.

Who signs: the hub, or, where the plan says hub_view = "none", a site; the hub then never has the model.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec import UNSET, UnsetType

from cloister import __version__
from cloister.crypto import Identity, PublicIdentity, VerifyKey, keyring, seal_bytes, sha256
from cloister.errors import CloisterError, InputError, VerificationError
from cloister.files import new_directory, write_atomic
from cloister.governance.audit import AuditReport, LanguageFindings, asked, audited, numbers_digest
from cloister.governance.certificate import (
    ABSENT,
    Aggregation,
    Audited,
    Certificate,
    Digest,
    Epoch,
    LanguageFacts,
    Participant,
    Predicate,
    Recipient,
    Statement,
    Subject,
    Training,
)
from cloister.governance.enclave import appraisal_files, enclave_of
from cloister.governance.folder import (
    CERTIFICATE,
    MODEL,
    MODEL_CARD,
    PLAN,
    PROOF,
    SEALED_MODEL,
    countersignature_path,
    debit_path,
    manifest_path,
)
from cloister.governance.modelcard import language_of, model_card
from cloister.governance.policy import DEFAULT_POLICY, ReleasePolicy, gate, plan_policy
from cloister.governance.privacy import privacy_of
from cloister.governance.proof import Proof, check_head, log_entry
from cloister.governance.study import TrainedStudy, round_runs
from cloister.governance.verify import TrustAnchors, verify_files
from cloister.inference import AdapterArtifact, Artifact, ModelArtifact
from cloister.learning import Plan
from cloister.log import Log, TreeHead, sign_head
from cloister.runtime import EpochFacts
from cloister.secagg import Roster

__all__ = ["HeadCosigner", "Released", "release", "statement_of"]


class HeadCosigner(Protocol):
    """A member that watches logs; `cloister.log.Cosigner` is one."""

    def last(self, log_id: str) -> TreeHead | None:
        """Return the last head it signed for this log, or None."""

    def cosign(
        self, signed: bytes, keeper: Mapping[str, VerifyKey], consistency: Sequence[bytes] = ()
    ) -> bytes:
        """Return the envelope with its signature added. Raises VerificationError where the log does not
        continue."""


@dataclass(frozen=True)
class Released:
    """A release that was written.

    Attributes:
        folder: where it is.
        certificate: what it says.
        files: path in the folder -> content.
        cosignatures: members other than the keeper that cosigned the tree head.
        log_size: entries in the log under that head.
        missing: why a cosigner did not sign, for each that did not.
    """

    folder: Path
    certificate: Certificate
    files: Mapping[str, bytes]
    cosignatures: int
    log_size: int
    missing: tuple[str, ...]


def release(
    folder: Path,
    study: TrainedStudy,
    *,
    signer: Identity,
    log: Log,
    cosigners: Sequence[HeadCosigner],
    created: str,
    recipients: Sequence[PublicIdentity] = (),
    policies: Sequence[ReleasePolicy] = (DEFAULT_POLICY,),
    audit: AuditReport | None = None,
    base: Path | None = None,
) -> Released:
    """Release a study's model.

    Args:
        folder: where the release shall be; must not exist.
        study: the finished study, with the parameters to release.
        signer: the hub, or a site where the hub must not see the model. Keeper of `log`.
        log: the signer's log; its id is the signer's fingerprint.
        cosigners: members who watch the log; c + 1 others than the signer must sign.
        created: the time, "2026-01-31T12:00:00Z".
        recipients: readers to seal the model to; none leaves it in the clear.
        policies: all must accept; the plan's recipients are always asked in addition.
        audit: what attacks on this plan showed, from `cloister.governance.auditrun`; None where none was run.
        base: folder of the base that a language model starts from; its numbers are not read. None for other
            models.

    Raises:
        PolicyRefused: naming every rule that refuses. Nothing was signed, logged or written.
        VerificationError: an audit that contradicts the claim or is of another plan, too few
            cosigners, one that found a fork, or a folder that would not verify.
        InputError: the folder exists, or a language model's base is not given.
        IntegrityError: the base is not the plan's.
    """
    with new_directory(folder) as part:
        artifact = _artifact(study, base)
        files, model_digest = _files(study, artifact.to_bytes(), recipients)
        # 1. statement
        said = (signer.public, recipients, created, _audited(study, audit), _language(study, artifact, audit))
        statement = statement_of(study, files, model_digest, *said)
        if study.plan.language is not None:
            files[MODEL_CARD] = model_card(statement, study.plan)
            statement = statement_of(study, files, model_digest, *said)
        # 2. gate
        gate(statement.predicate, (*policies, plan_policy(study.plan)) if policies else ())
        # 3. signature
        certificate = Certificate.sign(statement, signer)
        # 4. log
        index = log.append(log_entry(certificate))
        head = log.head()
        # 5. cosignatures
        signed, missing = _cosigned(log, head, signer, cosigners)
        path = tuple(node.hex() for node in log.inclusion_proof(index, head.size))
        proof = Proof(index, path, signed.decode())
        files |= {CERTIFICATE: certificate.envelope, PROOF: proof.to_bytes()}
        # 6. as its reader will
        anchors = TrustAnchors.of([signer.public, *study.members])
        two = any(len(epoch.members) == 2 for epoch in study.epochs)
        verify_files(files, anchors, allow_two=two).require()
        # 7. written
        for name, content in files.items():
            write_atomic(part / name, content)
    members = keyring(study.members)
    _, count = check_head(proof, signer.fingerprint, members, members | keyring([signer.public]))
    return Released(folder, certificate, files, count, head.size, missing)


def _artifact(study: TrainedStudy, base: Path | None) -> Artifact:
    """Return the study's model as it will lie in the folder."""
    if study.plan.language is None:
        return ModelArtifact.of_plan(study.plan, study.schema, study.parameters)
    if base is None:
        raise InputError(
            "a language model is released beside its base, which is not given",
            where=f"study {study.plan.study.name}",
            fix="Give the folder of the base that the plan names: --base DIR",
        )
    from cloister.inference.language.adapted import released_adapter

    return released_adapter(study.plan, study.schema, study.parameters, base)


def _language(
    study: TrainedStudy, artifact: Artifact, audit: AuditReport | None
) -> LanguageFacts | UnsetType:
    if not isinstance(artifact, AdapterArtifact):
        return UNSET
    found = None if audit is None else asked(audit)
    return language_of(study.plan, trained=artifact.trained, tensors=artifact.size, audit=found or UNSET)


def _audited(study: TrainedStudy, audit: AuditReport | None) -> Audited | None:
    """Return what the certificate states of an audit. Raises VerificationError for one of another plan."""
    if audit is None:
        return None
    if audit.plan != study.plan.digest.hex():
        raise VerificationError(
            "the audit is of another plan",
            where=f"study {audit.study}",
            fix="Run `cloister audit` on this study",
        )
    if _asked_another(audit.language, study):
        raise VerificationError(
            "the audit asked another model of this plan",
            where=f"study {audit.study}",
            fix="Run `cloister audit --planted` on this study",
        )
    return audited(audit)


def _asked_another(found: LanguageFindings | UnsetType, study: TrainedStudy) -> bool:
    """Tell whether an audit asked a finished model that is not this study's: a plan may be run twice."""
    if not isinstance(found, LanguageFindings) or found.source != "planted":
        return False
    return found.model != numbers_digest(study.parameters)


def _files(
    study: TrainedStudy, model: bytes, recipients: Sequence[PublicIdentity]
) -> tuple[dict[str, bytes], str]:
    """Return the files that the certificate covers, and the digest of the model in the clear.

    Raises:
        VerificationError: the study claims privacy, and a site's ledger has not shown what it paid; or the
            plan asks for evidence, and there is none of a site.
    """
    artefact = {SEALED_MODEL: seal_bytes(model, recipients)} if recipients else {MODEL: model}
    names = [member.name for member in study.members]
    silent = [name for name in names if study.privacy is not None and name not in study.debits]
    if silent:
        raise VerificationError(
            f"there is no debit of {', '.join(silent)}, so nobody could verify the claim of privacy",
            where=f"study {study.plan.study.name}",
            fix="Run the study again with sites that stay to its end",
        )
    return {
        **artefact,
        PLAN: study.plan.to_toml().encode(),
        **{manifest_path(name): study.manifests[name] for name in names},
        **{
            countersignature_path(epoch.number, member.name): epoch.countersignatures[member.name]
            for epoch in study.epochs
            for member in epoch.members
        },
        **{debit_path(name): study.debits[name] for name in names if study.privacy is not None},
        **appraisal_files(study),
    }, sha256(model).hex()


def statement_of(
    study: TrainedStudy,
    files: Mapping[str, bytes],
    model_digest: str,
    signer: PublicIdentity,
    recipients: Sequence[PublicIdentity],
    created: str,
    audit: Audited | None = None,
    language: LanguageFacts | UnsetType = UNSET,
) -> Statement:
    """Return what a release of this study states.

    Args:
        study: the finished study.
        files: path in the folder -> content, of everything the certificate shall cover.
        model_digest: hex SHA-256 of the model in the clear.
        signer: who will sign.
        recipients: whom the model is sealed to.
        created: the time, "2026-01-31T12:00:00Z".
        audit: what an attack against the claim of privacy showed.
        language: of a language model.
    """
    privacy = privacy_of(study, audit)
    plan, summed = study.plan, study.plan.aggregation
    digests = {name: sha256(content).hex() for name, content in files.items()} | {MODEL: model_digest}
    enclave = enclave_of(study, digests)
    stated = {"privacy": privacy, "enclave": enclave}
    return Statement(
        type_="https://in-toto.io/Statement/v1",
        subject=tuple(Subject(name, Digest(digests[name])) for name in sorted(digests)),
        predicate_type="urn:cloister:release:v2",
        predicate=Predicate(
            study=plan.study.name,
            purpose=plan.study.purpose,
            plan=plan.digest.hex(),
            signer=signer.fingerprint,
            participants=tuple(
                Participant(
                    name=member.name,
                    fingerprint=member.fingerprint,
                    rows=study.rows[member.name],
                    manifest=digests[manifest_path(member.name)],
                )
                for member in study.members
            ),
            aggregation=Aggregation(
                secure=True,
                bits=summed.bits,
                hub_view=summed.hub_view,
                value_range=summed.value_range,
                epochs=tuple(_epoch_of(study, epoch, digests) for epoch in study.epochs),
            ),
            training=Training(
                plan.training.algorithm, plan.model.kind, plan.training.rounds, _software(plan)
            ),
            privacy=privacy,
            inference=None,
            enclave=enclave,
            absent={part: why for part, why in ABSENT.items() if stated.get(part) is None},
            recipients=tuple(Recipient(reader.name, reader.fingerprint) for reader in recipients),
            created=created,
            language=language,
        ),
    )


def _epoch_of(study: TrainedStudy, epoch: EpochFacts, digests: Mapping[str, str]) -> Epoch:
    params, names = study.plan.params(len(epoch.members)), [member.name for member in epoch.members]
    return Epoch(
        number=epoch.number,
        roster=Roster(epoch.members).digest.hex(),
        setup=epoch.setup_digest.hex(),
        members=tuple(names),
        countersignatures={name: digests[countersignature_path(epoch.number, name)] for name in names},
        parties=params.parties,
        colluders=params.colluders,
        threshold=params.threshold,
        minimum=params.minimum,
        rounds=round_runs(study, epoch),
    )


def _software(plan: Plan) -> dict[str, str]:
    used = {"cloister": __version__, "numpy": np.__version__, "python": platform.python_version()}
    for name in ("peft", "torch", "transformers") if plan.language is not None else ():
        with contextlib.suppress(metadata.PackageNotFoundError):
            used[name] = metadata.version(name)[:64]
    return used


def _cosigned(
    log: Log, head: TreeHead, signer: Identity, cosigners: Sequence[HeadCosigner]
) -> tuple[bytes, tuple[str, ...]]:
    """Return the head's envelope with every signature that could be had, and why others could not."""
    signed, keeper, missing = sign_head(head, signer), keyring([signer.public]), []
    for cosigner in cosigners:
        try:
            last = cosigner.last(head.log_id)
            if last is not None and last.size > head.size:
                raise VerificationError(
                    "a cosigner has seen a longer log than this one",
                    where=str(log.path),
                    fix="Restore the log from a copy",
                )
            consistency = log.consistency_proof(last.size, head.size) if last is not None else ()
            signed = cosigner.cosign(signed, keeper, consistency)
        except VerificationError:
            raise  # a fork is no outage
        except CloisterError as error:
            missing.append(str(error))
    return signed, tuple(missing)
