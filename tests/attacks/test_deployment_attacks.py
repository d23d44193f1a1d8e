"""Studies between organisations against hubs, sites, networks and thieves that do what they are not meant to."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.faults.test_budget_after_a_kill import BLOCK, Owner
from tests.runtime.budgets import Noting
from tests.runtime.nats.test_intruders import assert_refused, first_words, raw_context
from tests.runtime.parties import parties, plan_for
from tests.runtime.service.parts import Net, all_of, memory
from tests.runtime.world import World

from cloister.cli import common, up
from cloister.cli.between import TrustNow
from cloister.cli.eventwords import in_words
from cloister.crypto import SECRET_ACCESS, Identity, ScryptCost, TrustStore
from cloister.errors import PolicyRefused, ProtocolError, StorageError
from cloister.learning import PrivacySection
from cloister.runtime import Hub, HubEnd, MemoryNetwork, Refused, RoundDone
from cloister.runtime.events import Lost
from cloister.runtime.hubstate import PATIENCE
from cloister.runtime.link import Link
from cloister.runtime.messages import (
    Join,
    Message,
    RosterOffer,
    RoundStart,
    StateRequest,
    Upload,
    encode_message,
)
from cloister.runtime.nats import LocalServer, NatsTransport, NetworkKey, TlsFiles, certificates
from cloister.runtime.sumhub import Step
from cloister.secagg import Encoding, RoundSum

FOUR = (20, 20, 20, 20)


def build(tmp_path: Path, sizes: tuple[int, ...] = FOUR, hub_type: type[Hub] = Hub, **changes: Any) -> World:
    hub = Identity.generate("hub")
    members = parties(tmp_path, sizes)
    plan = plan_for(hub, members, **changes)
    return World(plan, hub, members, hub_type=hub_type, refusing_leave=True)


# --- a hub that lies ------------------------------------------------------------------------------------------


class NewEpochs(Hub):
    """A hub that keeps the sum of the first attempt, says that site3 is gone, and adds the others up again."""

    kept: np.ndarray | None = None
    next: np.ndarray | None = None

    def _on_sum(self, result: RoundSum, now: float) -> None:
        if self.kept is None:
            self.kept = self._values(result)
            self._excluded.add("site3")
            self._present.discard("site3")
            self._offer([name for name in self._members() if name != "site3"], now)
            return
        if self.next is None:
            self.next = self._values(result)
        super()._on_sum(result, now)

    def _values(self, result: RoundSum) -> np.ndarray:
        return result.total.view(np.int32) * self._current().terms.encoding.unit


@pytest.mark.parametrize(
    ("aggregation", "learned"),
    [({}, True), ({"hub_view": "none"}, False), ({"threshold": 4}, False)],
)
def test_limit_a_new_epoch_without_one_site_gives_its_update(
    tmp_path: Path, aggregation: dict[str, Any], learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is stated: two rosters are as good as two lists. A threshold of all sites prevents both."""
    world = build(tmp_path, FOUR, NewEpochs, aggregation=aggregation, training={"batch": 20})
    updates: list[np.ndarray] = []
    encode = Encoding.encode

    def spy(self: Encoding, vector: Any, *more: Any) -> Any:
        updates.append(np.array(vector))
        return encode(self, vector, *more)

    monkeypatch.setattr(Encoding, "encode", spy)
    world.start()
    world.run()
    hub = world.hub
    assert isinstance(hub, NewEpochs)
    assert hub.kept is not None
    assert (hub.next is None) == ("threshold" in aggregation)
    if hub.next is not None:
        difference = hub.kept - hub.next
        assert any(np.allclose(difference, update, atol=1e-6) for update in updates) is learned


def test_new_epochs_give_no_attempt_beyond_the_plans(tmp_path: Path) -> None:
    """However often a hub begins anew, a site counts."""

    class Greedy(NewEpochs):
        sums = 0

        def _on_sum(self, result: RoundSum, now: float) -> None:
            self.sums += 1
            self._attempt = -1  # as if no attempt had been used
            self._offer(list(self._members()), now)

    world = build(tmp_path, FOUR, Greedy)
    world.start()
    world.run()
    assert isinstance(world.hub, Greedy)
    assert world.hub.sums == world.plan.attempts
    assert all("beyond the plan" in reason for reason in world.refusals.values())
    assert len(world.refusals) >= 1


def test_no_attempt_follows_the_last_round(tmp_path: Path) -> None:
    """What is left of the spare attempts gives no sum of the final model."""

    class Another(Hub):
        def _on_done(self, peer: str, message: Any) -> None:
            start = RoundStart(self._plan.training.rounds, self._attempt + 1, None)
            self._send(peer, start)

    world = build(tmp_path, (20, 20, 20), Another)
    world.start()
    world.run(until=lambda: len(world.refusals) == 3)
    assert len(world.refusals) == 3
    assert all("after the last" in reason for reason in world.refusals.values())


def test_a_member_that_is_asked_twice_for_one_newcomers_model_refuses(tmp_path: Path) -> None:
    """A short request makes a site seal its model as often as it names somebody."""
    world = build(tmp_path, FOUR, aggregation={"hub_view": "none"})
    world.start()
    world.run(until=lambda: any(isinstance(event, RoundDone) for event in world.events))
    site = world.sites["site0"]
    with pytest.raises(ProtocolError, match="twice"):
        site.handle(StateRequest(["site1"] * 2))
    with pytest.raises(ProtocolError):
        site.handle(StateRequest(["nobody"]))


# --- sites that hold others up ------------------------------------------------------------------------------


class Listening:
    """A machine that notes what comes."""

    ACTIVITY = "study"
    reattest_seconds = None

    def __init__(self) -> None:
        self.heard: list[tuple[str, Message]] = []

    def resume(self, now: float) -> Step:
        return Step()

    def handle(self, peer: str, message: Message, now: float) -> Step:
        self.heard.append((peer, message))
        return Step()

    def tick(self, now: float) -> Step:
        return Step()


class Wire:
    """A hub's end and the links of sites, carried by a test."""

    def __init__(self, names: tuple[str, ...], **options: Any) -> None:
        hub, study = Identity.generate("hub"), bytes(32)
        identities = {name: Identity.generate(name) for name in names}
        self.machine = Listening()
        public = {name: identity.public for name, identity in identities.items()}
        self.end = HubEnd(self.machine, hub, public, study, **options)  # type: ignore[arg-type]
        self.links = {
            name: Link(identity, hub.public, study, initiator=True) for name, identity in identities.items()
        }
        self.now = 0.0
        self.events: list[Any] = []
        self.dropped: Callable[[str, bytes], bool] = lambda name, datagram: False
        for link in self.links.values():
            link.open(self.now)
        self.run(1.0)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            for name, link in self.links.items():
                while (datagram := link.poll(self.now)) is not None:
                    if not self.dropped(name, datagram):
                        self.events += self.end.receive(datagram, self.now)
            self.events += self.end.tick(self.now)
            for name, datagram in self.end.poll(self.now):
                self.links[name].receive(datagram, self.now)
            self.now += 0.02

    def join(self, name: str) -> None:
        self.links[name].send(encode_message(Join(b"", b"", 1)))


def large(size: int) -> bytes:
    return encode_message(Upload(0, memoryview(bytes(size))))


def test_a_site_that_announces_and_sends_nothing_does_not_keep_the_others_from_uploading() -> None:
    """One large message at a time is let through; whoever has its turn and does not use it loses it."""
    wire = Wire(("site0", "site1"), silence_seconds=60.0)
    wire.links["site0"].send(large(4 << 20))
    wire.dropped = lambda name, datagram: name == "site0" and len(datagram) > 16 << 10
    wire.run(1.0)
    wire.links["site1"].send(large(4 << 20))
    wire.run(30.0)
    assert [peer for peer, message in wire.machine.heard if isinstance(message, Upload)] == ["site1"]
    assert Lost("site0") in wire.events
    assert wire.links["site1"].ready


def test_a_slow_site_keeps_its_turn_while_something_comes() -> None:
    wire = Wire(("site0",), silence_seconds=60.0)
    wire.links["site0"].send(large(4 << 20))
    passed = 0.0

    def dropped(name: str, datagram: bytes) -> bool:
        nonlocal passed
        if len(datagram) < 16 << 10 or wire.now - passed > 5.0:
            passed = wire.now if len(datagram) > 16 << 10 else passed
            return False
        return True

    wire.dropped = dropped
    wire.run(60.0)
    assert [peer for peer, _ in wire.machine.heard] == ["site0"]


def test_a_site_announces_no_more_than_the_hub_takes() -> None:
    """Else a few bytes would cost the hub 8 GiB."""
    wire = Wire(("site0",), largest=1 << 20)
    wire.links["site0"].send(bytes(2 << 20))
    wire.run(1.0)
    assert Lost("site0") in wire.events
    assert any(isinstance(event, Refused) and "more than" in event.reason for event in wire.events)
    assert not wire.machine.heard


def test_a_site_says_once_in_a_session_where_it_was() -> None:
    """Each time, a hub reads its journal and queues what the site says it missed."""
    wire = Wire(("site0",))
    for _ in range(3):
        wire.join("site0")
    wire.run(1.0)
    assert len(wire.machine.heard) == 1
    assert any(isinstance(event, Refused) and "twice" in event.reason for event in wire.events)


def test_a_site_that_begins_every_set_up_anew_is_left_out(tmp_path: Path) -> None:
    """Without that one site could keep a study from ever beginning."""
    world = build(tmp_path, FOUR)
    joining = world.sites["site3"].join()
    world.start()
    setting_up = ("roster", "announce", "deal", "ready")
    for _ in range(PATIENCE + 1):
        world.run(until=lambda: world.hub._phase in setting_up)
        assert "site3" in world.hub._members()
        world.heard("site3", joining)
    assert "site3" not in world.hub._members()
    assert any(isinstance(event, Refused) and "left out" in event.reason for event in world.events)
    world.run(until=lambda: any(isinstance(event, RoundDone) for event in world.events))
    assert world.hub.rounds[0].survivors == ("site0", "site1", "site2")


# --- what is not charged ------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("how", ["out", "exchanged", "written into"])
def test_trust_that_ends_within_one_tick_of_the_clock_ends(
    home: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's time may not tell that it changed after it was read."""
    store, site = TrustStore(home / "trust"), Identity.generate("site")
    store.add(site.public)
    trusted = TrustNow()
    assert site.fingerprint in trusted()
    before, file = (home / "trust").stat(), home / "trust" / "site.json"
    if how == "out":
        store.remove("site")
    elif how == "exchanged":
        store.add(Identity.generate("site").public, replace=True)
    else:
        file.write_bytes(Identity.generate("site").public.to_json() + b"\n")
    os.utime(home / "trust", ns=(before.st_atime_ns, before.st_mtime_ns))
    later = time.monotonic() + 1.01
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert site.fingerprint not in trusted()


def test_what_others_say_does_not_command_a_terminal() -> None:
    line = in_words(Refused("site1", "takes no part: \x1b[2J\x1b]0;root\x07\nHub: all is well\u202e"))
    assert line is not None
    assert line.isprintable()
    assert "takes no part: ?[2J" in line


def test_cloister_up_leaves_no_passphrase_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it is killed: the file is in memory, for its owner alone."""
    monkeypatch.setattr(common, "passphrase", lambda: "correct horse")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as stack:
        place = up._in_memory(stack)
        if place is None:
            pytest.skip("this machine has no tmpfs")
        path = up._passphrase_file(place)
        assert path.read_text() == "correct horse"
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
        assert not path.is_relative_to(tmp_path)
        assert not any(tmp_path.iterdir())
    assert not path.exists()


class Mistrust(Net):
    """Everybody over a network, each with its owner's own list."""

    def leave_out(self, owner: str, name: str) -> None:
        trusted = {key: each for key, each in self._trusted().items() if each.name != name}
        self.services[owner]._trusted = lambda: trusted


def test_a_partner_that_is_trusted_no_more_while_the_study_runs_is_left(tmp_path: Path) -> None:
    """By the site whose owner said so, at the next message; its upload of that moment does not leave."""
    hub, members = Identity.generate("hub"), parties(tmp_path, FOUR)
    plan = plan_for(hub, members, training={"rounds": 60}, study={"deadline_seconds": 2.0})
    named = {party.identity.name: party for party in members}
    world = Mistrust(plan, hub, named, tmp_path, memory(MemoryNetwork()))

    async def play() -> Hub:
        async with asyncio.timeout(60):
            running = asyncio.create_task(all_of(world, list(named)))
            while not any(isinstance(event, RoundDone) for event in world.site_events.get("site0", [])):
                await asyncio.sleep(0.01)
            world.leave_out("site0", "site3")
            return await running

    machine = asyncio.run(play())
    assert world.services["site0"].ended == {"test": "site3 is trusted no more"}
    assert machine.finished
    assert "site0" not in machine.rounds[-1].survivors


def test_a_roster_with_who_is_trusted_no_more_is_refused(tmp_path: Path) -> None:
    world = build(tmp_path, FOUR)
    world.start()
    world.run(until=lambda: any(isinstance(event, RoundDone) for event in world.events))
    site = world.sites["site0"]
    everybody = {
        each.public.fingerprint: each.public for each in (p.identity for p in world._parties.values())
    }
    offer = world.hub.epochs[-1].terms
    less = {key: each for key, each in everybody.items() if each.name != "site3"}
    assert site.trust(everybody) is None
    assert site.trust(less) == "site3"
    again = RosterOffer(
        9,
        [member.to_json() for member in offer.roster.members],
        list(offer.manifests.values()),
        list(offer.rows.values()),
    )
    with pytest.raises(PolicyRefused, match="does not trust"):
        site.handle(again)


def test_who_has_heard_of_a_newer_hub_listens_to_the_older_no_more() -> None:
    """A hub that was cut off and does not know it yet may still answer; its session ends, and opens no more."""
    hub, site, study = Identity.generate("hub"), Identity.generate("site"), bytes(32)
    old = Link(hub, site.public, study, initiator=False, term=5)
    new = Link(hub, site.public, study, initiator=False, term=6)
    link = Link(site, hub.public, study, initiator=True, least_term=5)
    link.open(0.0)
    asked = link.poll(0.0)
    assert asked is not None
    old.receive(asked, 0.0)
    answer = old.poll(0.0)
    assert answer is not None
    link.receive(answer, 0.0)
    assert link.ready
    link.obey(6)
    assert not link.ready
    link.open(1.0)
    asked = link.poll(1.0)
    assert asked is not None
    for each in (old, new):
        each.receive(asked, 1.0)
    late = old.poll(1.0)
    assert late is not None
    with pytest.raises(ProtocolError, match="term 6 has begun"):
        link.receive(late, 1.0)
    answer = new.poll(1.0)
    assert answer is not None
    assert link.receive(answer, 1.0).opened


# --- what a break must not give away ------------------------------------------------------------------------


def test_after_a_loss_of_power_what_was_debited_is_spent(tmp_path: Path) -> None:
    """The count of attempts is not on the disk with each of them; the ledger's blocks are."""
    owner = Owner(tmp_path)
    owner.began(BLOCK + 3)
    with owner.process() as budget:
        assert budget.resume(owner.plan, owner.terms, BLOCK + 1) == 2 * BLOCK
    with owner.process() as budget:
        assert budget.resume(owner.plan, owner.terms, BLOCK) == 2 * BLOCK


def test_a_site_without_its_epoch_goes_on_after_the_block_that_was_begun(tmp_path: Path) -> None:
    class Paid(Noting):
        def resume(self, plan: Any, terms: Any, attempts_used: int) -> int:
            return 8

    hub, members = Identity.generate("hub"), parties(tmp_path, (20, 20, 20))
    plan = plan_for(hub, members, training={"batch": 20, "local_steps": 1})
    plan = msgspec.structs.replace(
        plan, privacy=PrivacySection(noise_multiplier=1e-5, delta=1e-4, clip=1.0, rate=1.0)
    )
    budgets = {each.identity.name: Paid(each.identity) for each in members}
    world = World(plan, hub, members, budgets=budgets)
    site = world.sites["site0"]
    site._attempts_used = 5  # as the journal says after a restart of the machine
    world.start()
    world.run(until=lambda: site.epoch_number >= 0)
    assert site._attempts_used == 8


# --- the network ------------------------------------------------------------------------------------------------


def test_expired_certificates_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that of a party at the server, nor that of the server at a party."""
    with LocalServer(tmp_path / "nats", "hub", ["alice"]) as server:
        assert first_words(server, raw_context(server, "alice"))
        monkeypatch.setattr(certificates, "VALID_DAYS", -1)
        key = NetworkKey.generate()
        key.save(tmp_path / "network.key", "x", cost=ScryptCost(n=2**14))
        (tmp_path / "certificate.pem").write_bytes(
            server.authority.organisation("alice", key.request("alice"))
        )
        (tmp_path / "authority.pem").write_bytes((server.network("hub") / "authority.pem").read_bytes())
        late = TlsFiles.in_folder(tmp_path, "x")
        assert_refused(server, late.client_context())
        with pytest.raises(StorageError):
            asyncio.run(NatsTransport.connect(server.urls, late, "alice", patience=1.0))
        context = raw_context(server, "alice")
    expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "server.key").write_bytes(key.to_pem(SECRET_ACCESS))
    (tmp_path / "server.pem").write_bytes(server.authority.server(key, ["127.0.0.1"]))
    expired.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with suppress(OSError), theirs:
            expired.wrap_socket(theirs, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    with ours, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        context.wrap_socket(ours, server_hostname="127.0.0.1")
    thread.join(5)
