"""Approvals: signed by the owner, for one plan, and a hub cannot flood them."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.invitations import hub, known, own, people, plan_of

from cloister.crypto import canonical_bytes, sign_envelope
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.learning import Plan
from cloister.runtime.approvals import APPROVAL_TYPE, MAX_OF_HUB, MAX_PENDING, Approvals, admit, settle
from cloister.runtime.sitepolicy import Decision, SitePolicy

ASK = SitePolicy()


@pytest.fixture
def store(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path / "approvals", people()["north"].public)


def another(number: int, **changes: Any) -> Plan:
    return plan_of(study={"name": f"study-{number}"}, **changes)


def file_of(store: Approvals, plan: Plan) -> Path:
    return store.folder / f"{plan.digest.hex()}.json"


def invited(store: Approvals, plan: Plan, policy: SitePolicy | None = ASK) -> Decision:
    return admit(plan, hub(), policy, known(), store, own=own())


def test_a_plan_waits_until_it_is_approved_and_then_is_taken_part_in(store: Approvals) -> None:
    plan, me = plan_of(), people()["north"]
    assert store.state(plan.digest) is None
    assert invited(store, plan).verdict == "ask"
    assert store.state(plan.digest) == "pending"
    assert [asked.digest for asked in store.list()] == [plan.digest.hex()]
    assert store.approve(plan.digest.hex()[:8], me).state == "approved"
    assert invited(store, plan).verdict == "accept"
    assert store.get(plan.digest.hex()).plan == plan
    assert store.refuse(plan.digest.hex(), me).state == "refused"
    assert invited(store, plan).verdict == "refuse"
    assert store.approve(plan.digest.hex(), me).state == "approved"


def test_files_are_private(store: Approvals) -> None:
    invited(store, plan_of())
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(store, plan_of()).stat().st_mode) == 0o600


def test_what_the_policy_refuses_stays_refused_and_what_the_owner_refuses_too(store: Approvals) -> None:
    plan, me = plan_of(), people()["north"]
    invited(store, plan)
    store.approve(plan.digest.hex(), me)
    assert invited(store, plan, SitePolicy(minimum_sites=9)).verdict == "refuse"
    assert invited(store, plan, SitePolicy(decision="refuse")).verdict == "refuse"
    store.refuse(plan.digest.hex(), me)
    assert invited(store, plan, SitePolicy(decision="accept")).verdict == "refuse"


@pytest.mark.parametrize("state", [None, "pending", "approved", "refused"])
@pytest.mark.parametrize("verdict", ["accept", "ask", "refuse"])
def test_hand_and_policy_together(verdict: Any, state: Any) -> None:
    settled = settle(Decision(verdict, ("x",)), state).verdict
    if "refuse" in (verdict, (state or "").removesuffix("d")):
        assert settled == "refuse"
    else:
        assert settled == ("accept" if verdict == "accept" or state == "approved" else "ask")


def test_what_is_accepted_or_refused_by_policy_leaves_nothing(store: Approvals) -> None:
    assert invited(store, plan_of(), SitePolicy(decision="accept")).verdict == "accept"
    assert invited(store, plan_of(), SitePolicy(decision="refuse")).verdict == "refuse"
    assert not store.folder.exists()


# --- attacks ----------------------------------------------------------------------------------------------


def test_an_approval_of_another_plan_does_not_count(store: Approvals) -> None:
    """Attack: the file, or the decision, of an approved plan is put in the place of another."""
    mild, harsh = plan_of(), plan_of(training={"rounds": 300})
    invited(store, mild)
    invited(store, harsh)
    store.approve(mild.digest.hex(), people()["north"])
    kept = file_of(store, harsh).read_bytes()
    file_of(store, harsh).write_bytes(file_of(store, mild).read_bytes())
    with pytest.raises(IntegrityError, match="not as it was written"):
        store.state(harsh.digest)
    moved = msgspec.json.decode(kept) | {
        "decision": msgspec.json.decode(file_of(store, mild).read_bytes())["decision"]
    }
    file_of(store, harsh).write_bytes(canonical_bytes(moved))
    with pytest.raises(IntegrityError, match="another plan"):
        invited(store, harsh)


@pytest.mark.parametrize("how", ["nobody", "eve", "hub", "type", "unknown"])
def test_a_forged_approval_does_not_count(store: Approvals, how: str) -> None:
    """Attack: somebody who can write files approves."""
    plan, everybody = plan_of(), people()
    invited(store, plan)
    payload = canonical_bytes({"plan": plan.digest.hex(), "state": "approved"})
    signer = everybody.get(how, everybody["north"])
    envelope = sign_envelope(APPROVAL_TYPE, payload, [signer])
    if how == "type":
        envelope = sign_envelope(APPROVAL_TYPE.replace("plan-approval", "manifest"), payload, [signer])
    elif how == "unknown":
        more = canonical_bytes({"plan": plan.digest.hex(), "state": "approved", "until": "ever"})
        envelope = sign_envelope(APPROVAL_TYPE, more, [signer])
    elif how == "nobody":
        envelope = payload
    content = msgspec.json.decode(file_of(store, plan).read_bytes())
    content["decision"] = msgspec.to_builtins(envelope)
    file_of(store, plan).write_bytes(canonical_bytes(content))
    for look in (lambda: store.state(plan.digest), lambda: invited(store, plan), store.list):
        with pytest.raises(IntegrityError, match="not signed by this home"):
            look()
    assert store.refuse(plan.digest.hex(), everybody["north"]).state == "refused"  # the owner can mend it


def test_what_is_shown_is_what_is_approved(store: Approvals) -> None:
    """Attack: the plan in the file is exchanged for a milder one before the owner looks."""
    plan = plan_of(training={"rounds": 300})
    invited(store, plan)
    content = msgspec.json.decode(file_of(store, plan).read_bytes())
    content["plan"] = plan_of().to_toml()
    file_of(store, plan).write_bytes(canonical_bytes(content))
    for act in (
        lambda: store.get(plan.digest.hex()),
        lambda: store.approve(plan.digest.hex(), people()["north"]),
    ):
        with pytest.raises(IntegrityError):
            act()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: data.replace(b'"reasons"', b'"Reasons"'),
        lambda data: data.replace(b"{", b'{"extra":1,', 1),
        lambda data: b"[]",
        lambda data: b"\xff" * 10,
        lambda data: data.replace(hub().fingerprint.encode(), b"0" * 64),
    ],
)
def test_a_broken_file_refuses(store: Approvals, change: Any) -> None:
    plan = plan_of()
    invited(store, plan)
    path = file_of(store, plan)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError):
        invited(store, plan)


def test_only_the_owner_decides(store: Approvals) -> None:
    invited(store, plan_of())
    with pytest.raises(InputError, match="another identity"):
        store.approve(plan_of().digest.hex(), people()["eve"])
    assert store.state(plan_of().digest) == "pending"


def test_repeated_invitations_add_and_change_nothing(store: Approvals) -> None:
    plan = plan_of()
    invited(store, plan)
    before = (file_of(store, plan).read_bytes(), file_of(store, plan).stat().st_mtime_ns)
    for _ in range(50):
        assert store.request(plan, hub(), ["something else"]) == "pending"
    assert (file_of(store, plan).read_bytes(), file_of(store, plan).stat().st_mtime_ns) == before
    store.refuse(plan.digest.hex(), people()["north"])
    assert invited(store, plan).verdict == "refuse"
    assert len(store.list()) == 1


def test_a_hub_cannot_flood(store: Approvals) -> None:
    """Attack: one plan after another; decided ones make room, and other hubs are not in the way."""
    plans = [another(number) for number in range(MAX_OF_HUB + 1)]
    for plan in plans[:-1]:
        assert invited(store, plan).verdict == "ask"
    with pytest.raises(PolicyRefused, match="wait for a decision"):
        invited(store, plans[-1])
    assert len(store.list()) == MAX_OF_HUB
    assert invited(store, plans[0]).verdict == "ask"  # those that wait are still answered
    eve = people()["eve"].public
    elsewhere = another(99, hub={"name": "eve", "identity": eve.fingerprint})
    assert store.request(elsewhere, eve, []) == "pending"
    store.refuse(plans[0].digest.hex(), people()["north"])
    assert invited(store, plans[-1]).verdict == "ask"
    assert MAX_OF_HUB * 2 <= MAX_PENDING


def test_reasons_are_bounded(store: Approvals) -> None:
    store.request(plan_of(), hub(), ["x" * 10_000] * 1000)
    assert file_of(store, plan_of()).stat().st_size < 50_000
    assert len(store.list()[0].reasons) == 50


def test_a_plan_that_names_another_hub_is_not_asked_about(store: Approvals) -> None:
    with pytest.raises(InputError):
        store.request(plan_of(), people()["eve"].public, [])
    assert store.state(plan_of().digest) is None


@pytest.mark.parametrize("prefix", ["", "abc", "../../x", "zzzzzzzz", "0" * 65, "*" * 8])
def test_a_prefix_must_be_one(store: Approvals, prefix: str) -> None:
    invited(store, plan_of())
    with pytest.raises(InputError):
        store.get(prefix)


def test_a_prefix_of_no_plan(store: Approvals) -> None:
    with pytest.raises(InputError, match="no plan"):
        store.get("0" * 8)


def test_two_at_once_leave_one_request(store: Approvals) -> None:
    plan = plan_of()
    threads = [threading.Thread(target=store.request, args=(plan, hub(), ())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list()) == 1
