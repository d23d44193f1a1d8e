"""Evidence that hub and sites showed each other, as a certificate states it and a reader checks it.

Where the plan says `[enclave] required`, the predicate holds for each site what the hub accepted of its
worker, and the digest of the site's own signed appraisal of the hub's aggregator, a file of the release.
`check_enclave` requires, in this order:

a. the predicate speaks of evidence exactly where the plan asks for it, of every participant, and with the
   plan's `reattest_seconds`;
b. every worker's appraisal is of this plan, that site, by the hub, and found the evidence fresh;
c. every site signed that it accepted fresh evidence of this hub's aggregator, all for one key, the hub's;
d. "hardware" is said only where hardware vouches for all of them.

The evidence itself is not in a release. That workers showed what is stated is the hub's word, that the hub
did is each site's; which evidence each of them accepts is its own enclave policy.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.crypto import sha256
from cloister.enclave.claims import NOT_PROTECTED
from cloister.errors import VerificationError
from cloister.governance.case import Case, require
from cloister.governance.folder import appraisal_path
from cloister.governance.statement import Enclave
from cloister.governance.study import TrainedStudy
from cloister.runtime.appraisal import AGGREGATOR, WORKER, Appraisal, open_appraisal

__all__ = ["appraisal_files", "check_enclave", "enclave_of"]

_UNCHECKED = (
    "evidence: what workers and hub showed was appraised by their partners, each by its own enclave policy, "
    "and is their word; the release does not hold it"
)


def appraisal_files(study: TrainedStudy) -> dict[str, bytes]:
    """Return the files of a release that say what sites accepted of the hub; none without `[enclave]`.

    Raises:
        VerificationError: the plan asks for evidence, and there is none of a site.
    """
    if study.plan.reattest_seconds is None:
        return {}
    silent = [member.name for member in study.members if member.name not in study.appraisals]
    if silent:
        raise VerificationError(
            f"there is no evidence of {', '.join(silent)}, and the plan asks for it",
            where=f"study {study.plan.study.name}",
            fix="Run the study again",
        )
    return {
        appraisal_path(member.name): study.appraisals[member.name].aggregator.encode()
        for member in study.members
    }


def enclave_of(study: TrainedStudy, digests: Mapping[str, str]) -> Enclave | None:
    """Return what a certificate states of a study's evidence; None where the plan asks for none.

    Args:
        study: the finished study.
        digests: path in the release's folder -> SHA-256, hex.
    """
    seconds = study.plan.reattest_seconds
    if seconds is None:
        return None
    workers = {member.name: study.appraisals[member.name].worker for member in study.members}
    said = [
        open_appraisal(study.appraisals[member.name].aggregator.encode(), member) for member in study.members
    ]
    return Enclave(
        reattest_seconds=seconds,
        hardware=all(each.hardware for each in (*workers.values(), *said)),
        workers=workers,
        aggregator={member.name: digests[appraisal_path(member.name)] for member in study.members},
    )


def check_enclave(case: Case) -> str:
    """Check what the certificate states of evidence; return what was found, empty where there is none."""
    stated, seconds = case.facts.enclave, case.plan.reattest_seconds
    require(
        (stated is None) is (seconds is None),
        "the certificate speaks of evidence, or does not, other than the plan",
    )  # a
    if stated is None:
        return ""
    names = {member.name for member in case.members}
    require(stated.reattest_seconds == seconds, "evidence was asked for less often than the plan says")
    require(
        set(stated.workers) == names and set(stated.aggregator) == names,
        "the evidence is not that of the participants",
    )
    hub = case.plan.hub
    for name, worker in stated.workers.items():  # b
        _check(case, worker, (name, hub.name, WORKER), f"the evidence of {name}'s worker")
    said = [_said(case, name, stated.aggregator[name]) for name in sorted(names)]  # c
    keys = {each.key for each in said}
    if hub.identity in case.trusted:
        keys.add(sha256(case.trusted[hub.identity].to_json()).hex())
    require(len(keys) == 1, "sites accepted evidence for another key than the hub's")
    rooted = all(each.hardware for each in (*stated.workers.values(), *said))
    require(stated.hardware is rooted, "the certificate states another protection than the appraisals")  # d
    case.unchecked.append(_UNCHECKED)
    protection = "rooted in hardware" if rooted else NOT_PROTECTED
    return f"each accepted the hub's evidence, {protection}"


def _said(case: Case, name: str, digest: str) -> Appraisal:
    """Return what a site signed of the hub's aggregator."""
    path, hub = appraisal_path(name), case.plan.hub.name
    require(path in case.files, f"{path} is missing")
    envelope = case.files[path]
    require(sha256(envelope).hex() == digest, f"{name}'s appraisal of the hub is another")
    member = next(each for each in case.members if each.name == name)
    appraisal = open_appraisal(envelope, member)
    _check(case, appraisal, (hub, name, AGGREGATOR), f"the hub's evidence, as {name} signed it,")
    return appraisal


def _check(case: Case, appraisal: Appraisal, due: tuple[str, str, str], what: str) -> None:
    require(
        (appraisal.party, appraisal.by, appraisal.purpose) == due and appraisal.plan == case.facts.plan,
        f"{what} is of another party, purpose or plan",
    )
    require(appraisal.claims.get("freshness") is True, f"{what} was not shown to be fresh")
    require(
        appraisal.hardware is (appraisal.claims.get("hardware_rooted") is True),
        f"{what} contradicts itself on what vouches for it",
    )
