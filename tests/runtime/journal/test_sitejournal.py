from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.journal.kept import Kept, memory
from tests.secagg.network import MODEL, PLAN, Network, context, identity, ring_sum, vectors

from cloister.errors import CloisterError, InputError, IntegrityError, ProtocolError, StorageError
from cloister.runtime.journal import EpochKept, KeepsSite, NoJournal, SiteJournal, volatile_folder
from cloister.runtime.journal import sitejournal as module
from cloister.runtime.journal.volatile import Ratchet, Volatile, why_not_volatile
from cloister.secagg import derivation, messages

VECTORS = vectors(2, 32, 9)


@pytest.fixture
def shm():
    with memory() as folder:
        yield folder


@pytest.fixture
def kept(tmp_path, shm) -> Kept:
    begun = Kept(tmp_path / "journal", shm)
    begun.begin()
    return begun


def test_both_are_journals(kept):
    journals: list[KeepsSite] = [kept.journal, NoJournal()]
    assert [journal.full for journal in journals] == [False, False]
    nothing = NoJournal()
    nothing.promised(1)
    nothing.promised(1)
    nothing.obeyed(1)
    nothing.begin_epoch(EpochKept(b"", b"", kept.site.snapshot()))
    nothing.entered(0, 1)
    nothing.uploaded(0, b"")
    nothing.chosen(0, None)
    nothing.applied(b"")
    nothing.checkpoint(b"")
    nothing.end_epoch()
    assert nothing.load() is None


def test_a_new_study_has_nothing(tmp_path, shm):
    fresh = Kept(tmp_path / "journal", shm)
    assert fresh.journal.load() is None
    assert fresh.journal.resumable
    assert fresh.journal.lost is None
    assert fresh.disk.stat().st_mode & 0o777 == 0o700
    assert repr(fresh.journal) == "<SiteJournal: secret>"


def test_everything_is_found_again(kept):
    kept.journal.obeyed(7)
    upload = kept.upload(2, VECTORS[0])
    kept.journal.checkpoint(b"the model")
    kept.journal.applied(b"one outcome")
    kept.journal.applied(memoryview(bytearray(b"another")))
    kept.journal.chosen(2, (0, 1, 2, 3))
    found = kept.restart()
    assert (found.highest_epoch, found.highest_term, found.attempts_used) == (1, 7, 1)
    assert (found.epoch.offer, found.epoch.closed) == (b"offer", b"closed")
    assert (found.attempt, found.upload, found.choice) == (2, upload, (0, 1, 2, 3))
    assert (found.state, found.outcomes) == (b"the model", [b"one outcome", b"another"])
    assert [bool(secrets) for secrets in found.epoch.secure_sum.attempts] == [False] * 2 + [True] * 4
    assert repr(found) == "<SiteKept: secret>"
    assert repr(found.epoch) == "<EpochKept: secret>"


def test_a_checkpoint_takes_the_place_of_outcomes_and_not_of_the_attempt(kept, monkeypatch):
    upload = kept.upload(0, VECTORS[0])
    kept.journal.chosen(0, (0, 1, 2))
    monkeypatch.setattr(module, "_FULL_BYTES", 1000)
    for _ in range(2):
        while not kept.journal.full:
            kept.journal.applied(bytes(100))
        kept.journal.checkpoint(b"state")
        assert not kept.journal.full
    found = kept.restart()
    assert (found.state, found.outcomes) == (b"state", [])
    assert (found.attempt, found.upload, found.choice) == (0, upload, (0, 1, 2))
    assert (kept.disk / "log").stat().st_size < 1000


def test_the_sum_is_exact_though_a_site_dies_at_every_step(kept):
    net, data = kept.net, dict(zip(kept.net.names, vectors(4, 32, 9), strict=True))
    for attempt in range(3):
        kept.restart()
        net.hub.begin(attempt)
        message = kept.upload(attempt, data["site-0"])
        kept.restart()
        assert kept.site.uploaded == message
        for name in net.names[attempt % 2 :]:  # in every other attempt it counts as dropped
            net.hub.on_upload(name, net.sites[name].upload(attempt, data[name], MODEL))
        survivors = net.names[attempt % 2 :]
        requests = net.hub.close()
        while requests:
            further = net.hub.on_answer("site-0", kept.answer(requests["site-0"]))
            kept.restart()
            further = net.answer(requests, net.names[1:]) or further
            requests = further
        assert net.opened(net.hub.result()).tolist() == ring_sum([data[name] for name in survivors], 32)


def test_promises_are_made_once_and_survive_everything(kept):
    for epoch in (0, 1):
        with pytest.raises(ProtocolError, match="countersigned before"):
            kept.journal.promised(epoch)
    kept.journal.obeyed(9)
    kept.journal.obeyed(3)
    kept.journal.entered(0, 5)
    kept.journal.entered(1, 4)
    (kept.memory / next(os.walk(kept.memory))[2][0]).unlink()  # a reboot
    found = kept.restart()
    assert found.epoch is None
    assert (found.highest_epoch, found.highest_term, found.attempts_used) == (1, 9, 5)
    with pytest.raises(ProtocolError, match="countersigned before"):
        kept.journal.promised(1)
    kept.journal.promised(2)


@pytest.mark.parametrize("place", [0, 1])
def test_an_interrupted_write_of_a_promise_leaves_the_one_before(kept, place):
    kept.journal.promised(2)
    kept.journal.close()
    path = kept.disk / "marks"
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[place * half + 20] ^= 1
    path.write_bytes(content)
    journal = kept.opened()
    assert journal.load().highest_epoch in (1, 2)
    journal.close()
    content[(1 - place) * half + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not what was written"):
        kept.opened()


def test_a_reboot_loses_the_epoch_and_keeps_the_checkpoint(kept):
    kept.upload(0, VECTORS[0])
    kept.journal.checkpoint(b"the model")
    kept.journal.applied(b"an outcome")
    for path in kept.memory.iterdir():
        path.unlink()
    found = kept.restart()
    assert (found.epoch, found.attempt, found.upload, found.choice) == (None, -1, None, None)
    assert (found.state, found.outcomes) == (b"the model", [])
    assert "started anew" in kept.journal.lost
    assert not (kept.disk / "epoch").exists()


def test_without_memory_an_epoch_does_not_survive_and_the_rest_does(tmp_path):
    for folder, why in ((None, "no tmpfs"), (tmp_path / "volatile", "not in memory")):
        lone = Kept(tmp_path / f"journal{folder is None}", folder)
        assert not lone.journal.resumable
        assert why in lone.journal.lost
        lone.begin()
        lone.upload(0, VECTORS[0])
        lone.journal.chosen(0, (0, 1, 2, 3))
        lone.journal.applied(b"an outcome")
        lone.journal.checkpoint(b"state")
        found = lone.restart()
        assert (found.epoch, found.state, found.outcomes, found.attempts_used) == (None, b"state", [], 1)


def test_memory_must_be_private(tmp_path, shm):
    shm.chmod(0o755)
    assert "private" in why_not_volatile(shm)
    shm.chmod(0o700)
    link = shm / "link"
    link.symlink_to(shm)
    assert "private" in why_not_volatile(link)
    assert "cannot be made" in why_not_volatile(Path("/proc/nowhere"))
    assert why_not_volatile(shm / "inside") is None
    found = volatile_folder()
    assert found is None or why_not_volatile(found.parent) != f"{found.parent} is not in memory (tmpfs)"


def test_one_process_at_a_time(kept):
    with pytest.raises(InputError, match="another process"):
        kept.opened()
    kept.journal.close()
    kept.journal.close()
    with pytest.raises(InputError, match="closed"):
        kept.journal.load()
    kept.opened().close()


def test_a_journal_is_of_one_identity_and_one_study(kept):
    kept.journal.close()
    for who, plan in ((identity(1), PLAN), (identity(0), bytes(32))):
        with pytest.raises(IntegrityError, match="another identity or study"):
            SiteJournal(kept.disk, kept.memory, who, plan)
    kept.restart()


def test_what_is_over_is_refused(kept):
    kept.upload(3, VECTORS[0])
    for call in (
        lambda: kept.journal.entered(2, 9),
        lambda: kept.journal.uploaded(2, b""),
        lambda: kept.journal.chosen(2, (0, 1, 2)),
    ):
        with pytest.raises(ProtocolError, match="is over"):
            call()
    kept.journal.chosen(4, None)
    assert kept.restart().attempt == 4


def test_a_second_epoch_takes_the_place_of_the_first(kept):
    kept.upload(3, VECTORS[0])
    kept.journal.applied(b"of the first")
    kept.journal.checkpoint(b"state")
    kept.net = Network(context(4, attempts=6, epoch=2, view="none"))
    kept.site = kept.net.sites["site-0"]
    kept.begin()
    kept.journal.applied(b"of the second")
    found = kept.restart()
    assert (found.highest_epoch, found.attempt, found.upload) == (2, -1, None)
    assert (found.state, found.outcomes) == (b"state", [b"of the second"])
    kept.journal.end_epoch()
    kept.journal.end_epoch()
    assert kept.restart().epoch is None


def test_outcomes_of_an_epoch_that_ended_without_a_checkpoint_are_not_mixed_with_another(kept):
    kept.journal.checkpoint(b"old")
    kept.journal.applied(b"of the first")
    kept.begin_again = kept.journal.begin_epoch(EpochKept(b"", b"", kept.site.snapshot()))
    found = kept.restart()
    assert (found.epoch, found.state, found.outcomes) == (None, b"old", [])
    assert "model was not kept" in kept.journal.lost


def test_forgetting_leaves_the_promises(kept):
    kept.upload(0, VECTORS[0])
    kept.journal.forget()
    assert sorted(path.name for path in kept.disk.iterdir()) == ["lock", "marks"]
    assert not list(kept.memory.iterdir())
    assert kept.opened().load().highest_epoch == 1


def test_a_full_disk_keeps_what_was_there(kept, monkeypatch):
    upload = kept.upload(0, VECTORS[0])

    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StorageError, match="No space"):
        kept.journal.chosen(0, (0, 1, 2, 3))
    with pytest.raises(StorageError, match="No space"):
        kept.journal.applied(b"x")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space"):
        kept.journal.entered(1, 2)
    with pytest.raises(StorageError, match="No space"):
        kept.journal.promised(2)
    monkeypatch.undo()
    found = kept.restart()
    assert (found.attempt, found.upload, found.choice, found.outcomes) == (0, upload, None, [])
    assert (found.highest_epoch, found.attempts_used) == (1, 1)


def test_the_ratchet():
    first = Ratchet.fresh()
    assert first.entered(0).key == first.key  # before the first attempt and in it
    assert first.entered(5) == first.entered(0).entered(2).entered(5)
    assert first.entered(5).entered(5).key == first.entered(5).key
    with pytest.raises(ProtocolError, match="is over"):
        first.entered(5).entered(4)
    keys = [first.entered(i) for i in range(4)]
    made = [key for each in keys for key in (each.key, each.secrets_key(), each.upload_key())]
    assert len(set(made)) == len(made)
    assert repr(first) == "<Ratchet: secret>"


def ratchet_of(shm: Path) -> Ratchet | None:
    volatile = Volatile(shm, "state")
    volatile.close()
    return volatile.ratchet


def test_a_half_written_state_counts_as_none(shm):
    volatile = Volatile(shm, "state")
    volatile.put(Ratchet.fresh(), (1, 2))
    volatile.close()
    again = Volatile(shm, "state")
    assert (again.ratchet, again.log) == (volatile.ratchet, (1, 2))
    again.close()
    content = bytearray((shm / "state").read_bytes())
    for size in (0, 30, len(content) - 1):
        (shm / "state").write_bytes(content[:size])
        assert ratchet_of(shm) is None
    content[50] ^= 1
    (shm / "state").write_bytes(content)
    assert ratchet_of(shm) is None


# --- a site that died at any point behaves as one that did not ------------------------------------------


Action = tuple[str, int, int]


def outcome(call):
    try:
        return call()
    except CloisterError as error:
        return type(error), str(error)


def requested(net: Network, attempt: int, which: int) -> bytes:
    """A request: the full list, a proposal, or a certified list; with this site or without."""
    survivors = [list(net.names), list(net.names[:3]), list(net.names[1:])][which % 3]
    indices = tuple(net.context.roster.index(name) for name in survivors)
    statement = derivation.choice_statement(net.hub.setup_digest, attempt, indices)
    signers = range(1, 4) if which >= 3 else ()
    signatures = [messages.Signature(f"site-{i}", identity(i).sign(statement)) for i in signers]
    return messages.encode(messages.Request(net.hub.setup_digest, attempt, survivors, signatures))


def live_twice(actions: list[Action], disk: Path, shm: Path) -> None:
    """Do the same to a site that never dies and to one that dies when told to; they share their secrets."""
    mortal = Kept(disk, shm)
    immortal = mortal.site
    mortal.begin()
    mortal.restart()
    for kind, step, which in actions:
        attempt = max(0, mortal.site.attempt) + step
        request = requested(mortal.net, max(attempt, 0), which)
        match kind:
            case "upload" if 0 <= attempt < 6 and attempt >= immortal.attempt:
                vector = VECTORS[which % 2]
                sent = outcome(lambda a=attempt, v=vector: mortal.upload(a, v))
                if not isinstance(sent, bytes) and attempt > immortal.attempt:
                    raise AssertionError(sent)
                assert sent == outcome(lambda a=attempt, v=vector: immortal.upload(a, v, MODEL))
            case "answer":
                replied = outcome(lambda r=request: mortal.answer(r))
                assert replied == outcome(lambda r=request: immortal.answer(r))
            case "die":
                mortal.restart()
            case "die entering" if immortal.attempt < attempt < 6:
                mortal.enter(attempt)
                immortal._enter(attempt)
                mortal.restart()
            case "die before the upload is kept" if immortal.attempt < attempt < 6:
                mortal.enter(attempt)
                immortal._enter(attempt)
                mortal.site.upload(attempt, VECTORS[which % 2], MODEL)  # and nothing of it left
                mortal.restart()
            case "die before the choice is kept":
                outcome(lambda r=request: mortal.site.answer(r))
                mortal.restart()
            case "checkpoint":
                mortal.journal.applied(b"outcome")
                if which % 2:
                    mortal.journal.checkpoint(b"state")
        assert (mortal.site.attempt, mortal.site.choice) == (immortal.attempt, immortal.choice)
        assert mortal.site.uploaded == immortal.uploaded
        assert mortal.site.snapshot().attempts == immortal.snapshot().attempts
    mortal.journal.close()


KINDS = [
    "upload",
    "answer",
    "die",
    "die entering",
    "die before the upload is kept",
    "die before the choice is kept",
    "checkpoint",
]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(-1, 1), st.integers(0, 5)), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_a_site_restored_at_any_point_behaves_as_one_that_never_died(tmp_path_factory, actions):
    with memory() as shm:
        live_twice(actions, tmp_path_factory.mktemp("mortal") / "journal", shm)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(actions=ACTIONS)
def test_a_site_restored_at_any_point_long(tmp_path_factory, actions):
    with memory() as shm:
        live_twice(actions, tmp_path_factory.mktemp("mortal") / "journal", shm)


# --- what it costs --------------------------------------------------------------------------------------


def test_a_small_round_costs_little(kept):
    """The bound is a third of a millisecond; the test allows for a busy machine."""
    upload, outcome = bytes(600), bytes(450)
    kept.journal.begin_epoch(EpochKept(b"", b"", kept.site.snapshot()))
    took = []
    for attempt in range(6):
        begun = time.perf_counter()
        kept.journal.entered(attempt, attempt)
        kept.journal.uploaded(attempt, upload)
        kept.journal.chosen(attempt, (0, 1, 2, 3))
        kept.journal.applied(outcome)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.001
