"""Datasets whose key a broker keeps: a sandboxed worker opens them with evidence, its site does not at all.

NOT HARDWARE-PROTECTED: a software TPM makes the evidence here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.enclave.attester.machine import needs_swtpm
from tests.runtime.parties import PURPOSE, parties, plan_for, schema, table
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import Identity, ScryptCost, sha256
from cloister.enclave.appraise import appraiser
from cloister.enclave.attester import find_attester, measure
from cloister.enclave.broker import Broker, BrokerKeys, Direct, Exchange, Permission, Wanted, open_book
from cloister.enclave.broker.grant import wanted_report_data
from cloister.enclave.broker.messages import Ask, Challenge, encode
from cloister.enclave.evidence import Evidence
from cloister.enclave.policy import EnclavePolicy, Reference
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.learning import Plan
from cloister.runtime import Party, Study
from cloister.runtime.workers.brokered import BrokerAccess, KeyCarrier
from cloister.runtime.workers.messages import BrokerAsk, BrokerSays, EvidenceWanted, Key
from cloister.vault import Vault

HUB = Identity.generate("hub")
CHEAP = ScryptCost(n=2**10)


def now() -> datetime:
    return datetime.now(UTC)


class World:
    """Three sites; the rows of the first are opened by attested workers alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.owner = Identity.generate("site0")
        self.keeper = Identity.generate("broker")
        self.measured = measure()
        package = next(each.digest for each in self.measured if each.name == "package")
        self.policy = EnclavePolicy(
            kinds=("tpm",),
            allow_software_tee=True,
            allow_self_reported=True,
            measurements=(Reference("this package", {"start:package": package}),),
        )
        book = open_book(root / "broker", "secret", self.keeper.fingerprint, now(), cost=CHEAP)
        appraise = appraiser(self.policy)
        self.broker = Broker(
            book, self.keeper, appraise, policy=self.policy.digest, owners=[self.owner.public]
        )
        self.owned = BrokerKeys(self.connect, self.keeper.public, owner=self.owner)
        self.vault = Vault(root / "site0", self.owner, self.owned)
        self.vault.add_table(table(40, 0), name="train", schema=schema(), purposes=[PURPOSE])
        self.attester = find_attester(root / "tpm", software_allowed=True, measured=self.measured)
        others = parties(root / "others", [40, 25, 30])[1:]
        self.members = [Party(self.owner, self.vault), *others]
        self.plan = plan_for(HUB, self.members)

    def connect(self) -> Exchange:
        return Direct(self.broker, now)

    def access(self, attester: Any = None) -> BrokerAccess:
        return BrokerAccess(
            self.connect,
            self.keeper.public,
            attester or self.attester,
            lambda kek: kek.startswith("dataset."),
        )

    def allow(self, plan: Plan, *, uses: int = 1) -> None:
        handed = self.vault.hand_over("train", purpose=PURPOSE)
        wanted = Wanted(handed.manifest.kek_id, sha256(handed.envelope).hex(), plan.digest.hex(), PURPOSE)
        until = now().replace(microsecond=0) + timedelta(hours=1)
        self.owned.allow(Permission(os.urandom(16).hex(), wanted, until, uses))

    def run(self, plan: Plan, access: BrokerAccess) -> np.ndarray:
        first = replace(self.members[0], broker=access)
        return Study(plan, HUB, [first, *self.members[1:]], sandboxed=True).run().model

    def close(self) -> None:
        self.attester.close()
        self.broker.book.store.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs_swtpm()
    needs_walls()
    made = World(tmp_path_factory.mktemp("brokered"))
    yield made
    made.close()


def plan_named(world: World, name: str) -> Plan:
    study = msgspec.structs.replace(world.plan.study, name=name)
    return msgspec.structs.replace(world.plan, study=study)


def test_an_attested_worker_opens_what_its_site_cannot(world: World) -> None:
    plan = plan_named(world, "opens")
    world.allow(plan)
    assert world.run(plan, world.access()).shape == (3,)
    with (
        pytest.raises(PolicyRefused, match="attested workers alone"),
        Vault(world.root / "site0", world.owner, BrokerKeys(world.connect, world.keeper.public)).open(
            "train", purpose=PURPOSE
        ) as rows,
    ):
        rows.table()


def test_without_a_grant_for_this_plan_nothing_opens(world: World) -> None:
    with pytest.raises(PolicyRefused):
        world.run(plan_named(world, "another"), world.access())


def test_a_use_is_a_use(world: World) -> None:
    plan = plan_named(world, "once")
    world.allow(plan, uses=1)
    world.run(plan, world.access())
    with pytest.raises(PolicyRefused):
        world.run(plan, world.access())


def test_a_changed_package_gets_no_key(world: World, tmp_path: Path) -> None:
    plan = plan_named(world, "changed")
    world.allow(plan)
    changed = tuple(
        each._replace(digest=each.digest[::-1]) if each.name == "package" else each for each in world.measured
    )
    other = find_attester(tmp_path / "tpm", software_allowed=True, measured=changed)
    try:
        with pytest.raises(PolicyRefused, match="none of the accepted images"):
            world.run(plan, world.access(other))
    finally:
        other.close()


class _Listening:
    """A site that keeps what it carries."""

    def __init__(self, inner: Exchange, heard: list[bytes]) -> None:
        self._inner, self._heard = inner, heard

    def exchange(self, message: bytes) -> bytes:
        answer = self._inner.exchange(message)
        self._heard += [message, answer]
        return answer

    def alive(self) -> bool:
        return self._inner.alive()

    def close(self) -> None:
        self._inner.close()


def test_the_site_carries_keys_it_cannot_read(world: World) -> None:
    plan, heard = plan_named(world, "heard"), []
    world.allow(plan)
    known = [key.get() for key in world.owned._known.values()]  # the owner wrapped them, and so knows them
    assert known
    access = replace(world.access(), connect=lambda: _Listening(world.connect(), heard))
    world.run(plan, access)
    assert len(heard) > 4
    assert not any(key in message for key in known for message in heard)


class _Other:
    """An attester that vouches for another key than the worker's."""

    def __init__(self, world: World) -> None:
        self._world = world

    def attest(self, report_data: bytes) -> Evidence:
        return self._world.attester.attest(bytes(64))


def test_evidence_for_another_key_is_refused(world: World) -> None:
    plan = plan_named(world, "other-key")
    world.allow(plan)
    with pytest.raises(PolicyRefused, match="freshness"):
        world.run(plan, world.access(_Other(world)))


class _Dead:
    def exchange(self, message: bytes) -> bytes:
        return b"\xc1"

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize("connect", [_Dead], ids=["garbage"])
def test_a_broker_that_speaks_garbage_ends_the_study_in_a_sentence(world: World, connect: Any) -> None:
    plan = plan_named(world, "garbage")
    with pytest.raises(CloisterError) as caught:
        world.run(plan, replace(world.access(), connect=connect))
    assert "Traceback" not in str(caught.value)


class _Saying:
    """A broker's connection that answers the same to everything."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def exchange(self, message: bytes) -> bytes:
        return self.answer

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Vouching:
    """An attester that keeps what it vouched for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def attest(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        return Evidence("tpm", report_data)


KEEPER = Identity.generate("broker").public
MINE = Wanted("dataset.rows.1", "11" * 32, "22" * 32, PURPOSE)
KEY = b"\x07" * 1216
NONCE = b"\x05" * 32


def carrier_of(vouching: _Vouching, answer: bytes | None = None) -> KeyCarrier:
    said = encode(Challenge(NONCE, 60)) if answer is None else answer
    return KeyCarrier(BrokerAccess(lambda: _Saying(said), KEEPER, vouching, lambda _: True), MINE, columns=10)


def test_a_worker_cannot_choose_what_the_machine_vouches_for() -> None:
    # its site's other attestations are made by the same machine: of the hub, of its worker, for other rows
    vouching = _Vouching()
    carrier = carrier_of(vouching)
    carrier.carry(BrokerAsk(0, b"", fresh=True))
    carrier.attest(EvidenceWanted(0, KEY))
    assert vouching.asked == [wanted_report_data(KEEPER.fingerprint, NONCE, KEY, MINE)]
    assert not {"report_data", "nonce", "purpose"} & set(EvidenceWanted.__struct_fields__)


def test_evidence_answers_a_challenge_that_the_broker_gave_and_each_once() -> None:
    vouching = _Vouching()
    carrier = carrier_of(vouching)
    with pytest.raises(ProtocolError, match="did not ask"):
        carrier.attest(EvidenceWanted(0, KEY))
    carrier.carry(BrokerAsk(0, b"", fresh=True))
    carrier.attest(EvidenceWanted(0, KEY))
    with pytest.raises(ProtocolError, match="did not ask"):
        carrier.attest(EvidenceWanted(0, KEY))
    for answer in (b"\xc1", encode(Ask())):
        silent = carrier_of(vouching, answer)
        silent.carry(BrokerAsk(0, b"", fresh=True))
        with pytest.raises(ProtocolError, match="did not ask"):
            silent.attest(EvidenceWanted(0, KEY))
    assert len(vouching.asked) == 1


def test_a_worker_cannot_spend_every_use_of_a_grant() -> None:
    vouching = _Vouching()
    carrier = carrier_of(vouching)
    for _ in range(4):
        carrier.carry(BrokerAsk(0, b"", fresh=True))
        carrier.attest(EvidenceWanted(0, KEY))
    carrier.carry(BrokerAsk(0, b"", fresh=True))
    with pytest.raises(ProtocolError, match="more often"):
        carrier.attest(EvidenceWanted(0, KEY))
    assert len(vouching.asked) == 4


def test_a_worker_may_not_ask_for_ever() -> None:
    carrier = carrier_of(_Vouching())
    for _ in range(8 * 14):
        carrier.carry(BrokerAsk(0, b"", fresh=False))
    with pytest.raises(ProtocolError, match="more keys"):
        carrier.carry(BrokerAsk(0, b"", fresh=False))
    with pytest.raises(ProtocolError, match="a broker keeps"):
        carrier.lend(b"")


def test_messages_show_no_key() -> None:
    for message in (Key(b"0123456789abcdef"), BrokerSays(b"0123456789abcdef"), EvidenceWanted(0, KEY)):
        assert repr(message) == f"<{type(message).__name__}>"
