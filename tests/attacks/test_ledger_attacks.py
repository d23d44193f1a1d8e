"""What somebody does who can write to the ledger's disk and restore its backups, but has no keys of its owner."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.privacy.ledger.world import CAP, STUDY, bodies, cost, edit, filled, owner, rows

from cloister.crypto import Identity
from cloister.errors import CloisterError, IntegrityError, PolicyRefused
from cloister.privacy.ledger import Cap, Ledger, LedgerInDoubt, engine, read_ledger
from cloister.privacy.ledger.anchors import head_beside
from cloister.privacy.ledger.engine import Engine
from cloister.privacy.ledger.head import Head, sign_head
from cloister.privacy.ledger.rows import (
    FIRST_HASH,
    Admit,
    Bind,
    Charge,
    Close,
    Declare,
    Row,
    Spend,
    Start,
    encode_row,
    new_id,
    next_hash,
    now,
)
from cloister.privacy.ledger.store import DATABASE
from cloister.privacy.ledger.wire import Greeting, Hello, Refused, Welcome, encode, frame, receive
from cloister.privacy.ledger.writer import socket_path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("template") / "ledger")


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A closed ledger with rows of all kinds."""
    copy(template, tmp_path / "ledger")
    return tmp_path / "ledger"


def copy(source: Path, target: Path) -> None:
    """Copy a ledger with the head beside it."""
    shutil.copytree(source, target)
    shutil.copy(head_beside(source).path, head_beside(target).path)


def refused(folder: Path, says: str | None = None, identity: Identity | None = None) -> None:
    """Assert that the ledger neither opens nor is read, and that the exit code is that of a refusal."""
    for attempt in (
        lambda: Ledger.open(folder, identity or owner()).close(),
        lambda: read_ledger(folder, (identity or owner()).public),
    ):
        with pytest.raises(LedgerInDoubt, match=says) as caught:
            attempt()
        assert caught.value.exit_code == 3
        assert isinstance(caught.value, IntegrityError)


def replaced(folder: Path, find: str, old: str, new: str) -> None:
    """Replace text in every row that contains `find`."""
    changed = 0
    for number, body in enumerate(bodies(folder), 1):
        text = body.decode()
        if find in text and old in text:
            edit(folder, ("UPDATE rows SET body = ? WHERE id = ?", (text.replace(old, new).encode(), number)))
            changed += 1
    assert changed


EDITS: dict[str, Callable[[Path], None]] = {
    "a cheaper query": lambda f: replaced(f, '"spend"', '"rdp":0.0', '"rdp":0.00'),
    "another query": lambda f: replaced(f, '"spend"', "mean age", "mean agf"),
    "a cap raised": lambda f: replaced(f, '"declare"', '"epsilon":3', '"epsilon":4'),
    "a lowering removed": lambda f: replaced(f, '"epsilon":2.5', "2.5", "3"),
    "another order": lambda f: replaced(f, '"declare"', '"order":8', '"order":9'),
    "a cheaper study": lambda f: replaced(f, '"admit"', '"rdp":0', '"rdp":1e-9,"x":0'),
    "another population": lambda f: replaced(f, '"spend"', "north", "south"),
    "a start undone": lambda f: replaced(f, '"start"', '"block":1', '"block":0'),
    "a binding moved": lambda f: replaced(f, '"bind"', "dataset-1", "dataset-9"),
    "another owner": lambda f: replaced(f, '"genesis"', '"name":"ann"', '"name":"eve"'),
    "the last row deleted": lambda f: edit(f, "DELETE FROM rows WHERE id = (SELECT max(id) FROM rows)"),
    "a row in the middle deleted": lambda f: edit(f, "DELETE FROM rows WHERE id = 9"),
    "a row in the middle deleted, and numbers closed up": lambda f: edit(
        f, "DELETE FROM rows WHERE id = 9", "UPDATE rows SET id = id - 1 WHERE id > 9"
    ),
    "all rows deleted": lambda f: edit(f, "DELETE FROM rows"),
    "two rows exchanged": lambda f: edit(
        f,
        "UPDATE rows SET id = -1 WHERE id = 11",
        "UPDATE rows SET id = 11 WHERE id = 12",
        "UPDATE rows SET id = 12 WHERE id = -1",
    ),
    "a row repeated": lambda f: edit(
        f, "INSERT INTO rows SELECT (SELECT max(id) + 1 FROM rows), body FROM rows WHERE id = 11"
    ),
    "a row that is no row": lambda f: edit(f, "UPDATE rows SET body = 'x' WHERE id = 4"),
    "a row that is a number": lambda f: edit(f, "UPDATE rows SET body = 7 WHERE id = 4"),
    "the head deleted": lambda f: edit(f, "DELETE FROM head"),
    "a head that is no head": lambda f: edit(f, "UPDATE head SET envelope = x'00'"),
    "fingerprints deleted": lambda f: edit(f, "DELETE FROM fingerprints"),
    "some fingerprints deleted": lambda f: edit(
        f, "UPDATE fingerprints SET content = substr(content, 1, 16) WHERE length(content) > 1000"
    ),
    "fingerprints added": lambda f: edit(f, "INSERT INTO fingerprints VALUES ('00', x'00')"),
    "a table dropped": lambda f: edit(f, "DROP TABLE fingerprints"),
    "a state planted": lambda f: edit(f, "INSERT INTO state VALUES (1, 3, x'00', x'7b7d')"),
    "a state of another type": lambda f: edit(f, "INSERT INTO state VALUES (1, 'x', 'y', 'z')"),
    "another version": lambda f: edit(f, "PRAGMA user_version = 2"),
}


@pytest.mark.parametrize("how", EDITS)
def test_a_ledger_edited_by_hand(folder: Path, how: str) -> None:
    before = bodies(folder)
    EDITS[how](folder)
    refused(folder)
    assert (
        how.endswith(("head", "deleted", "added", "version", "dropped", "planted", "type"))
        or bodies(folder) != before
    )


def test_nothing_else_is_edited_in_between(folder: Path) -> None:
    """The ledger that the edits start from opens, also after SQLite has rewritten the whole file."""
    edit(folder, "VACUUM")
    with Ledger.open(folder, owner()) as ledger:
        assert ledger.verify().size == ledger.status("north").size


def test_fingerprints_altered_without_changing_their_length(folder: Path) -> None:
    edit(folder, "UPDATE fingerprints SET content = zeroblob(length(content))")
    with pytest.raises(LedgerInDoubt, match="fingerprints"):
        read_ledger(folder, owner().public)
    with Ledger.open(folder, owner()) as ledger, pytest.raises(LedgerInDoubt, match="fingerprints"):
        ledger.bind(None, "dataset-3", rows(range(50, 60)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_bit_of_the_file(template: Path, tmp_path: Path, place: float, bit: int) -> None:
    """A changed bit is refused, unless it is in a place that says nothing; then the state is the same."""
    folder = tmp_path / f"{place}-{bit}" / "ledger"
    copy(template, folder)
    truth = read_ledger(folder, owner().public).loaded
    data = bytearray((folder / DATABASE).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (folder / DATABASE).write_bytes(data)
    with contextlib.suppress(LedgerInDoubt):
        found = read_ledger(folder, owner().public).loaded
        assert (found.book, found.hash) == (truth.book, truth.hash)


def test_files_cut_short_or_of_another_kind(folder: Path) -> None:
    path = folder / DATABASE
    whole = path.read_bytes()
    for content in (whole[:-4096], whole[:100], b"", b"not a database at all" * 300, bytes(len(whole))):
        path.write_bytes(content)
        refused(folder)


def test_a_database_swapped_for_another_of_the_same_owner(folder: Path, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "other", owner()) as ledger:
        ledger.declare("north", Cap.of(20.0, 1e-3))
    shutil.copy(tmp_path / "other" / DATABASE, folder / DATABASE)
    refused(folder, "another ledger")


def test_a_ledger_of_somebody_else(folder: Path) -> None:
    refused(folder, "another identity", Identity.generate("ann"))


def test_a_forged_ledger_signed_by_somebody_else(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    head_beside(folder).path.unlink()
    with Ledger.open(folder, owner("eve")) as ledger:
        ledger.declare("north", Cap.of(20.0, 1e-3))
    refused(folder, "another identity")


def test_a_deleted_ledger_does_not_begin_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(LedgerInDoubt, match="is gone"):
        Ledger.open(folder, owner())
    folder.mkdir()
    refused(folder, "is gone")


def test_a_deleted_or_foreign_head_beside_the_folder(folder: Path, tmp_path: Path) -> None:
    beside = head_beside(folder).path
    kept = beside.read_bytes()
    beside.unlink()
    refused(folder, "anchor cannot be used")
    for content in (b"", b"garbage", kept[:100] + kept[2148:2248]):
        beside.write_bytes(content)
        refused(folder, "anchor cannot be used")
    with Ledger.open(tmp_path / "other", owner()) as ledger:
        ledger.declare("north", CAP)
    shutil.copy(head_beside(tmp_path / "other").path, beside)
    refused(folder, "another ledger")
    beside.write_bytes(kept[:2048] + b"torn" * 512)  # the other place holds the same head
    read_ledger(folder, owner().public)


def yesterday_and_today(folder: Path, **options: Path) -> Path:
    """Return a copy of the ledger as it was before one more query."""
    backup = folder.with_name("backup") / "ledger"
    with Ledger.open(folder, owner(), **options):
        pass
    copy(folder, backup)
    with Ledger.open(folder, owner()) as ledger:
        ledger.spend("north", "one more", cost())
    shutil.rmtree(folder)
    return backup


def test_the_folder_alone_restored_from_yesterday(folder: Path) -> None:
    shutil.copytree(yesterday_and_today(folder), folder)
    refused(folder, "restored from an older copy")


def test_a_whole_home_restored_from_yesterday(folder: Path, tmp_path: Path) -> None:
    """Without an anchor it cannot be told, and the ledger says so."""
    backup = yesterday_and_today(folder)
    head_beside(folder).path.unlink()
    copy(backup, folder)
    with Ledger.open(folder, owner()) as ledger:
        assert ledger.status("north").rollback_detected == "not detectable"


def test_a_whole_home_restored_from_yesterday_with_an_anchor(folder: Path, tmp_path: Path) -> None:
    backup = yesterday_and_today(folder, anchor=tmp_path / "usb" / "anchor")
    head_beside(folder).path.unlink()
    copy(backup, folder)
    refused(folder, "restored from an older copy")


def test_yesterday_went_on_differently(folder: Path, tmp_path: Path) -> None:
    """The restored copy grows beyond the head that was seen: it still does not contain it."""
    anchor = tmp_path / "usb" / "anchor"
    backup = yesterday_and_today(folder, anchor=anchor)
    head_beside(folder).path.unlink()
    newest = anchor.read_bytes()
    copy(backup, folder)
    shutil.copy(head_beside(folder).path, anchor)  # the anchor is set back too, for as long as it takes
    with Ledger.open(folder, owner()) as ledger:
        for _ in range(3):
            ledger.spend("north", "something else", cost())
    anchor.write_bytes(newest)
    refused(folder, "not the one that was seen")


def test_an_anchor_is_required_once_it_was_set(folder: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "usb" / "anchor"
    with Ledger.open(folder, owner(), anchor=anchor) as ledger:
        assert ledger.status("north").rollback_detected == f"against {anchor}"
    kept = anchor.read_bytes()
    for content in (None, b"", b"x", kept[:300]):
        anchor.unlink(missing_ok=True)
        if content is not None:
            anchor.write_bytes(content)
        refused(folder, "anchor cannot be used")
    head = Head("0" * 32, 1, "0" * 64)
    anchor.write_bytes(sign_head(head, owner("eve")))
    refused(folder, "no head that the ledger's owner signed")
    anchor.write_bytes(kept)
    Ledger.open(folder, owner()).close()


def test_an_anchor_that_is_gone_while_the_ledger_is_open(folder: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "usb" / "anchor"
    with Ledger.open(folder, owner(), anchor=anchor) as ledger:
        ledger.spend("north", "with the anchor", cost())
        anchor.unlink()
        with pytest.raises(CloisterError, match="anchor"):
            ledger.spend("north", "without it", cost())
        with pytest.raises(LedgerInDoubt, match="anchor"):
            ledger.spend("north", "without it", cost())


def test_a_head_that_a_partner_kept(folder: Path, tmp_path: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        old = ledger.head()
    backup = yesterday_and_today(folder)
    copy(backup, tmp_path / "now" / "ledger")
    with Ledger.open(tmp_path / "now" / "ledger", owner()) as ledger:
        ledger.check_head(old)
        ledger.spend("north", "one", cost())
        newest = ledger.head()
        ledger.check_head(newest)
    copy(backup, tmp_path / "restored" / "ledger")
    with Ledger.open(tmp_path / "restored" / "ledger", owner()) as ledger:
        ledger.check_head(old)
        with pytest.raises(LedgerInDoubt, match="older copy"):
            ledger.check_head(newest)
        with pytest.raises(IntegrityError):
            ledger.check_head(sign_head(Head("0" * 32, 1, "0" * 64), owner("eve")))
    anchor = tmp_path / "echo.json"
    anchor.write_bytes(newest)  # one envelope in a file serves as an anchor
    with pytest.raises(LedgerInDoubt, match="older copy"):
        Ledger.open(tmp_path / "restored" / "ledger", owner(), anchor=anchor)


def test_an_anchor_where_it_guards_nothing(folder: Path) -> None:
    for place in (folder / "anchor", head_beside(folder).path, folder / ".." / folder.name / "a"):
        with pytest.raises(CloisterError, match="put back with it") as caught:
            Ledger.open(folder, owner(), anchor=place)
        assert caught.value.exit_code == 2
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(CloisterError, match="put back with it"):
        Ledger.open(folder, owner(), anchor=folder.parent / "link" / "anchor")


def signed_by_the_owner(folder: Path, *more: Row) -> None:
    """Append rows to a ledger's file with a true chain and the owner's true signature, past all checks."""
    found = bodies(folder)
    at = FIRST_HASH
    for body in found:
        at = next_hash(at, body)
    for number, row in enumerate(more, len(found) + 1):
        at = next_hash(at, encode_row(row))
        edit(folder, ("INSERT INTO rows VALUES (?, ?)", (number, encode_row(row))))
    ledger = json.loads(found[0])["ledger"]
    envelope = sign_head(Head(ledger, len(found) + len(more), at.hex()), owner())
    edit(folder, ("UPDATE head SET envelope = ?", (envelope,)))


STAMP = {"id": "f" * 32, "at": "then"}
IMPOSSIBLE: dict[str, Row] = {
    "a cap raised": Declare(**STAMP, population="north", cap=Cap(20.0, 1e-5, CAP.order)),
    "another order": Declare(**STAMP, population="north", cap=Cap(3.0, 1e-5, CAP.order + 1)),
    "more than is left": Spend(**STAMP, populations=("north",), what="x", cost=Charge(CAP.rdp, 0, CAP.order)),
    "more delta than is left": Spend(
        **STAMP, populations=("north",), what="x", cost=Charge(0, 9e-6, CAP.order)
    ),
    "a block twice": Start(**STAMP, admission=7, block=0),
    "a block beyond the plan": Start(**STAMP, admission=7, block=4),
    "no such admission": Close(**STAMP, admission=8, interrupted=False),
    "nobody's budget": Spend(**STAMP, populations=("east",), what="x", cost=Charge(0, 0, CAP.order)),
    "the study again": Admit(
        **STAMP, populations=("north",), study=STUDY, name="x", cost=Charge(0, 0, CAP.order), blocks=1
    ),
    "a dataset that leaves": Bind(
        **STAMP, dataset="dataset-1", populations=("south",), sha256="0" * 64, count=1
    ),
    "a lower order": Spend(**STAMP, populations=("north",), what="x", cost=Charge(0, 0, 2)),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_history_that_cannot_have_been_is_refused_though_signed(folder: Path, what: str) -> None:
    signed_by_the_owner(folder, IMPOSSIBLE[what])
    refused(folder, "does not follow")


def test_a_true_row_signed_past_the_writer_is_taken(folder: Path) -> None:
    """The control of the test above: it is the row that is refused there."""
    signed_by_the_owner(
        folder, Spend(**STAMP, populations=("north",), what="x", cost=Charge(0, 0, CAP.order))
    )
    assert read_ledger(folder, owner().public).status("north").entries[-1].name == "x"


def test_old_rows_and_states_behind_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_ROWS", 8)
    template = filled(tmp_path / "template" / "ledger")

    def attempt(name: str, *statements: str | tuple[str, tuple[object, ...]]) -> Path:
        copy(template, tmp_path / name / "ledger")
        edit(tmp_path / name / "ledger", *statements)
        return tmp_path / name / "ledger"

    state = b'{"size":16}'
    for number, statement in enumerate(
        (
            ("UPDATE state SET body = ?", (state,)),
            "UPDATE state SET body = replace(CAST(body AS TEXT), '\"spent_rdp\":', '\"spent_rdp\":-')",
            "UPDATE state SET hash = zeroblob(32)",
            "UPDATE state SET size = size - 1",
            "UPDATE state SET size = size + 1",
            "UPDATE state SET size = (SELECT max(id) FROM rows)",
            'UPDATE rows SET body = replace(CAST(body AS TEXT), \'"state":"\', \'"state":"0\') '
            "WHERE CAST(body AS TEXT) LIKE '%checkpoint%'",
        )
    ):
        refused(attempt(f"state-{number}", statement))
    # A row before the checkpoint decides nothing any more; whoever reads the ledger whole finds that it changed.
    old = attempt("old", "UPDATE rows SET body = replace(CAST(body AS TEXT), '1e-05', '2e-05') WHERE id = 2")
    with Ledger.open(old, owner()) as ledger:
        assert ledger.status("north").cap == CAP
        with pytest.raises(LedgerInDoubt):
            ledger.verify()
    with pytest.raises(LedgerInDoubt):
        read_ledger(old, owner().public)
    without = attempt("without", "DELETE FROM state")  # then all rows are read
    assert read_ledger(without, owner().public).status("north").cap == CAP


def test_a_head_from_before_a_checkpoint_is_looked_for_in_the_whole_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the anchor of a disk that was away is old: the ledger opens if it contains it, and only then."""
    monkeypatch.setattr(engine, "CHECKPOINT_ROWS", 8)
    folder = tmp_path / "ledger"
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        old = ledger.head()
        for _ in range(20):
            ledger.spend("north", "count", cost())
    head_beside(folder).path.write_bytes(old)
    Ledger.open(folder, owner()).close()
    payload = json.loads(_payload(old))
    payload["hash"] = "0" * 64
    head_beside(folder).path.write_bytes(sign_head(Head(**payload), owner()))
    refused(folder, "not the one that was seen")


def test_the_file_is_changed_while_it_is_open(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        ledger.spend("north", "before", cost())
        edit(folder, "UPDATE rows SET body = x'00' WHERE id = 5")
        with pytest.raises(LedgerInDoubt):
            ledger.spend("north", "after", cost())
        with pytest.raises(LedgerInDoubt):
            ledger.spend("north", "again", cost())


@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal"])
def test_the_file_is_replaced_while_it_is_open(folder: Path, tmp_path: Path, name: str) -> None:
    """What is written would not be in the file that is opened next: nobody is told that it is."""
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(folder, owner()))
        ledger.spend("north", "before", cost())
        shutil.copy(folder / name, tmp_path / "copy")
        (tmp_path / "copy").replace(folder / name)
        with pytest.raises(CloisterError):
            ledger.spend("north", "after", cost())


def test_two_writers_at_once_do_not_overdraw(folder: Path) -> None:
    """Both believe to be the writer, as after their lock was taken by force: the second write is refused."""
    first, second = Engine.open(folder, owner()), Engine.open(folder, owner())
    left = first.book.accounts["north"].left()[0] / 2**50
    most = Spend(
        id=new_id(),
        at=now(),
        populations=("north",),
        what="most of it",
        cost=Charge(left * 0.9, 0, CAP.order),
    )
    try:
        first.handle([most])
        with pytest.raises(LedgerInDoubt, match="somebody else"):
            second.handle(
                [Spend(**{**STAMP, "id": new_id()}, populations=("north",), what="x", cost=most.cost)]
            )
    finally:
        first.close()
        second.close()
    assert read_ledger(folder, owner().public).status("north").left.rdp < left * 0.11


def test_a_client_with_other_keys_is_turned_away(folder: Path) -> None:
    with Ledger.open(folder, owner()):
        with pytest.raises(PolicyRefused, match="another identity"):
            Ledger.open(folder, Identity.generate("ann"))
        with socket.socket(socket.AF_UNIX) as link, socket_path(folder) as path:
            link.connect(path)
            greeting = receive(link)
            assert owner().fingerprint.encode() not in greeting
            link.sendall(frame(encode(Hello(bytes(32), owner().fingerprint, bytes(64)))))
            assert b"another identity" in receive(link)
            link.settimeout(5)
            assert link.recv(1) == b""


def test_requests_before_the_proof_are_not_carried_out(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        with socket.socket(socket.AF_UNIX) as link, socket_path(folder) as path:
            link.connect(path)
            receive(link)
            spend = Spend(**STAMP, populations=("north",), what="stolen", cost=Charge(0, 0, CAP.order))
            link.sendall(frame(encode(spend)))
            receive(link)
            link.settimeout(5)
            assert link.recv(1) == b""
        assert all(entry.name != "stolen" for entry in ledger.status("north").entries)


def test_a_false_writer_is_not_believed(folder: Path) -> None:
    """Somebody answers at the socket and says yes to everything, without the owner's keys."""
    import msgspec

    with socket.socket(socket.AF_UNIX) as false, socket_path(folder) as path:
        false.bind(path)
        false.listen()

        def lie() -> None:
            link, _ = false.accept()
            with link:
                link.sendall(frame(encode(Greeting(bytes(32), "0" * 32, os.getpid()))))
                hello = msgspec.msgpack.decode(receive(link), type=Hello)
                # The best it can do: send back the client's own proof.
                link.sendall(frame(encode(Welcome(hello.signature))))

        thread = threading.Thread(target=lie)
        thread.start()
        with pytest.raises(IntegrityError):
            Ledger.open(folder, owner())
        thread.join()


def test_garbage_at_the_socket_harms_nobody(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        for garbage in (b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02hi", bytes(5000), frame(b"\xc1" * 100)):
            with socket.socket(socket.AF_UNIX) as link, socket_path(folder) as path:
                link.connect(path)
                receive(link)
                with contextlib.suppress(OSError):
                    link.sendall(garbage)
        ledger.spend("north", "still there", cost())


def test_no_secret_and_no_name_in_what_partners_see(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        study = ledger.resume(STUDY)
        assert study is not None
        debit, head = ledger.debit(study), ledger.head()
        assert ledger.status("north").tag in str(json.loads(_payload(debit)))
    for envelope in (debit, head):
        assert b"north" not in _payload(envelope)
        assert b"heart" not in _payload(envelope)


def _payload(envelope: bytes) -> bytes:
    import base64

    return base64.b64decode(json.loads(envelope)["payload"])


def test_a_refusal_names_no_row(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger, pytest.raises(PolicyRefused) as caught:
        ledger.bind(None, "dataset-9", rows(range(900, 910)))
    assert rows(900).hex()[:8] not in str(caught.value)
    assert Refused("PolicyRefused", "", "", "").kind == type(caught.value).__name__


def test_the_file_tells_nobody_else(folder: Path) -> None:
    with Ledger.open(folder, owner(), anchor=folder.parent / "usb" / "a"):
        for path in (folder / DATABASE, head_beside(folder).path, folder.parent / "usb" / "a"):
            assert path.stat().st_mode & 0o077 == 0
    with sqlite3.connect(folder / DATABASE) as sql:
        kept = b"".join(content for (content,) in sql.execute("SELECT content FROM fingerprints"))
    sql.close()
    assert rows(5)[:16] in kept
    assert rows(5) not in kept
