"""What `cloister hub` and `cloister site` show of this machine, and how this home judges what others show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.cli.beforehand import no_walls
from cloister.errors import PolicyRefused

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.enclave.attester import Attester, Measured
    from cloister.enclave.evidence import Evidence
    from cloister.enclave.policy import EnclavePolicy
    from cloister.learning import Plan
    from cloister.runtime import Site
    from cloister.runtime.attestation import Attesting
    from cloister.runtime.invite import Invitation

__all__ = ["HomeEvidence"]

_SOFTWARE_TPMS = 8


class HomeEvidence:
    """One home's attester, found when it is first needed, and its enclave policy, read anew for each study.

    Args:
        home: the home; its software TPM, if there is one, lives in HOME/enclave.
        owner: whose signature the policy must bear.
        stack: closes the attester.
        say: tells people a line.
    """

    def __init__(
        self, home: Path, owner: PublicIdentity, stack: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._home, self._owner, self._stack, self._say = home, owner, stack, say
        self._attester: Attester | None = None

    def of_hub(self, plan: Plan) -> Attesting | None:
        """Return what a hub needs; None where the plan asks for no evidence.

        Raises:
            PolicyRefused: this machine cannot vouch for itself.
            InputError, IntegrityError: the enclave policy is none, or not as it was signed.
        """
        from cloister.runtime.appraisal import AGGREGATOR

        if plan.reattest_seconds is None:
            return None
        return self._attesting(AGGREGATOR, self._owner)

    def of_all(self, plan: Plan) -> Callable[[str, PublicIdentity], Attesting] | None:
        """Return what every party of a study in one process shows, by purpose and identity that is vouched
        for; None where the plan asks for no evidence. Raises as `of_hub`."""
        if plan.reattest_seconds is None:
            return None
        return lambda purpose, vouched_for: self._attesting(purpose, vouched_for)

    def of_site(self, invitation: Invitation, site: Site) -> Attesting:
        """Return what a site needs. Raises as `of_hub`, or PolicyRefused where its worker has no walls."""
        from cloister.runtime.appraisal import WORKER
        from cloister.runtime.workers.proxy import SandboxedWorker

        worker = site.worker
        if not isinstance(worker, SandboxedWorker):
            raise no_walls(invitation.plan)
        return self._attesting(WORKER, worker.identity)

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence of this machine that carries 64 bytes. Raises as `of_hub`."""
        from cloister.enclave.policyfile import load_enclave_policy

        return self._open(load_enclave_policy(self._home, self._owner)).attest(report_data)

    def attester(self) -> Attester:
        """Return this machine's attester, opened now. Raises as `of_hub`."""
        from cloister.enclave.policyfile import load_enclave_policy

        return self._open(load_enclave_policy(self._home, self._owner))

    def _attesting(self, purpose: str, vouched_for: PublicIdentity) -> Attesting:
        from cloister.enclave.appraise import appraiser
        from cloister.enclave.policyfile import load_enclave_policy
        from cloister.runtime.attestation import attesting_by

        policy = load_enclave_policy(self._home, self._owner)
        return attesting_by(self._open(policy), purpose, vouched_for, appraiser(policy))

    def _open(self, policy: EnclavePolicy) -> Attester:
        """Return this machine's attester, its start measured once for this process."""
        from cloister.enclave.attester import measure
        from cloister.enclave.policyfile import enclave_policy_path

        if self._attester is None:
            path = enclave_policy_path(self._home)
            measured = measure(policy=path.read_bytes() if path.exists() else None)
            try:
                attester = self._found(policy.allow_software_tee, measured)
            except PolicyRefused as refusal:
                raise PolicyRefused(
                    refusal.what,
                    where=str(self._home),
                    fix="Run on such a machine; or, for a trial that is not hardware-protected, write "
                    f"allow_software_tee = true into {path} and sign it",
                ) from refusal
            self._stack.callback(attester.close)
            self._attester = attester
            if not attester.hardware:
                self._say(
                    "Evidence of this machine is NOT hardware-protected: a software TPM (swtpm) makes it, "
                    "and protects from nobody who runs the machine."
                )
        return self._attester

    def _found(self, software_allowed: bool, measured: tuple[Measured, ...]) -> Attester:
        """Return an attester; where other processes of this home use its software TPMs, over a further one.

        A machine's own TPM serves many processes. One made of software serves one, and is worth as much as
        the next.
        """
        from cloister.enclave.attester import TpmInUse, find_attester

        folder = self._home / "enclave"
        for further in (*(folder / "further" / str(number) for number in range(2, _SOFTWARE_TPMS + 1)), None):
            try:
                return find_attester(folder, software_allowed=software_allowed, measured=measured)
            except TpmInUse:
                if further is None:
                    raise
                self._say("Another process of this home uses its software TPM: taking a further one.")
                folder = further
        raise AssertionError("the last turn returns or raises")
