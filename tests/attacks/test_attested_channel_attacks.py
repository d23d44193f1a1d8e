"""Evidence between hub and site, tried: replayed, borrowed, relayed, stripped, late, and judged by bad policies.

Hub and sites are the real ones, over real links; their evidence is a double's (`AttesterDouble`). An attacker here
has an identity that is trusted, as a member of the study has, and everything that others ever sent it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.enclave.doubles import NOON, AppraiserDouble, AttesterDouble, attesting
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity, sha256
from cloister.enclave import Evidence, report_data
from cloister.errors import InputError, PolicyRefused, ProtocolError
from cloister.learning import EnclaveSection, Plan
from cloister.runtime import Refused
from cloister.runtime.appraisal import AGGREGATOR, WORKER, sign_appraisal
from cloister.runtime.attestation import Attestation, Attesting, Question, binding, key_digest
from cloister.runtime.events import EvidenceAccepted
from cloister.runtime.messages import (
    Attested,
    Challenge,
    Join,
    Message,
    RosterOffer,
    Stop,
    decode_message,
    encode_message,
)

NAMES = ("site0", "site1", "site2")
ENCLAVE = {"required": True, "reattest_seconds": 3600}
STUDY = sha256(b"a study")
SESSION = sha256(b"a session")


def build(tmp_path: Path, hub: Identity, /, **replaced: Attesting) -> World:
    members = parties(tmp_path, (20, 20, 20))
    shown = {"hub": attesting(key_digest(hub.public), AGGREGATOR)}
    shown |= {name: attesting(sha256(name.encode()), WORKER) for name in NAMES}
    plan = plan_for(hub, members, enclave=ENCLAVE, study={"deadline_seconds": 300.0})
    return World(plan, hub, members, attesting=shown | replaced, refusing_leave=True)


def settle(world: World) -> None:
    while world._queue:
        world.carry()


def reasons(world: World) -> str:
    return " ".join(event.reason for event in world.events if isinstance(event, Refused))


# --- two ends of one link, everything between them in the test's hand -------------------------------------


class Pair:
    """A site and a hub, and what they would say of evidence."""

    def __init__(self, *, site: Attesting | None = None, hub: Attesting | None = None) -> None:
        self.hub_identity, self.site_identity = Identity.generate("hub"), Identity.generate("site")
        hub_side = hub or attesting(key_digest(self.hub_identity.public), AGGREGATOR)
        site_side = site or attesting(sha256(b"a worker"), WORKER)
        self.hub = self._end(hub_side, self.hub_identity, self.site_identity, hub=True)
        self.site = self._end(site_side, self.site_identity, self.hub_identity, hub=False)

    @staticmethod
    def _end(own: Attesting, identity: Identity, peer: Identity, *, hub: bool) -> Attestation:
        return Attestation(own, identity, peer.public, STUDY, hub=hub, reattest_seconds=3600)

    def open(self, session: bytes = SESSION, now: float = 0.0) -> None:
        asked_by_site, asked_by_hub = self.site.open(session, now), self.hub.open(session, now)
        self.hub.challenged(asked_by_site, now)
        self.site.challenged(asked_by_hub, now)

    def hub_shows(self) -> Attested:
        return shown(self.hub)

    def site_shows(self) -> Attested:
        return shown(self.site)


def shown(end: Attestation) -> Attested:
    question = end.question()
    assert question is not None
    message = end.show(question, question.evidence())
    assert message is not None
    return message


def test_the_pair_of_these_tests_does_attest() -> None:
    """What fails below fails for the attack."""
    pair = Pair()
    pair.open()
    assert pair.site.question() is None  # the hub goes first
    pair.site.attested(pair.hub_shows(), 1.0)
    pair.hub.attested(pair.site_shows(), 2.0)
    assert pair.site.mutual
    assert pair.hub.mutual


def test_replayed_evidence_of_the_hub_is_refused() -> None:
    pair = Pair()
    pair.open()
    old = pair.hub_shows()
    pair.site.attested(old, 1.0)
    with pytest.raises(ProtocolError, match="nobody asked"):  # again for the same nonce
        pair.site.attested(old, 1.0)
    pair.open(sha256(b"another session"), 2.0)
    with pytest.raises(PolicyRefused, match="freshness"):
        pair.site.attested(old, 3.0)
    with pytest.raises(ProtocolError, match="nobody asked"):  # that nonce is used, too
        pair.site.attested(pair.hub_shows(), 3.0)
    assert not pair.site.mutual


def test_replayed_evidence_of_a_worker_is_refused() -> None:
    pair = Pair()
    pair.open()
    pair.site.attested(pair.hub_shows(), 1.0)
    old = pair.site_shows()
    pair.hub.attested(old, 1.0)
    pair.open(SESSION, 2.0)  # even where the session had the same name
    pair.hub_shows()
    with pytest.raises(PolicyRefused, match="freshness"):
        pair.hub.attested(old, 3.0)


def test_another_sites_evidence_is_refused() -> None:
    """A site that has no enclave shows what a partner's worker made, for its own session with the hub."""
    honest, thief = Pair(), Pair()
    thief.hub = Pair._end(
        attesting(key_digest(honest.hub_identity.public), AGGREGATOR),
        honest.hub_identity,
        thief.site_identity,
        hub=True,
    )
    honest.open()
    honest.site.attested(honest.hub_shows(), 1.0)
    theirs = honest.site_shows()
    thief.hub.open(SESSION, 0.0)
    with pytest.raises(PolicyRefused, match="freshness"):
        thief.hub.attested(theirs, 1.0)


def test_a_worker_cannot_be_borrowed_with_the_hubs_own_nonce() -> None:
    """The relay: a site without an enclave passes the hub's nonce on to a partner's, as if it were a hub's."""
    hub = Identity.generate("hub")
    honest, thief = Identity.generate("honest"), Identity.generate("thief")
    judge = Pair._end(attesting(key_digest(hub.public), AGGREGATOR), hub, thief, hub=True)
    nonce = judge.open(SESSION, 0.0).nonce
    worker = AttesterDouble()
    for claimed_peer in (hub, thief):  # whomever the honest site believes to talk to
        bound = binding(SESSION, STUDY, honest.public, claimed_peer.public)
        borrowed = worker.attest(report_data(WORKER, nonce, bytes(32), session=bound.hex()))
        with pytest.raises(PolicyRefused, match="freshness"):
            judge.attested(Attested(bytes(32), borrowed.to_json()), 1.0)
        nonce = judge.open(SESSION, 0.0).nonce


def test_evidence_of_the_hub_does_not_serve_as_a_workers() -> None:
    """A reflection: the hub's own evidence is shown back to it."""
    pair = Pair()
    pair.open()
    own = pair.hub_shows()
    with pytest.raises(PolicyRefused, match="freshness"):
        pair.hub.attested(own, 1.0)


@pytest.mark.parametrize("key", [sha256(b"another key"), bytes(32)])
def test_a_hub_cannot_vouch_for_a_key_that_is_not_its_own(key: bytes) -> None:
    """Fresh, genuine, bound to this session: and about another key than the plan's hub has."""
    pair = Pair(hub=attesting(key, AGGREGATOR))
    pair.open()
    with pytest.raises(PolicyRefused, match="another key"):
        pair.site.attested(pair.hub_shows(), 1.0)


def test_the_key_that_is_named_is_the_key_that_is_vouched_for() -> None:
    pair = Pair(hub=attesting(sha256(b"another key"), AGGREGATOR))
    pair.open()
    lie = msgspec.structs.replace(pair.hub_shows(), key=key_digest(pair.hub_identity.public))
    with pytest.raises(PolicyRefused, match="freshness"):
        pair.site.attested(lie, 1.0)


@pytest.mark.parametrize("which", ["session", "study", "prover", "verifier"])
def test_evidence_is_bound_to_all_that_it_is_for(which: str) -> None:
    hub, site, other = (Identity.generate(name).public for name in ("hub", "site", "other"))
    right: dict[str, Any] = {"session": SESSION, "study": STUDY, "prover": hub, "verifier": site}
    wrong = right | {which: other if which in ("prover", "verifier") else bytes(32)}
    assert binding(**right) != binding(**wrong)
    assert binding(SESSION, STUDY, hub, site) != binding(SESSION, STUDY, site, hub)


@pytest.mark.parametrize("careless", [False, True])
def test_a_policy_that_overlooks_nonces_does_not_open_the_door(careless: bool) -> None:
    pair = Pair(site=attesting(bytes(32), WORKER, appraiser=AppraiserDouble(unbound=careless)))
    pair.open()
    pair.hub_shows()
    stale = AttesterDouble().attest(bytes(64))
    with pytest.raises(PolicyRefused, match="freshness"):
        pair.site.attested(Attested(key_digest(pair.hub_identity.public), stale.to_json()), 1.0)


@pytest.mark.parametrize(
    "evidence", [b"", b"{}", b"\xff" * 40, b"[" * 5000, Evidence("snp", b"short").to_json()]
)
def test_what_is_no_evidence_is_refused_and_not_an_error(evidence: bytes) -> None:
    pair = Pair()
    pair.open()
    with pytest.raises(PolicyRefused, match="refused"):
        pair.site.attested(Attested(key_digest(pair.hub_identity.public), evidence), 1.0)
    assert not pair.site.mutual


def test_a_site_that_does_not_sign_what_it_accepted_is_refused() -> None:
    other = Identity.generate("other")
    for forge in (
        lambda pair, message: None,
        lambda pair, message: message.appraisal[:-9],
        lambda pair, message: sign_appraisal(pair.site.accepted, other),
        lambda pair, message: sign_appraisal(
            msgspec.structs.replace(pair.site.accepted, evidence="0" * 64), pair.site_identity
        ),
        lambda pair, message: sign_appraisal(
            msgspec.structs.replace(pair.site.accepted, plan="0" * 64), pair.site_identity
        ),
        lambda pair, message: sign_appraisal(
            msgspec.structs.replace(pair.site.accepted, by="other"), pair.site_identity
        ),
    ):
        pair = Pair()
        pair.open()
        pair.site.attested(pair.hub_shows(), 1.0)
        message = pair.site_shows()
        with pytest.raises(PolicyRefused):
            pair.hub.attested(msgspec.structs.replace(message, appraisal=forge(pair, message)), 2.0)
        assert not pair.hub.mutual


def test_nobody_can_make_a_machine_quote_without_end() -> None:
    pair = Pair()
    pair.open()
    for now in (0.0, 1.0, 1799.0):
        with pytest.raises(ProtocolError, match="too soon"):
            pair.hub.challenged(Challenge(bytes(32)), now)
    pair.hub.challenged(Challenge(bytes(32)), 1801.0)


def test_evidence_is_as_old_as_the_challenge_it_answers() -> None:
    # whoever keeps evidence back, made when it was asked for, does not make it younger
    pair = Pair()
    pair.open()
    pair.site.attested(pair.hub_shows(), 100.0)
    again = pair.site.tick(2700.0)
    assert again is not None
    pair.hub.challenged(again, 2700.0)
    late = pair.hub_shows()
    with pytest.raises(PolicyRefused, match="lapsed"):
        pair.site.tick(3600.0)
    pair.site.attested(late, 3599.0)
    assert pair.site.tick(6299.0) is not None
    with pytest.raises(PolicyRefused, match="lapsed"):
        pair.site.tick(6300.0)


def test_evidence_that_comes_when_it_has_lapsed_is_refused() -> None:
    pair = Pair()
    pair.open()
    with pytest.raises(PolicyRefused, match="lapsed"):
        pair.site.attested(pair.hub_shows(), 3600.0)
    assert not pair.site.mutual


def test_a_question_of_an_old_session_is_not_answered_in_the_next() -> None:
    pair = Pair()
    pair.open()
    question = pair.hub.question()
    assert isinstance(question, Question)
    evidence = question.evidence()
    pair.open(sha256(b"another"), 1.0)
    assert pair.hub.show(question, evidence) is None


# --- over real links, with real machines -------------------------------------------------------------------


def spied(world: World) -> list[tuple[str, str]]:
    """Note what the hub's machine hears."""
    heard: list[tuple[str, str]] = []
    handle = world.hub.handle

    def spy(peer: str, message: Message, now: float) -> Any:
        heard.append((peer, type(message).__name__))
        return handle(peer, message, now)

    world.hub.handle = spy  # type: ignore[method-assign]
    return heard


def sent_by(world: World, name: str) -> list[str]:
    """Note what a site's end says, in the clear."""
    said: list[str] = []
    send = world.ends[name].link.send

    def spy(payload: Any) -> None:
        said.append(type(decode_message(payload, peer=name)).__name__)
        send(payload)

    world.ends[name].link.send = spy  # type: ignore[method-assign]
    return said


def test_a_hub_that_sends_no_evidence_hears_one_nonce_and_nothing_else(tmp_path: Path) -> None:
    """The downgrade: a hub that strips evidence, or has none, goes on as if none were asked for."""
    hub = Identity.generate("hub")
    world = build(tmp_path, hub)
    world.hub_end.questions = lambda: iter(())  # type: ignore[method-assign]
    said = {name: sent_by(world, name) for name in NAMES}
    world.start()
    settle(world)
    world.pass_time(60)
    settle(world)
    assert set(map(tuple, said.values())) == {("Challenge",)}
    world.pass_time(61)
    settle(world)
    assert set(world.refusals) == set(NAMES)
    assert all("none came within" in reason for reason in world.refusals.values())
    assert set(map(tuple, said.values())) == {("Challenge", "Leave")}


def test_a_hub_that_speaks_before_it_has_shown_evidence_is_left(tmp_path: Path) -> None:
    world = build(tmp_path, Identity.generate("hub"))
    world.hub_end.questions = lambda: iter(())  # type: ignore[method-assign]
    world.start()
    settle(world)
    world.hub_end.links["site0"].send(encode_message(RosterOffer(0, [], [], [])))
    world.hub_end._due["site0"] = None
    world.collect()
    settle(world)
    assert "before evidence was exchanged" in world.refusals["site0"]
    assert not world.sites["site0"].epoch_number >= 0


def test_a_site_that_strips_the_messages_is_not_heard(tmp_path: Path) -> None:
    """It sends its Join as sites of older studies do."""
    world = build(tmp_path, Identity.generate("hub"))
    end = world.ends["site1"]
    end._attestation = None
    heard = spied(world)
    world.start()
    settle(world)
    end.link.send(encode_message(world.sites["site1"].join()))
    world.collect()
    settle(world)
    assert ("site1", "Join") not in heard
    assert "sent Join before its evidence was accepted" in reasons(world)
    assert "site1" not in world.hub.joined


@pytest.mark.parametrize("again", [1, 3])
def test_a_refused_site_is_deaf_and_dumb_until_it_opens_another_session(tmp_path: Path, again: int) -> None:
    hub = Identity.generate("hub")
    maker = AttesterDouble(machine="changed")
    judge = AppraiserDouble(machines=["honest"])
    world = build(
        tmp_path,
        hub,
        hub=attesting(key_digest(hub.public), AGGREGATOR, appraiser=judge),
        site1=attesting(sha256(b"1"), WORKER, attester=maker),
    )
    heard = spied(world)
    world.start()
    settle(world)
    assert world.sites["site1"].stopped == "evidence refused"
    world.say("site1", world.sites["site1"].join(), Join(b"", b"", 1))
    settle(world)
    assert not [each for each in heard if each[0] == "site1"]
    for _ in range(again):  # with the same machine it gets no further
        world.replace_site("site1", world._make_site("site1"))
        world.arrive("site1")
        settle(world)
        assert world.sites["site1"].stopped == "evidence refused"
    maker._machine = "honest"
    world.replace_site("site1", world._make_site("site1"))
    world.arrive("site1")
    world.run()
    assert world.hub.finished
    assert "site1" in world.hub.members


def test_a_wire_that_drops_evidence_delays_and_lets_nothing_pass(tmp_path: Path) -> None:
    """Links keep order: what was lost is sent again before anything after it counts."""
    world = build(tmp_path, Identity.generate("hub"))
    heard = spied(world)
    world.lost.add("site2")
    world.start()
    settle(world)
    assert ("site2", "Join") not in heard
    world.lost.clear()
    world.arrive("site2")
    world.run()
    assert world.hub.finished
    assert "site2" in world.hub.members
    accepted = [event.peer for event in world.events if isinstance(event, EvidenceAccepted)]
    assert accepted.index("site2") < len(accepted)


def test_the_peer_learns_nothing_of_why(tmp_path: Path) -> None:
    hub = Identity.generate("hub")
    judge = AppraiserDouble(machines=["only-this-image-is-secretly-accepted"])
    world = build(tmp_path, hub, hub=attesting(key_digest(hub.public), AGGREGATOR, appraiser=judge))
    told: list[Message] = []
    for name in NAMES:
        link = world.hub_end.links[name]
        send = link.send

        def spy(payload: Any, send: Callable[[Any], None] = send) -> None:
            told.append(decode_message(payload, peer="hub"))
            send(payload)

        link.send = spy  # type: ignore[method-assign]
    world.start()
    settle(world)
    stops = [message for message in told if isinstance(message, Stop)]
    assert [message.reason for message in stops] == ["evidence refused"] * 3
    assert "none of the accepted images" in reasons(world)  # the owner does
    assert {type(message).__name__ for message in told} == {"Challenge", "Attested", "Stop"}


def test_a_plan_without_the_table_is_another_plan(tmp_path: Path) -> None:
    """A hub cannot tell one site that evidence is asked for and another that it is not: the digest is another,
    and with it every key; a site whose policy says "attested" refuses the plan that asks for none."""
    hub = Identity.generate("hub")
    members = parties(tmp_path, (20, 20, 20))
    asking = plan_for(hub, members, enclave=ENCLAVE)
    for other in (
        plan_for(hub, members),
        plan_for(hub, members, enclave={"required": False}),
        plan_for(hub, members, enclave=ENCLAVE | {"reattest_seconds": 7200}),
    ):
        assert other.digest != asking.digest


def test_evidence_that_nobody_asked_for_is_not_taken(tmp_path: Path) -> None:
    """A study without [enclave] does not appraise what comes: it may be large, and a parser is a surface."""
    hub = Identity.generate("hub")
    members = parties(tmp_path, (20, 20, 20))
    world = World(plan_for(hub, members), hub, members, refusing_leave=True)
    world.start()
    settle(world)
    world.say("site0", Challenge(bytes(32)), Attested(bytes(32), b"{}"))
    world.hub_end.links["site1"].send(encode_message(Challenge(bytes(32))))
    world.hub_end._due["site1"] = None
    world.collect()
    settle(world)
    assert "the plan asks for none" in reasons(world)
    assert "the plan does not ask for" in world.refusals["site1"]


# --- policies ----------------------------------------------------------------------------------------------


def test_a_policy_that_accepts_nothing_lets_nothing_in(tmp_path: Path) -> None:
    from cloister.enclave.appraise import appraiser

    hub = Identity.generate("hub")
    world = build(
        tmp_path,
        hub,
        site1=Attesting(bytes(32), attesting(bytes(32), WORKER).evidence_for, appraiser(), lambda: NOON),
    )
    world.start()
    settle(world)
    assert set(world.refusals) == {"site1"}


@pytest.mark.parametrize(
    "text",
    [
        b'allow_software_tee = true\nkinds = ["snp"]\n',
        b"kinds = []\n",
        b'kinds = ["nvidia-gpu"]\n',
        b"alow_software_tee = true\n",
        b"allow_software_tee = 1\n",
    ],
)
def test_a_policy_that_contradicts_itself_is_an_error_and_never_a_yes(text: bytes) -> None:
    from cloister.enclave.policyfile import read_enclave_policy

    with pytest.raises(InputError):
        read_enclave_policy(text)


def test_a_plan_that_asks_for_evidence_cannot_be_run_without(tmp_path: Path) -> None:
    """Whoever forgets to hand an end its attester does not get a study without evidence."""
    hub = Identity.generate("hub")
    members = parties(tmp_path, (20, 20, 20))
    plan: Plan = plan_for(hub, members, enclave=ENCLAVE)
    with pytest.raises(PolicyRefused, match="asks for evidence"):
        World(plan, hub, members)
    without = msgspec.structs.replace(plan, enclave=EnclaveSection(required=False))
    World(without, hub, members)


def test_a_machine_that_cannot_quote_takes_no_part(tmp_path: Path) -> None:
    hub = Identity.generate("hub")

    def broken(challenge: bytes, session: bytes) -> Evidence:
        raise InputError("the TPM does not answer")

    world = build(tmp_path, hub, site1=Attesting(bytes(32), broken, AppraiserDouble(), lambda: NOON))
    heard = spied(world)
    world.start()
    settle(world)
    assert "does not answer" in world.refusals["site1"]
    assert ("site1", "Join") not in heard
