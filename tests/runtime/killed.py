"""What a test starts and kills: a private study over homes on disk, with a witness of every vector that left.

    python -m tests.runtime.killed ROOT NUMBER

ROOT holds the homes that `prepare` made. A byte is appended to ROOT/witness/SITE, on the disk, as soon as a
site has computed a vector from its rows: everything that can leave it is witnessed before it leaves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from tests.runtime.parties import CHEAP, PURPOSE, plan_for, schema, table

from cloister.crypto import Identity
from cloister.learning import Plan, PrivacySection
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Party, Study
from cloister.vault import Vault

SITES = {"site0": 40, "site1": 25, "site2": 30}
PASSPHRASE = "only for this test"
CAP = Cap.of(12.0, 1e-3)


def prepare(root: Path) -> None:
    """Make the homes: identities, vaults with rows, ledgers with a budget."""
    (root / "witness").mkdir()
    Identity.generate("hub").save(root / "hub.json", PASSPHRASE, cost=CHEAP)
    for seed, (name, rows) in enumerate(SITES.items()):
        identity = Identity.generate(name)
        identity.save(root / f"{name}.json", PASSPHRASE, cost=CHEAP)
        vault = Vault.unlock(root / "vaults" / name, identity, PASSPHRASE, cost=CHEAP)
        vault.add_table(table(rows, seed), name="train", schema=schema(), purposes=[PURPOSE])
        with Ledger.open(root / "ledgers" / name, identity) as ledger:
            ledger.declare("people", CAP)
            ledger.bind("people", vault.manifest("train").dataset_id, vault.fingerprints("train"))


def identity_of(root: Path, name: str) -> Identity:
    return Identity.load(root / f"{name}.json", PASSPHRASE)


def vault_of(root: Path, name: str, identity: Identity) -> Vault:
    return Vault.unlock(root / "vaults" / name, identity, PASSPHRASE)


def plan_of(hub: Identity, members: list[Party], number: int) -> Plan:
    plan = plan_for(
        hub,
        members,
        study={"name": f"study-{number}"},
        training={"batch": 48, "local_steps": 1, "rounds": 57},
    )
    privacy = PrivacySection(noise_multiplier=60.0, delta=1e-4, clip=1.0, rate=0.5, block_attempts=4)
    return msgspec.structs.replace(plan, privacy=privacy)


def main(root: Path, number: int) -> None:
    hub = identity_of(root, "hub")
    with ExitStack() as ledgers:
        members = []
        for name in SITES:
            identity = identity_of(root, name)
            ledger = ledgers.enter_context(Ledger.open(root / "ledgers" / name, identity))
            members.append(Party(identity, vault_of(root, name, identity), ledger=ledger))
        study = Study(plan_of(hub, members, number), hub, members)
        for name, site in study.sites.items():
            file = os.open(root / "witness" / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            site._vector = witnessed(site._vector, file)  # type: ignore[method-assign]
        say("ready")
        study.run()
    say("done")


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def witnessed(vector: Callable[..., Any], file: int) -> Callable[..., Any]:
    def computed(*arguments: Any) -> Any:
        found = vector(*arguments)
        os.write(file, b".")
        return found

    return computed


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
