"""Release policy: what may leave, decided on the facts of the certificate before anything is written.

A policy only ever refuses. Several apply together: the built-in default, the plan's recipients, the
organisation's signed TOML; what any one of them refuses is refused, and every failing rule is named.
There is no rule that allows what another refuses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from cloister.errors import PolicyRefused
from cloister.governance.certificate import Hex, Predicate, Text
from cloister.learning import Plan

__all__ = ["DEFAULT_POLICY", "ReleasePolicy", "gate", "plan_policy"]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")

Bound = Annotated[int, Meta(ge=0, le=2**48)]


class ReleasePolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """Rules on one release; a rule that is left out asks for nothing.

    Attributes:
        recipients: fingerprints the model may be sealed to; not empty means that it must be sealed, and
            to none else.
        purposes: the study's purpose must be one of these.
        minimum_sites: sites that take part, in every epoch.
        minimum_survivors: sites in the sum of every round.
        minimum_rows: rows of every site.
        maximum_rounds: rounds of training; more rounds tell more about the rows.
        require_privacy: refuse a model trained without differential privacy.
        maximum_epsilon: the larger of both epsilons, against hub and against colluding sites.
        maximum_delta: of the claim.
        require_audit: refuse a model whose claim was not tested by an attack.
        require_hardware: refuse a model unless evidence rooted in hardware was accepted of everybody.
    """

    recipients: tuple[Hex, ...] = ()
    purposes: tuple[Text, ...] = ()
    minimum_sites: Bound = 0
    minimum_survivors: Bound = 0
    minimum_rows: Bound = 0
    maximum_rounds: Bound | None = None
    require_privacy: bool = False
    maximum_epsilon: Annotated[float, Meta(gt=0)] | None = None
    maximum_delta: Annotated[float, Meta(gt=0, lt=1)] | None = None
    require_audit: bool = False
    require_hardware: bool = False

    def check(self, subject: Predicate) -> list[str]:
        """Return every rule that refuses, as a sentence part; empty where the release may leave."""
        return [
            *self._recipients(subject),
            *self._study(subject),
            *self._privacy(subject),
            *self._participants(subject),
            *self._rounds(subject),
        ]

    def _recipients(self, subject: Predicate) -> list[str]:
        if not self.recipients:
            return []
        if not subject.recipients:
            return ["recipients: the model must be sealed to an allowed recipient, and none was named"]
        return [
            f"recipients: {recipient.name} is not an allowed recipient"
            for recipient in subject.recipients
            if recipient.fingerprint not in self.recipients
        ]

    def _study(self, subject: Predicate) -> list[str]:
        reasons = []
        if self.purposes and subject.purpose not in self.purposes:
            reasons.append("purposes: the study's purpose is not an allowed one")
        if self.require_hardware and (subject.enclave is None or not subject.enclave.hardware):
            reasons.append("require_hardware: the study was not hardware-protected")
        return reasons

    def _privacy(self, subject: Predicate) -> list[str]:
        privacy = subject.privacy
        asked = {
            "require_privacy": self.require_privacy,
            "maximum_epsilon": self.maximum_epsilon is not None,
            "maximum_delta": self.maximum_delta is not None,
            "require_audit": self.require_audit,
        }
        if privacy is None:
            return [
                f"{rule}: the model was trained without differential privacy"
                for rule, wanted in asked.items()
                if wanted
            ]
        reasons = []
        epsilon, delta = max(privacy.epsilon_hub, privacy.epsilon_colluders), privacy.claim.delta
        if self.maximum_epsilon is not None and epsilon > self.maximum_epsilon:
            reasons.append(f"maximum_epsilon: {epsilon:.3f}, at most {self.maximum_epsilon:g} may be")
        if self.maximum_delta is not None and delta > self.maximum_delta:
            reasons.append(f"maximum_delta: {delta:g}, at most {self.maximum_delta:g} may be")
        if self.require_audit and privacy.audit is None:
            reasons.append("require_audit: no attack was run against the claim; `cloister audit` runs one")
        return reasons

    def _participants(self, subject: Predicate) -> list[str]:
        reasons = []
        fewest = min(len(epoch.members) for epoch in subject.aggregation.epochs)
        if fewest < self.minimum_sites:
            took_part = f"{fewest} sites took part"
            reasons.append(f"minimum_sites: {took_part}, {self.minimum_sites} are asked for")
        small = [p.name for p in subject.participants if p.rows < self.minimum_rows]
        if small:
            reasons.append(f"minimum_rows: fewer than {self.minimum_rows} rows at {', '.join(small[:10])}")
        return reasons

    def _rounds(self, subject: Predicate) -> list[str]:
        reasons = []
        if self.maximum_rounds is not None and subject.training.rounds > self.maximum_rounds:
            ran = f"{subject.training.rounds} rounds were run"
            reasons.append(f"maximum_rounds: {ran}, at most {self.maximum_rounds} may be")
        for epoch, run in subject.aggregation.runs():
            survivors = epoch.survivors(run)
            if survivors < self.minimum_survivors:
                sites = f"{survivors} sites in the sum of round {run.first}"
                reasons.append(f"minimum_survivors: {sites}, {self.minimum_survivors} are asked for")
                break
        return reasons


DEFAULT_POLICY = ReleasePolicy(minimum_sites=3, minimum_survivors=3)
"""Built in: with two sites each can compute the other's update."""


def plan_policy(plan: Plan) -> ReleasePolicy:
    """Return what the plan itself asks of a release: its recipients.

    A recipient is written as a fingerprint, or as the name of the hub or a site of the plan. Another
    name is nobody's: names outside the plan are given by whoever keeps a trust store, and must not widen
    what sites agreed to.
    """
    names = {plan.hub.name: plan.hub.identity, **{site.name: site.identity for site in plan.sites}}
    nobody = "0" * 64
    fingerprints = [
        names.get(text, text if _FINGERPRINT.match(text) else nobody) for text in plan.release.recipients
    ]
    return ReleasePolicy(recipients=tuple(fingerprints))


def gate(subject: Predicate, policies: Sequence[ReleasePolicy] = (DEFAULT_POLICY,)) -> None:
    """Let a release pass, or name every rule that refuses it.

    Args:
        subject: the facts, as the certificate will state them.
        policies: all of them must accept. An empty sequence is refused: it is not a policy.

    Raises:
        PolicyRefused: with every failing rule.
    """
    if not policies:
        raise PolicyRefused("a release needs a policy", fix="Use DEFAULT_POLICY")
    reasons = list(dict.fromkeys(reason for policy in policies for reason in policy.check(subject)))
    if reasons:
        raise PolicyRefused(
            f"the release policy refuses: {'; '.join(reasons)}",
            where=f"study {subject.study}",
            fix="Name an allowed reader, change the study, or ask the owner of the policy",
        )
