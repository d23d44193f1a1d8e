"""A worker opens a sealed model through its home: with a key that the home lends, or with a broker's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.enclave.broker.world import Home, InsecureAttesterDouble, identity, permission
from tests.inference.modelworld import FILES, Keys, manifest_of, person, sealed, write_files

from cloister.crypto import Identity, PublicIdentity
from cloister.enclave.broker import BrokerKeys
from cloister.errors import CloisterError, InputError, PolicyRefused, ProtocolError
from cloister.inference.models.keys import PURPOSE, ModelHandover, brokered, lender
from cloister.inference.models.sealed import OpenDataKey, opened_model
from cloister.inference.models.sealing import seal_model
from cloister.learning.modelfiles.files import PlainFolder
from cloister.runtime.link import Link
from cloister.runtime.workers.answering import lent
from cloister.runtime.workers.asking import Lends
from cloister.runtime.workers.brokered import BrokerAccess
from cloister.runtime.workers.channel import Channel
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    BrokerAsk,
    EvidenceWanted,
    Key,
    KeyWanted,
    decode_answer,
    encode,
)

BOUND_TO = bytes(32)


def through(lends: Lends, work: Callable[[Channel], bytes]) -> bytes:
    """Run `work` as a worker, in a thread, with a session to a home that answers; return what it returned."""
    left, right = socket.socketpair()
    home, worker = Identity.generate("home"), Identity.generate("worker")
    failed: list[BaseException] = []

    def run() -> None:
        channel = Channel(Link(worker, home.public, BOUND_TO, initiator=False), right)
        channel.receive()
        try:
            answer = work(channel)
        except CloisterError as error:
            failed.append(error)
            answer = b""
        channel.send(b"done" + answer)
        channel.flush()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        channel = Channel(Link(home, worker.public, BOUND_TO, initiator=True, auto_grant=False), left)
        channel.open(20.0)
        channel.send(b"begin")
        while True:
            came = bytes(channel.receive(MAX_BROKERED + 1024))
            if came.startswith(b"done"):
                break
            asked = decode_answer(came)
            if isinstance(asked, KeyWanted):
                answer = Key(lends.lend(asked.wrapped))
            elif isinstance(asked, BrokerAsk):
                answer = lends.carry(asked)
            else:
                assert isinstance(asked, EvidenceWanted)
                answer = lends.attest(asked)
            channel.send(encode(answer))
    finally:
        left.close()
        thread.join(20)
        right.close()
    if failed:
        raise failed[0]
    return came[4:]


def reading(handed: ModelHandover, key_of: Callable[[Channel], OpenDataKey]) -> Callable[[Channel], bytes]:
    def work(channel: Channel) -> bytes:
        with opened_model(handed.folder, handed.envelope, handed.owner, key_of(channel)) as model:
            return model.read("config.json")

    return work


def test_a_home_lends_the_key(tmp_path: Path) -> None:
    keys = Keys()
    handed = ModelHandover.of(sealed(tmp_path, keys), person("ann").public)
    assert handed.broker is None
    assert through(lender(handed, keys=keys), reading(handed, lent)) == FILES["config.json"]


def test_a_home_lends_no_other_key(tmp_path: Path) -> None:
    """A worker that was taken over gets nothing else wrapped under the same keystore."""
    keys = Keys()
    handed = ModelHandover.of(sealed(tmp_path / "a", keys), person("ann").public)
    other = manifest_of(sealed(tmp_path / "b", keys))
    lends = lender(handed, keys=keys)
    with pytest.raises(ProtocolError, match="another key"):
        lends.lend(other.wrapped)
    with pytest.raises(ProtocolError):
        lends.attest(EvidenceWanted(0, bytes(1216)))
    for _ in range(20):
        try:
            lends.lend(handed.manifest.wrapped)
        except ProtocolError:
            return
    pytest.fail("a worker may ask for ever")


def test_the_keeper_must_be_given(tmp_path: Path) -> None:
    handed = ModelHandover.of(sealed(tmp_path, Keys()), person("ann").public)
    with pytest.raises(InputError, match="keystore"):
        lender(handed)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "broker")
    yield made
    made.close()


def broker_model(home: Home, root: Path) -> tuple[ModelHandover, BrokerKeys]:
    owner, broker = identity("alice"), identity("broker").public
    keys = BrokerKeys(home.connect, broker, owner=owner)
    source = PlainFolder(write_files(root / "plain"))
    seal_model(source, root / "ada", owner, name="ada", kind="language", keys=keys, broker=broker)
    return ModelHandover.of(root / "ada", owner.public), keys


def access(home: Home, attester: InsecureAttesterDouble | None = None) -> BrokerAccess:
    return BrokerAccess(
        home.connect, identity("broker").public, attester or InsecureAttesterDouble(), holds=lambda _: True
    )


def brokered_by(handed: ModelHandover) -> Callable[[Channel], OpenDataKey]:
    broker = handed.broker
    assert isinstance(broker, PublicIdentity)
    return lambda channel: brokered(channel, handed.envelope, handed.owner, broker)


def test_a_broker_releases_the_key_to_the_worker_past_its_home(home: Home, tmp_path: Path) -> None:
    handed, owner = broker_model(home, tmp_path)
    wanted = handed.wanted
    owner.allow(permission(kek_id=wanted.kek_id, manifest=wanted.manifest, plan=None, purpose=PURPOSE))
    lends = lender(handed, access=access(home))
    with pytest.raises(ProtocolError, match="broker keeps"):
        lends.lend(handed.manifest.wrapped)
    assert through(lends, reading(handed, brokered_by(handed))) == FILES["config.json"]
    released = [entry for entry in home.entries() if entry["entry"] == "released"]
    assert len(released) == 1
    assert released[0]["grant"]["wanted"]["purpose"] == "inference"  # type: ignore[index]
    assert released[0]["grant"]["wanted"]["plan"] is None  # type: ignore[index]


def test_without_a_grant_or_the_right_image_the_worker_gets_nothing(home: Home, tmp_path: Path) -> None:
    handed, owner = broker_model(home, tmp_path)
    with pytest.raises(PolicyRefused, match="granted nothing"):
        through(lender(handed, access=access(home)), reading(handed, brokered_by(handed)))
    wanted = handed.wanted
    owner.allow(permission(kek_id=wanted.kek_id, manifest=wanted.manifest, plan=None, purpose=PURPOSE))
    wrong = access(home, InsecureAttesterDouble("bb" * 32))
    with pytest.raises(PolicyRefused, match="none of the accepted images"):
        through(lender(handed, access=wrong), reading(handed, brokered_by(handed)))
    with pytest.raises(InputError, match="broker"):
        lender(handed, keys=Keys())
