"""Key brokers for a run in one process: every site's data keys are released to attested workers alone.

    keepers = Keepers(folder)                       an attester of this machine, and what it measured
    vault = keepers.vault("harbour", identity)      a vault whose datasets' keys are with harbour's broker
    keepers.allow(plan, vaults)                     each owner grants its datasets to this plan, once
    keepers.access("harbour")                       how harbour's worker reaches its owner's broker
    keepers.try_changed(...)                        a worker of a changed package asks, and is refused
    keepers.facts(...)                              what the report says of all that

Which package is accepted is what this process measures of itself, unless a policy is given: it shows the
protocol. Between organisations an owner takes the value from a build it trusts. Where no hardware vouches
for the machine a software TPM does, and everything says that this is not hardware-protected.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.crypto import Identity, PublicIdentity, ScryptCost, sha256
from cloister.enclave.appraise import appraiser
from cloister.enclave.attester import Attester, find_attester, measure
from cloister.enclave.broker import (
    Broker,
    BrokerKeys,
    Direct,
    Entry,
    Exchange,
    Permission,
    Wanted,
    decode_entry,
    open_book,
)
from cloister.enclave.broker.entries import Appraised, Refusal, ReleaseMade
from cloister.enclave.claims import protection_by
from cloister.enclave.policy import EnclavePolicy, Reference
from cloister.enclave.sandbox import require
from cloister.errors import InputError, PolicyRefused, VerificationError
from cloister.report import Attestation, Enclave
from cloister.runtime.attestation import Attesting, attesting_by
from cloister.runtime.workers.brokered import BrokerAccess
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.proxy import SandboxedWorker
from cloister.vault import LocalKeystore, SplitKeys, Vault

if TYPE_CHECKING:
    from cloister.learning import Plan

__all__ = ["Keepers"]

_CHANGED_FILE: Final = "secagg/encoding.py"
_HOURS: Final = 12
_PACKAGE: Final = "start:package"


@dataclass(frozen=True)
class _Kept:
    """One owner's broker."""

    owner: Identity
    broker: Broker
    keys: BrokerKeys
    local: LocalKeystore
    identity: Identity

    def connect(self) -> Exchange:
        return Direct(self.broker, _now)


class Keepers:
    """The brokers of one run.

    Args:
        folder: the run's; logs of the brokers stay in FOLDER/brokers.
        stack: closes what is opened.
        state: a private folder for what does not stay, such as a software TPM's.
        cost: of guessing a store's passphrase, which nobody keeps.
        policy: what the brokers accept; None for the package that runs here.

    Raises:
        PolicyRefused: this machine lacks a wall that a worker must have.
        InputError: nothing here can make evidence, and the message says what to install; or the policy would
            accept any package.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        state: Path,
        *,
        cost: ScryptCost,
        policy: EnclavePolicy | None = None,
    ) -> None:
        self._folder, self._stack, self._state, self._cost = folder, stack, state, cost
        if policy is not None and not policy.measurements:
            raise InputError(
                "the enclave policy names no measurement, so it would accept a changed package too",
                where="[[measurements]]",
                fix="Add one, such as that of an earlier run's enclave-policy.toml",
            )
        require()
        self._measured = measure()
        package = next(each.digest for each in self._measured if each.name == "package")
        self.policy = policy or EnclavePolicy(
            kinds=("snp", "tdx", "tpm"),
            allow_software_tee=True,
            allow_self_reported=True,
            measurements=(Reference("the package that was measured first", {_PACKAGE: package}),),
        )
        self._attester = self._attesting_machine("machine", self._measured)
        self._kept: dict[str, _Kept] = {}

    @property
    def hardware(self) -> bool:
        """Whether hardware vouches for this machine."""
        return self._attester.hardware

    def vault(self, name: str, owner: Identity) -> Vault:
        """Return a new vault: its own secret in a keystore, its datasets' keys in a broker of its owner's."""
        keeper = Identity.generate(f"{name}-broker")
        book = open_book(
            self._folder / "brokers" / name,
            secrets.token_hex(32),
            keeper.fingerprint,
            _now(),
            cost=self._cost,
        )
        self._stack.callback(book.store.close)
        broker = Broker(
            book, keeper, appraiser(self.policy), policy=self.policy.digest, owners=[owner.public]
        )
        keys = BrokerKeys(lambda: Direct(broker, _now), keeper.public, owner=owner)
        root = self._folder / "vaults" / name
        local = LocalKeystore.initialise(root / "keystore.json", secrets.token_hex(32), cost=self._cost)
        self._kept[name] = _Kept(owner, broker, keys, local, keeper)
        return Vault(root, owner, SplitKeys(local, keys, new=True))

    def allow(self, plan: Plan, vaults: Mapping[str, Vault], datasets: tuple[str, ...]) -> None:
        """Let one attested worker of each site open its datasets for a plan; owners forget their keys."""
        until = _now().replace(microsecond=0) + timedelta(hours=_HOURS)
        for name, vault in vaults.items():
            kept = self._kept[name]
            for dataset in datasets:
                handed = vault.hand_over(dataset, purpose=plan.study.purpose)
                wanted = Wanted(
                    handed.manifest.kek_id,
                    sha256(handed.envelope).hex(),
                    plan.digest.hex(),
                    plan.study.purpose,
                )
                kept.keys.allow(Permission(secrets.token_hex(16), wanted, until, uses=1))
            kept.keys.close()

    def access(self, name: str) -> BrokerAccess:
        """Return how a site's worker reaches its owner's broker, with evidence of this machine."""
        return self._access(name, self._attester)

    def attesting(self, purpose: str, vouched_for: PublicIdentity) -> Attesting:
        """Return what a party of the study shows, and how it judges the others."""
        return attesting_by(self._attester, purpose, vouched_for, appraiser(self.policy))

    def try_changed(self, plan: Plan, name: str, vault: Vault, dataset: str) -> str:
        """Let a worker ask whose package differs in one byte; return the name of the file.

        Raises:
            PolicyRefused: it was refused, but not for what was measured.
            VerificationError: it got its keys.
        """
        copy = self._state / "changed"
        shutil.copytree(_package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / _CHANGED_FILE
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        machine = self._attesting_machine("changed-machine", measure(package=copy))
        handed = vault.hand_over(dataset, purpose=plan.study.purpose)
        owner, access = self._kept[name].owner, self._access(name, machine)
        worker = SandboxedWorker(plan, owner, sandbox(), handed, broker=access)
        try:
            worker.train(worker.initial)
        except PolicyRefused as refusal:
            if "measurements:" not in refusal.what:  # it was refused for something else, and so are all
                raise
            return _CHANGED_FILE
        finally:
            worker.close()
        raise VerificationError(
            "a broker gave its keys to a package that was changed", fix="Report this: it must not happen"
        )

    def facts(self, *, worker_of: Mapping[str, str], changed: str, walls: Mapping[str, str]) -> Enclave:
        """Return what the report says.

        Args:
            worker_of: what a site's worker is called, by site.
            changed: what was changed, in words, for the attempt that was refused.
            walls: around each worker, by name.
        """
        found: list[Attestation] = []
        count = 0
        for name, kept in self._kept.items():
            log = kept.broker.book.log
            entries = [decode_entry(log.entry(index)) for index in range(len(log))]
            count += sum(isinstance(entry, ReleaseMade | Refusal) for entry in entries)
            found += _attestations(entries, worker_of[name], name, changed)
        accepted = [each.protection for each in found if each.accepted]
        hardware = bool(accepted) and set(accepted) == {"hardware"}
        return Enclave(
            protection=protection_by(hardware),
            attestations=tuple(sorted(found, key=lambda each: not each.accepted)),
            policy=self.policy.digest,
            walls=dict(walls),
            log_entries=count,
        )

    def _access(self, name: str, attester: Attester) -> BrokerAccess:
        kept = self._kept[name]
        elsewhere = SplitKeys(kept.local, kept.keys, new=False).elsewhere
        return BrokerAccess(kept.connect, kept.identity.public, attester, elsewhere)

    def _attesting_machine(self, name: str, measured: Any) -> Attester:
        folder = self._state / name
        folder.mkdir(mode=0o700)
        attester = find_attester(folder, software_allowed=True, measured=measured)
        self._stack.callback(attester.close)
        return attester


def _attestations(entries: list[Entry], who: str, asked_by: str, changed: str) -> list[Attestation]:
    """Return one line for all releases to a site's worker, and one for each kind of refusal."""
    made = [entry for entry in entries if isinstance(entry, ReleaseMade)]
    keys = sum(entry.count for entry in made)
    found = [_attestation(who, asked_by, made[0].appraised, keys=keys)] if made else []
    for entry in entries:
        if isinstance(entry, Refusal) and entry.appraised is not None:
            shown = entry.appraised
            found.append(_attestation(who, asked_by, shown, reasons=entry.reasons, changed=changed))
    return found


def _attestation(who: str, asked_by: str, shown: Appraised, **came_of_it: Any) -> Attestation:
    package = shown.measurements.get(_PACKAGE)
    return Attestation(who, asked_by, shown.kind, shown.protection, package=package, **came_of_it)


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _now() -> datetime:
    return datetime.now(UTC)
