"""Site policy: which studies an organisation takes part in, decided on the plan before anything is done.

A policy only ever refuses. What it lets pass is decided by its `decision`: taken part in, asked about, or
refused. Without a policy everything is asked about. `decide`, in this order:

1. what no policy can allow: the hub is the plan's and is trusted, the plan names this site's identity,
   every other site is trusted under the name the plan gives it. Else refused;
2. without a policy: ask, and say what a policy without rules would refuse;
3. every rule of the policy. One that does not hold refuses;
4. what fits gets the policy's `decision`.

It sees plan and identities, and no row, clock or file. What it cannot judge it refuses: an epsilon that the
plan does not write. The reasons are for the owner; a hub that is told them learns
the policy.

The file is POLICY/site.toml in the home, signed by the owner. A file that is not as it was signed refuses
everything, by an error. Who can delete both file and signature gets "ask" and never "accept"; who can put
back an older signed policy is not found out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from cloister.crypto import PublicIdentity, keyring
from cloister.errors import InputError, IntegrityError
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyFacts
from cloister.policy import load_signed_toml
from cloister.runtime.privacyrules import PrivacyRules
from cloister.types import check_name

__all__ = [
    "SITE_POLICY",
    "Decision",
    "PrivacyRules",
    "Proposal",
    "SitePolicy",
    "Verdict",
    "decide",
    "load_site_policy",
    "site_policy_path",
]

SITE_POLICY: Final = "site policy"
"""The kind that is signed with the file, so that it is taken for no other policy."""

Verdict = Literal["accept", "ask", "refuse"]

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_SHOWN: Final = 5

Bound = Annotated[int, Meta(ge=0, le=2**48)]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Texts = Annotated[tuple[Text, ...], Meta(max_length=1000)]
Kind = Literal["linear", "logistic", "softmax", "mlp", "torch", "causal-lm", "text-classifier"]


class SitePolicy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rules on one plan; a rule that is left out asks for nothing, but for `user_code` and `public_rows`.

    Attributes:
        decision: on what fits all rules.
        studies: names of studies, with `*` and `?`; one must match.
        purposes: the study's purpose must be one of these.
        hubs: names under which hubs are trusted, or their fingerprints; empty for every trusted one.
        partners: the same for the other sites: all of them must be among these.
        minimum_partners: other sites that the plan names.
        minimum_sites: the least roster that the plan allows.
        datasets: own datasets that plans may name.
        models: kinds of model.
        bases: digests of the base models that a language model may start from; empty for any.
        max_rank: the largest rank of adapters; with one, nothing but adapters may be trained of a base.
        user_code: SHA-256 of Python files that may run here; empty for none.
        privacy: what must be claimed.
        hub_view: "none" refuses plans that show the hub sums and model.
        public_rows: whether a plan may declare this site's rows public.
        enclave: "attested" refuses plans under which hub and sites need not show each other evidence. Which
            evidence of a hub is accepted, the enclave policy says.
    """

    decision: Verdict = "ask"
    studies: Texts = ()
    purposes: Texts = ()
    hubs: Texts = ()
    partners: Texts = ()
    minimum_partners: Bound = 0
    minimum_sites: Bound = 0
    datasets: Texts = ()
    models: tuple[Kind, ...] = ()
    bases: Annotated[tuple[Hex, ...], Meta(max_length=1000)] = ()
    max_rank: Bound = 0
    user_code: Annotated[tuple[Hex, ...], Meta(max_length=1000)] = ()
    privacy: PrivacyRules = PrivacyRules()
    hub_view: Literal["sum", "none"] = "sum"
    public_rows: bool = False
    enclave: Literal["none", "attested"] = "none"

    def __post_init__(self) -> None:
        for field, entries in (("hubs", self.hubs), ("partners", self.partners), ("datasets", self.datasets)):
            for entry in entries:
                if field == "datasets" or not _FINGERPRINT.match(entry):
                    _check_entry(entry, field)

    def check(self, subject: Proposal) -> list[str]:
        """Return every rule that refuses, as a sentence part; empty where the plan fits."""
        return [
            *self._study(subject.plan),
            *self._parties(subject),
            *self._data(subject),
            *self._model(subject.plan),
            *self.privacy.check(subject.plan, subject.claim),
            *self._enclave(subject.plan),
        ]

    def _study(self, plan: Plan) -> list[str]:
        reasons = []
        if self.studies and not any(fnmatchcase(plan.study.name, pattern) for pattern in self.studies):
            reasons.append(f"studies: {plan.study.name} matches none of the allowed names")
        if self.purposes and plan.study.purpose not in self.purposes:
            reasons.append("purposes: the study's purpose is not an allowed one")
        return reasons

    def _parties(self, subject: Proposal) -> list[str]:
        plan, reasons = subject.plan, []
        if self.hubs and not _listed(self.hubs, subject.hub.name, subject.hub.fingerprint):
            reasons.append(f"hubs: {subject.hub.name} is not an allowed hub")
        others = [each for each in plan.sites if each.identity != subject.own]
        strange = [
            each.name for each in others if self.partners and not subject.lists(self.partners, each.identity)
        ]
        if strange:
            reasons.append(f"partners: {_some(strange)} not allowed")
        if len(others) < self.minimum_partners:
            reasons.append(f"minimum_partners: the plan names {len(others)}, {self.minimum_partners} must be")
        if plan.study.minimum_sites < self.minimum_sites:
            reasons.append(
                f"minimum_sites: the plan allows {plan.study.minimum_sites}, {self.minimum_sites} must be"
            )
        return reasons

    def _data(self, subject: Proposal) -> list[str]:
        plan, reasons = subject.plan, []
        own = [each.dataset for each in plan.sites if each.identity == subject.own]
        if self.datasets and not all(name in self.datasets for name in own):
            reasons.append(f"datasets: {_some(own)} not allowed")
        if plan.data.public_rows and not self.public_rows:
            reasons.append(
                "public_rows: the plan declares the rows public, so evaluation would leave the site"
            )
        if self.hub_view == "none" and plan.aggregation.hub_view != "none":
            reasons.append("hub_view: the hub would see the sum of updates and the model")
        return reasons

    def _model(self, plan: Plan) -> list[str]:
        reasons, section = [], plan.model
        if self.models and section.kind not in self.models:
            reasons.append(f"models: {section.kind} is not an allowed kind")
        if section.kind == "torch" and section.code not in self.user_code:
            reasons.append(f"user_code: the model is Python code that is not allowed here ({section.code})")
        return reasons + self._language(plan)

    def _language(self, plan: Plan) -> list[str]:
        reasons, section = [], plan.language
        if section is None:
            return []
        if self.bases and section.base not in self.bases:
            reasons.append(f"bases: the model would start from a base that is not allowed ({section.base})")
        if self.max_rank and section.method == "full":
            reasons.append("max_rank: the plan trains the whole base, and not adapters alone")
        elif self.max_rank and section.rank > self.max_rank:
            reasons.append(f"max_rank: the adapters have rank {section.rank}, {self.max_rank} is allowed")
        return reasons

    def _enclave(self, plan: Plan) -> list[str]:
        if self.enclave == "none" or plan.reattest_seconds is not None:
            return []
        return ["enclave: the plan does not ask hub and sites for evidence ([enclave] required)"]


@dataclass(frozen=True)
class Proposal:
    """What is decided on.

    Attributes:
        plan: the plan.
        hub: who sent it.
        trusted: identities the owner trusts, by fingerprint.
        own: fingerprint of the site's own identity.
        claim: what `[privacy]` amounts to, where model and schema are known; without it a rule sees only
            what the plan writes.
    """

    plan: Plan
    hub: PublicIdentity
    trusted: Mapping[str, PublicIdentity]
    own: str
    claim: PrivacyFacts | None = None

    def lists(self, entries: tuple[str, ...], fingerprint: str) -> bool:
        """Return whether a list names an identity: by fingerprint, or by the name it is trusted under."""
        known = self.trusted.get(fingerprint)
        return known is not None and _listed(entries, known.name, fingerprint)


@dataclass(frozen=True)
class Decision:
    """What is to happen with an invitation, and why.

    Attributes:
        verdict: take part, ask the owner, or do not.
        reasons: sentences without a full stop; for the owner.
    """

    verdict: Verdict
    reasons: tuple[str, ...]


def decide(
    plan: Plan,
    hub: PublicIdentity,
    policy: SitePolicy | None,
    trusted: Mapping[str, PublicIdentity],
    *,
    own: str,
    claim: PrivacyFacts | None = None,
) -> Decision:
    """Return what the site policy says of a plan; see the module's docstring.

    Args:
        plan: the plan as it was signed.
        hub: who sent it, its signature checked.
        policy: the owner's; None where there is none.
        trusted: identities the owner trusts, by fingerprint; the own one may be among them.
        own: fingerprint of the site's own identity.
        claim: `PrivacyTerms.of(...).facts` for the plan, where it is known.
    """
    subject = Proposal(plan, hub, trusted, own, claim)
    reasons = _unfit(subject)  # 1
    if reasons:
        return Decision("refuse", tuple(reasons))
    if policy is None:  # 2
        noticed = SitePolicy().check(subject)
        return Decision("ask", ("there is no site policy, so every study is asked about", *noticed))
    reasons = policy.check(subject)  # 3
    if reasons:
        return Decision("refuse", tuple(reasons))
    said = {
        "accept": "the plan fits the site policy",
        "ask": "the plan fits the site policy, which asks about every study",
        "refuse": "the site policy refuses every study",
    }
    return Decision(policy.decision, (said[policy.decision],))  # 4


def site_policy_path(home: Path) -> Path:
    """Return where a home's site policy is."""
    return home / "policy" / "site.toml"


def load_site_policy(home: Path, owner: PublicIdentity) -> SitePolicy | None:
    """Return a home's site policy, None where there is none.

    Raises:
        IntegrityError: it is not as its owner signed it, or only its signature is left.
        InputError: it is not signed, or does not decode.
    """
    path = site_policy_path(home)
    signature = path.with_name(path.name + ".dsse")
    if not path.exists():
        if signature.exists():
            raise IntegrityError(
                "the site policy is gone and its signature is left",
                where=str(path),
                fix="Restore it; or remove the signature too, and every study is asked about",
            )
        return None
    if not signature.exists():
        raise InputError(
            "the site policy is not signed, so nothing is taken part in",
            where=str(path),
            fix="Read it, then `cloister keys sign-policy --kind site` it",
        )
    return load_signed_toml(path, SitePolicy, SITE_POLICY, keyring([owner]))


def _check_entry(entry: str, field: str) -> None:
    try:
        check_name(entry)
    except InputError as error:
        raise InputError(
            "an entry is no name" if field == "datasets" else "an entry is neither a name nor a fingerprint",
            where=f"{SITE_POLICY}, {field}",
            fix=error.fix,
        ) from None


def _listed(entries: tuple[str, ...], name: str, fingerprint: str) -> bool:
    return fingerprint in entries or name in entries


def _some(names: list[str]) -> str:
    """Return a few names with their verb: a plan may name thousands."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def _unfit(subject: Proposal) -> list[str]:
    """Return what no policy can allow."""
    plan, hub, reasons = subject.plan, subject.hub, []
    if (plan.hub.name, plan.hub.identity) != (hub.name, hub.fingerprint):
        reasons.append(f"the plan came from {hub.name} and names another hub")
    known = subject.trusted.get(hub.fingerprint)
    if known is None or known.name != hub.name:
        reasons.append(f"the hub {hub.name} is not trusted; `cloister keys trust` it")
    if all(each.identity != subject.own for each in plan.sites):
        reasons.append("the plan does not name this site's identity")
    others = [each for each in plan.sites if each.identity != subject.own]
    strangers = [each.name for each in others if not subject.lists((each.name,), each.identity)]
    if strangers:
        reasons.append(f"{_some(strangers)} not trusted under that name; `cloister keys trust` who is meant")
    return reasons
