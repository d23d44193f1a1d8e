"""A site's journal in the hands of somebody else, or brought back from an older day."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.journal.dying import PASSPHRASE, PLAN
from tests.runtime.journal.kept import Kept, files, memory
from tests.runtime.parties import CHEAP
from tests.secagg.network import MODEL, Network, context, identity, vectors

from cloister.crypto import Identity, decrypt, sha256
from cloister.errors import InputError, IntegrityError, ProtocolError
from cloister.runtime.journal import EpochKept, SiteJournal
from cloister.runtime.journal.epochfile import _bound, _File
from cloister.runtime.journal.volatile import Ratchet, Volatile
from cloister.secagg import derivation, messages

VECTORS = vectors(2, 32, 500)


@pytest.fixture
def shm():
    with memory() as folder:
        yield folder


@pytest.fixture
def kept(tmp_path, shm) -> Kept:
    begun = Kept(tmp_path / "journal", shm)
    begun.begin()
    return begun


def request(net: Network, attempt: int, survivors, signers=()) -> bytes:
    indices = tuple(net.context.roster.index(name) for name in survivors)
    statement = derivation.choice_statement(net.hub.setup_digest, attempt, indices)
    signed = [messages.Signature(f"site-{i}", identity(i).sign(statement)) for i in signers]
    return messages.encode(messages.Request(net.hub.setup_digest, attempt, list(survivors), signed))


def copied(kept: Kept, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(kept.disk, to)


def stolen(content: bytes) -> Ratchet:
    """What a volatile file tells whoever has read it."""
    volatile = Volatile.__new__(Volatile)
    volatile._unpack(content)
    return volatile.ratchet


def put_back(kept: Kept, copy: Path, *names: str) -> None:
    kept.journal.close()
    for name in names or [path.name for path in copy.iterdir()]:
        shutil.copy(copy / name, kept.disk / name)


# --- who takes the disk, and the memory too -------------------------------------------------------------


def test_nothing_secret_is_in_the_files(kept):
    """Not on the disk, whatever is known of it; and in memory there are only keys of the journal itself."""
    snapshot = kept.site.snapshot()
    upload = kept.upload(0, VECTORS[0])
    kept.journal.checkpoint(b"a model that nobody else may read" * 9)
    kept.journal.applied(b"an outcome of this epoch alone" * 9)
    canaries = [snapshot.epoch_key, b"model that nobody", b"outcome of this epoch", upload[200:264]]
    for part in snapshot.attempts:
        canaries += [part[:32], part[32:64], part[64:97], part[-33:]]
    found = b"".join(files(kept.disk, kept.memory).values())
    assert len(found) > len(upload)
    assert not [canary for canary in canaries if canary in found]


def test_who_takes_everything_reads_nothing_of_earlier_attempts(kept):
    """Every key that follows from what memory and disk hold is tried on every part of an earlier attempt."""
    kept.upload(1, VECTORS[0])
    receipt = next(iter(kept.journal._entries.values()))
    kept.enter(3)
    [content] = files(kept.memory).values()
    taken = stolen(content)
    assert taken.attempt == 3
    keys = [taken.common_key, taken.key]
    for later in range(3, 12):
        moved = taken.entered(later)
        keys += [moved.key, moved.secrets_key(), moved.upload_key()]
    file = msgspec.msgpack.decode((kept.disk / "epoch").read_bytes(), type=_File)
    for number in range(3):
        for key in keys:
            with pytest.raises(IntegrityError):
                decrypt(key, file.attempts[number], _bound(kept.journal._context, taken, number))
    for key in keys:
        with pytest.raises(IntegrityError):
            kept.journal._slot.get(key, receipt)
    opened = decrypt(taken.secrets_key(), file.attempts[3], _bound(kept.journal._context, taken, 3))
    assert opened == kept.site.snapshot().attempts[3]  # the test does find what is still there


def test_after_the_end_of_an_epoch_nothing_of_it_is_left(kept):
    kept.upload(0, VECTORS[0])
    before = files(kept.memory)
    kept.journal.end_epoch()
    after = b"".join(files(kept.memory).values())
    for content in before.values():
        assert stolen(content).key not in after
        assert stolen(content).common_key not in after
    assert not (kept.disk / "epoch").exists()


# --- who brings an older day back ------------------------------------------------------------------------


def test_an_older_log_gives_no_second_choice_and_no_second_vector(kept, tmp_path):
    kept.enter(0)
    copied(kept, tmp_path / "before the vector")
    kept.upload(0, VECTORS[0])
    copied(kept, tmp_path / "before the choice")
    kept.answer(request(kept.net, 0, kept.net.names[:3]))
    copied(kept, tmp_path / "last")
    ratchets = files(kept.memory)
    for day, names in (
        ("before the vector", ("log",)),
        ("before the vector", ()),
        ("before the choice", ("log", "upload")),
        ("before the choice", ()),
    ):
        put_back(kept, tmp_path / day, *names)
        assert kept.restart().epoch is None
        assert "older copy" in kept.journal.lost
        assert kept.restart().epoch is None  # and it does not come back
        put_back(kept, tmp_path / "last")
        for path, content in ratchets.items():
            path.write_bytes(content)
    found = kept.restart()
    assert found.choice == (0, 1, 2)
    assert kept.site.uploaded is not None


def test_two_copies_of_a_journal_do_not_run_beside_each_other(kept, tmp_path):
    copied(kept, tmp_path / "copy")
    with pytest.raises(InputError, match="another process"):
        SiteJournal(tmp_path / "copy", kept.memory, identity(0), PLAN)


def test_a_log_that_is_gone_gives_no_second_choice(kept):
    kept.upload(0, VECTORS[0])
    kept.journal.close()
    (kept.disk / "log").unlink()
    assert kept.restart().epoch is None


def test_a_log_that_was_cut_off_after_a_whole_record_is_seen(kept):
    kept.upload(0, VECTORS[0])
    whole = (kept.disk / "log").stat().st_size
    kept.answer(request(kept.net, 0, kept.net.names[:3]))
    kept.journal.close()
    content = (kept.disk / "log").read_bytes()
    (kept.disk / "log").write_bytes(content[:whole])
    assert kept.restart().epoch is None
    assert "older copy" in kept.journal.lost


def test_what_a_kill_left_uncounted_is_counted_at_the_next_start(kept, monkeypatch):
    """Killed between the record and the count of it: the record holds, and taking it back later is seen."""
    kept.upload(0, VECTORS[0])
    whole = (kept.disk / "log").stat().st_size

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Volatile, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.answer(request(kept.net, 0, kept.net.names[:3]))
    monkeypatch.undo()
    assert kept.restart().choice == (0, 1, 2)
    kept.journal.close()
    content = (kept.disk / "log").read_bytes()
    (kept.disk / "log").write_bytes(content[:whole])
    assert kept.restart().epoch is None


def test_a_journal_on_another_machine_has_no_epoch(kept, tmp_path):
    kept.upload(0, VECTORS[0])
    copied(kept, tmp_path / "moved")
    with memory() as elsewhere:
        moved = SiteJournal(tmp_path / "moved", elsewhere, identity(0), PLAN)
        found = moved.load()
        assert (found.epoch, found.upload, found.attempts_used) == (None, None, 1)
        with pytest.raises(ProtocolError, match="countersigned before"):
            moved.promised(1)
        moved.close()


@pytest.mark.parametrize("name", ["key", "log", "epoch", "upload"])
def test_an_altered_file_is_refused(kept, name):
    kept.upload(0, VECTORS[0])
    kept.answer(request(kept.net, 0, kept.net.names))
    kept.journal.close()
    content = bytearray((kept.disk / name).read_bytes())
    content[len(content) // 2] ^= 1
    (kept.disk / name).write_bytes(content)
    with pytest.raises(IntegrityError):
        kept.restart()


def test_an_upload_that_is_gone_is_never_made_anew(kept):
    kept.upload(0, VECTORS[0])
    kept.journal.close()
    (kept.disk / "upload").unlink()
    with pytest.raises(IntegrityError, match="waits for the next epoch"):
        kept.restart()
    kept.journal.close()
    (kept.disk / "epoch").unlink()
    assert kept.restart().epoch is None


def test_the_secrets_of_one_epoch_do_not_open_under_another(kept, tmp_path):
    copied(kept, tmp_path / "first")
    kept.journal.begin_epoch(EpochKept(b"", b"", kept.site.snapshot()))
    put_back(kept, tmp_path / "first", "epoch")
    with pytest.raises(IntegrityError, match="altered"):
        kept.restart()


# --- a hub that lies to a site that died -----------------------------------------------------------------


def test_a_site_that_died_supports_no_second_list(kept):
    full, short, other = kept.net.names, kept.net.names[:3], kept.net.names[1:]
    kept.upload(0, VECTORS[0])
    kept.answer(request(kept.net, 0, short))
    kept.restart()
    for survivors, signers in ((full, ()), (other, ()), (other, (1, 2, 3))):
        with pytest.raises(ProtocolError, match="another survivor list"):
            kept.answer(request(kept.net, 0, survivors, signers))
    with pytest.raises(ProtocolError, match="another survivor list"):
        kept.journal.chosen(0, (0, 1, 2, 3))
    shares = kept.answer(request(kept.net, 0, short, (1, 2, 3)))
    kept.restart()
    assert kept.answer(request(kept.net, 0, short, (1, 2, 3))) == shares


def test_a_site_that_died_sends_no_second_vector(kept):
    sent = kept.upload(0, VECTORS[0])
    kept.restart()
    for vector, model in ((VECTORS[1], MODEL), (VECTORS[0], MODEL + 1)):
        with pytest.raises(ProtocolError, match="another vector"):
            kept.site.upload(0, vector, model)
    with pytest.raises(ProtocolError, match="handed over before"):
        kept.journal.uploaded(0, b"another")
    assert kept.site.upload(0, VECTORS[0], MODEL) == sent == kept.site.uploaded


def test_a_site_that_died_says_nothing_about_earlier_attempts(kept):
    kept.upload(0, VECTORS[0])
    kept.enter(1)
    kept.restart()
    for call in (
        lambda: kept.answer(request(kept.net, 0, kept.net.names)),
        lambda: kept.site.upload(0, VECTORS[0], MODEL),
    ):
        with pytest.raises(ProtocolError, match="is over"):
            call()
    assert kept.site.snapshot().attempts[0] == b""


def test_a_site_that_counted_as_dropped_and_died_uploads_no_more(kept):
    kept.answer(request(kept.net, 2, kept.net.names[1:]))
    kept.restart()
    with pytest.raises(ProtocolError, match="counts as dropped"):
        kept.site.upload(2, VECTORS[0], MODEL)


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["upload", "ask", "certify", "full", "die"]), st.integers(0, 2)),
        min_size=5,
        max_size=25,
    )
)
def test_no_order_of_lies_and_deaths_gets_both_kinds_of_share(tmp_path_factory, actions):
    with memory() as shm:
        site = Kept(tmp_path_factory.mktemp("lied") / "journal", shm)
        site.begin()
        names = site.net.names
        lists = [names[:3], names[1:], (names[0], *names[2:])]
        given_for, vectors_sent = set(), set()
        for kind, which in actions:
            with contextlib.suppress(ProtocolError):
                match kind:
                    case "upload":
                        vectors_sent.add(site.upload(0, VECTORS[which % 2]))
                    case "ask":
                        site.answer(request(site.net, 0, lists[which]))
                    case "certify":
                        site.answer(request(site.net, 0, lists[which], (1, 2, 3)))
                        given_for.add(lists[which])
                    case "full":
                        site.answer(request(site.net, 0, names))
                        given_for.add(names)
                    case "die":
                        site.restart()
        assert len(given_for) <= 1
        assert len(vectors_sent) <= 1
        site.journal.close()


# --- kill -9 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15])
def test_what_left_before_a_kill_is_found_after_it(tmp_path, shm, seconds):
    Identity.generate("site-0").save(tmp_path / "identity.json", PASSPHRASE, cost=CHEAP)
    who = Identity.load(tmp_path / "identity.json", PASSPHRASE)
    secure_sum = Network(context(3, attempts=2)).sites["site-0"].snapshot()
    many = msgspec.structs.replace(secure_sum, attempts=[bytes([i % 256]) * 40 for i in range(3000)])
    (tmp_path / "epoch").write_bytes(msgspec.msgpack.encode(EpochKept(b"offer", b"closed", many)))
    command = [sys.executable, "-m", "tests.runtime.journal.dying", tmp_path / "disk", shm, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline() for _ in range(5)]
        time.sleep(seconds)
        process.kill()
        told += process.stdout.read().splitlines(keepends=True)
    lines = [line.split() for line in told if line.endswith("\n")]
    journal = SiteJournal(tmp_path / "disk", shm, who, PLAN)
    found = journal.load()
    journal.close()
    assert journal.lost is None
    what, last, detail = lines[-1][0], int(lines[-1][1]), lines[-1][2]
    assert found.attempt in (last, last + 1)
    assert found.attempts_used in (found.attempt, found.attempt + 1)
    if found.attempt == last:
        digest = detail if what == "upload" else lines[-2][2]
        assert sha256(found.upload).hex() == digest
        assert what == "upload" or found.choice == (0, 1, int(detail))
    assert [bool(part) for part in found.epoch.secure_sum.attempts] == [
        i >= found.attempt for i in range(3000)
    ]
