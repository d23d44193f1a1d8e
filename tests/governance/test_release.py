"""The release gate: what it writes, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.governance.releases import failure, identity, make_study, make_world

from cloister.crypto import open_bytes, sha256
from cloister.errors import CloisterError, InputError, PolicyRefused, StorageError, VerificationError
from cloister.governance import ReleasePolicy, verify_release
from cloister.governance.folder import CERTIFICATE, MODEL, PLAN, PROOF, SEALED_MODEL, read_release
from cloister.governance.proof import log_entry
from cloister.inference import ModelArtifact
from cloister.log import Cosigner, Log


def test_a_release_is_whole_and_verifies(tmp_path: Path) -> None:
    world = make_world(tmp_path, lost={1: {"site3"}})
    released = world.release()
    names = {f"{kind}/site{n}.dsse.json" for kind in ("manifests", "countersignatures/0") for n in range(4)}
    assert set(released.files) == {MODEL, PLAN, CERTIFICATE, PROOF} | names
    assert read_release(released.folder) == released.files
    assert verify_release(released.folder, world.anchors).ok
    assert (released.cosignatures, released.log_size, released.missing) == (4, 1, ())
    assert world.log.entry(0) == log_entry(released.certificate)
    facts = released.certificate.statement.predicate
    runs = [(run.first, run.count, run.attempt, run.dropped) for _, run in facts.aggregation.runs()]
    assert runs == [(1, 1, 0, ()), (2, 1, 1, ("site3",)), (3, 3, 2, ())]
    assert not list(tmp_path.glob(".release*"))


def test_burnt_attempts_show_as_gaps(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    entries = tuple(
        type(entry)(entry.round, entry.attempt + (entry.round >= 2), entry.survivors, entry.epoch)
        for entry in world.study.rounds
    )
    object.__setattr__(world.study, "rounds", entries)
    runs = world.release().certificate.statement.predicate.aggregation.runs()
    assert [(run.first, run.count, run.attempt) for _, run in runs] == [(1, 2, 0), (3, 3, 3)]


def test_a_second_release_continues_the_log(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.release("one")
    second = world.release("two")
    assert second.log_size == 2
    for name in ("one", "two"):
        assert verify_release(tmp_path / name, world.anchors).ok
    again = Log(world.log.path, world.hub.fingerprint)
    assert len(again) == 2


def test_a_sealed_release_is_for_its_recipient(tmp_path: Path) -> None:
    world, reader, stranger = make_world(tmp_path), identity("reader"), identity("stranger")
    released = world.release(recipients=[reader.public])
    assert MODEL not in released.files
    model = open_bytes(released.files[SEALED_MODEL], reader)
    assert sha256(model).hex() == released.certificate.statement.subjects()[MODEL]
    assert ModelArtifact.from_bytes(model).card.name == "heart"
    assert model[200:] not in released.files[SEALED_MODEL]
    outside = verify_release(released.folder, world.anchors)
    assert outside.ok
    assert any("sealed to reader" in each for each in outside.unchecked)
    inside = verify_release(released.folder, world.anchors, reader=reader)
    assert inside.ok
    assert not any("sealed" in each for each in inside.unchecked)
    assert verify_release(released.folder, world.anchors, reader=stranger).unchecked == outside.unchecked


def test_where_the_hub_must_not_see_the_model_a_site_releases(tmp_path: Path) -> None:
    world = make_world(tmp_path, aggregation={"hub_view": "none"})
    with pytest.raises(VerificationError, match="step 5, plan: hub signed"):
        world.release("by-hub")
    site = world.sites[2]
    log = Log(tmp_path / "log" / "of-site", site.fingerprint)
    released = world.release("by-site", signer=site, log=log)
    assert verify_release(released.folder, world.anchors).ok
    assert released.cosignatures == 3  # the keeper's own signature does not count


def refused(world: Any, error: type[CloisterError], match: str, **options: Any) -> None:
    """The release is refused, and neither folder nor half a folder stays."""
    with pytest.raises(error, match=match):
        world.release(**options)
    assert not (world.root / "release").exists()
    assert not list(world.root.glob(".release*"))


def test_a_refusal_by_policy_signs_and_logs_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    refused(world, PolicyRefused, "minimum_sites", policies=[ReleasePolicy(minimum_sites=5)])
    refused(world, PolicyRefused, "require_privacy", policies=[ReleasePolicy(require_privacy=True)])
    refused(world, PolicyRefused, "needs a policy", policies=[])
    assert len(world.log) == 0
    assert all(cosigner.last(world.hub.fingerprint) is None for cosigner in world.cosigners)


def test_the_plans_recipients_are_asked_whatever_the_policies(tmp_path: Path) -> None:
    reader, stranger = identity("reader"), identity("stranger")
    world = make_world(tmp_path, release={"recipients": (reader.fingerprint,)})
    refused(world, PolicyRefused, "must be sealed", policies=[ReleasePolicy()])
    refused(world, PolicyRefused, "stranger is not", recipients=[stranger.public])
    assert world.release(recipients=[reader.public]).cosignatures == 4


def test_two_sites_need_a_policy_of_their_own(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=2)
    refused(world, PolicyRefused, "minimum_sites")
    released = world.release(policies=[ReleasePolicy()])
    assert failure(verify_release(released.folder, world.anchors)) == (5, "plan")
    assert verify_release(released.folder, world.anchors, allow_two=True).ok


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        world.release()
    assert [path.name for path in (tmp_path / "release").iterdir()] == ["mine"]
    assert len(world.log) == 0


def test_too_few_cosigners_stop_a_release(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    refused(world, VerificationError, "step 12, cosignatures: 1 members", cosigners=world.cosigners[:1])
    refused(world, VerificationError, "step 12, cosignatures: 0 members", cosigners=[])
    same = [Cosigner(tmp_path / "more" / str(n), world.sites[0]) for n in range(3)]
    refused(world, VerificationError, "step 12, cosignatures: 1 members", cosigners=same)
    assert world.release("enough", cosigners=world.cosigners[:2]).cosignatures == 2


def test_a_cosigner_that_is_down_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    class Down(Cosigner):
        def cosign(self, *args: Any, **more: Any) -> bytes:
            raise StorageError("cannot write: No space left on device", where="heads")

    down = Down(tmp_path / "down", world.sites[0])
    released = world.release(cosigners=[down, *world.cosigners[1:]])
    assert released.cosignatures == 3
    assert released.missing == ("cannot write: No space left on device (heads).",)


def test_a_strangers_cosignature_stops_a_release(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    stranger = Cosigner(tmp_path / "stranger", identity("stranger"))
    refused(world, VerificationError, "step 11", cosigners=[*world.cosigners, stranger])


def test_a_fork_of_the_log_is_noticed_by_any_cosigner(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.release("one")
    world.log.path.unlink()
    forked = Log(world.log.path, world.hub.fingerprint)
    forked.append(b"another history")
    refused(world, VerificationError, "not the one that was seen before", log=forked)
    world.log.path.unlink()
    shorter = Log(world.log.path, world.hub.fingerprint)
    refused(world, VerificationError, "two different heads", log=shorter, created="2026-03-02T12:00:00Z")
    assert all(c.last(world.hub.fingerprint).size == 1 for c in world.cosigners)  # type: ignore[union-attr]


def test_a_log_that_lost_entries_is_noticed(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.release("one")
    world.release("two")
    world.log.path.unlink()
    refused(world, VerificationError, "longer log", log=Log(world.log.path, world.hub.fingerprint))


def test_another_keepers_log_stops_a_release(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    other = Log(tmp_path / "other", identity("stranger").fingerprint)
    refused(world, VerificationError, "another log", log=other)


def test_a_study_that_does_not_hold_is_not_released(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    for lost, step in (
        ({0: {"site1", "site2"}}, "step 8"),
        ({0: {"site1", "site2", "site3"}}, "minimum_survivors"),
    ):
        world.study = make_study(world.study.plan, world.hub, world.sites, lost=lost)
        with pytest.raises(CloisterError, match=step):
            world.release(policies=[ReleasePolicy(minimum_survivors=2)])
    assert not (tmp_path / "release").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == CERTIFICATE:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    world = make_world(tmp_path)
    monkeypatch.setattr(sys.modules["cloister.governance.release"], "write_atomic", full)
    refused(world, StorageError, "No space left")
