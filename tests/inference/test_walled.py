"""A walled prediction, both sides: what crosses, what is believed, what is refused."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.inference.artifacts import make_artifact
from tests.runtime.workers.twins import Twin
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import SECRET_ACCESS, Identity, PublicIdentity, open_bytes, seal_bytes
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
)
from cloister.inference import ModelArtifact, Predictor, walled, walledtalk
from cloister.inference.walled import predict_walled, rows_of, start_worker
from cloister.inference.walledmessages import PROTOCOL, Failed, Predicted, Ready, Rows, Task
from cloister.inference.walledprocess import _Work, serve
from cloister.learning.sections import ModelSection
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, recv_clear, send_clear
from cloister.runtime.workers.messages import BrokerAsk, EvidenceWanted, KeyWanted, Meet, Prepare, encode

CANARY = b"canary-Zq81"
ROWS = b"patient,age,pain,fluid\n" + CANARY + b",40,none,1.5\np-2,77,typical,\np-3,18,atypical,0\n"
OWNER, READER, OTHER = (Identity.generate(name) for name in ("owner", "reader", "other"))
KINDS = [
    ("boolean", ModelSection(kind="logistic")),
    ("category", ModelSection(kind="softmax", classes=3)),
    ("number", ModelSection(kind="linear")),
]


@pytest.fixture
def artifact() -> ModelArtifact:
    return make_artifact(*KINDS[0])


def twin(scratch: Path) -> Callable[[], Twin]:
    """Return what starts a worker in a thread, without walls."""
    return lambda: Twin(lambda sock: serve(sock, lambda read: scratch))


def rows(path: Path, content: bytes = ROWS) -> Rows:
    path.write_bytes(content)
    return rows_of(path, lambda: OWNER)


def scripted(says: Callable[[Channel, Task], Any]) -> tuple[Callable[[], Twin], list[Twin]]:
    """Return what starts a worker that is honest until it has its task."""
    twins: list[Twin] = []

    def serve(sock: socket.socket) -> None:
        meet = msgspec.msgpack.decode(recv_clear(sock, 1 << 16, None), type=Meet)
        identity, caller = Identity.generate("worker"), PublicIdentity.from_json(meet.site)
        send_clear(sock, identity.public.to_json())
        channel = Channel(Link(identity, caller, PROTOCOL, initiator=False), sock)
        assert msgspec.msgpack.decode(channel.receive(), type=Prepare) == Prepare([], "nothing", 1)
        channel.send(encode(Ready()))
        answer = says(channel, msgspec.msgpack.decode(channel.receive(1 << 30), type=Task))
        if answer is not None:
            channel.send(answer if isinstance(answer, bytes) else encode(answer))
            channel.receive()

    def start() -> Twin:
        twins.append(Twin(serve))
        return twins[-1]

    return start, twins


@pytest.mark.parametrize(("label", "model"), KINDS)
@pytest.mark.parametrize("sealed", [False, True])
def test_answers_are_the_predictors_own(
    tmp_path: Path, label: str, model: ModelSection, sealed: bool
) -> None:
    artifact = make_artifact(label, model)
    content = seal_bytes(ROWS, [OWNER.public]) if sealed else ROWS
    given = rows(tmp_path / "rows", content)
    assert (given.content_key is not None) == sealed
    (tmp_path / "plain.csv").write_bytes(ROWS)
    expected = Predictor.of(artifact).predict_file(tmp_path / "plain.csv")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    answer = predict_walled(
        artifact, given, output_format="parquet", readers=[READER.public], start=twin(scratch)
    )
    opened = open_bytes(bytes(answer.content), READER)
    assert pyarrow.parquet.read_table(io.BytesIO(opened)).equals(expected)
    assert (answer.rows, tuple(answer.columns)) == (3, Predictor.of(artifact).columns)
    assert list(scratch.iterdir()) == []
    plain = predict_walled(artifact, given, output_format="csv", readers=None, start=twin(scratch))
    assert pyarrow.csv.read_csv(io.BytesIO(plain.content)).num_rows == 3


def test_a_reference_is_fitted_inside(tmp_path: Path) -> None:
    artifact = make_artifact(*KINDS[2], scaling="local")
    (tmp_path / "plain.csv").write_bytes(ROWS)
    expected = Predictor.of(artifact).fit_file(tmp_path / "plain.csv").predict_file(tmp_path / "plain.csv")
    given = rows(tmp_path / "rows", seal_bytes(ROWS, [OWNER.public]))
    ask: Any = {"output_format": "parquet", "readers": None, "start": twin(tmp_path)}
    answer = predict_walled(artifact, given, reference=given, **ask)
    assert pyarrow.parquet.read_table(pa.BufferReader(bytes(answer.content))).equals(expected)
    with pytest.raises(InputError, match="local"):
        predict_walled(artifact, given, **ask)


def test_what_crosses_holds_no_row_in_the_open_and_no_key_of_the_home(
    artifact: ModelArtifact, tmp_path: Path
) -> None:
    tasks, answers = [], []
    (tmp_path / "scratch").mkdir()

    def honest(channel: Channel, task: Task) -> Any:
        tasks.append(encode(task))
        answers.append(encode(_Work(channel, OTHER.public, tmp_path / "scratch").predicted(task)))
        return answers[0]

    start, _ = scripted(honest)
    given = rows(tmp_path / "rows", seal_bytes(ROWS, [OWNER.public]))
    predict_walled(artifact, given, output_format="csv", readers=[READER.public], start=start)
    (tmp_path / "plain.csv").write_bytes(ROWS)
    probability = Predictor.of(artifact).predict_file(tmp_path / "plain.csv")["probability"][0].as_py()
    for crossed in (*tasks, *answers):
        assert CANARY not in crossed
        assert repr(probability)[:12].encode() not in crossed
        assert OWNER.sealing.to_bytes(SECRET_ACCESS) not in crossed
    assert given.content_key in tasks[0]  # type: ignore[operator]
    assert given.content_key not in answers[0]  # type: ignore[operator]
    assert "canary" not in repr(given)


def predicted(**changes: Any) -> Predicted:
    content = changes.pop("content", None) or seal_bytes(b"x", [READER.public])
    return Predicted(memoryview(content), **{"rows": 3, "columns": ["prediction", "probability"], **changes})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xc1",
        b"Predicted",
        msgspec.msgpack.encode(["Predicted"]),
        msgspec.msgpack.encode(["Predicted", b"", 3, ["prediction", "probability"], 1]),
        msgspec.msgpack.encode(["Task", b"", None, None, "csv", "plaintext", None]),
        msgspec.msgpack.encode(["Failed", "InputError", "x" * 7000, "", "", None, None]),
        msgspec.msgpack.encode(["Failed", "InputError", b"\xff", "", "", None, None]),
        predicted(rows=-1),
        predicted(columns=["prediction"]),
        predicted(columns=["prediction", CANARY.decode()]),
        predicted(content=b"prediction,probability\ntrue,0.5\n"),
        predicted(content=seal_bytes(b"x", [OTHER.public])),
        predicted(content=seal_bytes(b"x", [READER.public, OTHER.public])),
        predicted(content=seal_bytes(b"x", [READER.public])[:30]),
        Ready(),
        KeyWanted(0, b"wrapped"),
        KeyWanted(1, b"wrapped"),
        BrokerAsk(0, b"asked", True),
        EvidenceWanted(0, bytes(1216)),
        None,
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_answer_that_is_none_is_refused(artifact: ModelArtifact, tmp_path: Path, answer: Any) -> None:
    start, twins = scripted(lambda channel, task: answer)
    with pytest.raises(ProtocolError) as error:
        predict_walled(
            artifact, rows(tmp_path / "rows"), output_format="csv", readers=[READER.public], start=start
        )
    assert twins[0].closed
    assert CANARY.decode() not in str(error.value)


def test_too_much_is_refused_before_it_comes(
    artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walledtalk, "_MAX_MESSAGE", 1 << 20)
    start, twins = scripted(lambda channel, task: bytes(64 << 20))
    with pytest.raises(ProtocolError, match="over the limit"):
        predict_walled(artifact, rows(tmp_path / "rows"), output_format="csv", readers=None, start=start)
    assert twins[0].closed


@pytest.mark.parametrize("said", [b"", b"{}", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02{}", bytes(99)])
def test_garbage_instead_of_an_identity(artifact: ModelArtifact, tmp_path: Path, said: bytes) -> None:
    def garbage(sock: socket.socket) -> None:
        recv_clear(sock, 1 << 16, None)
        sock.sendall(said)

    with pytest.raises(ProtocolError):
        predict_walled(
            artifact,
            rows(tmp_path / "rows"),
            output_format="csv",
            readers=None,
            start=lambda: Twin(garbage),
        )


def test_errors_come_back_as_class_and_text(artifact: ModelArtifact, tmp_path: Path) -> None:
    given = rows(tmp_path / "rows")

    def failing(failed: Failed, expected: type[CloisterError]) -> CloisterError:
        start, _ = scripted(lambda channel, task: failed)
        with pytest.raises(CloisterError) as error:
            predict_walled(artifact, given, output_format="csv", readers=None, start=start)
        assert type(error.value) is expected
        return error.value

    found = failing(Failed("SchemaError", "bad\x1b[2J\nrow", "", "Mend it", 5, "age"), SchemaError)
    assert isinstance(found, SchemaError)
    assert (found.line, found.column) == (5, "age")
    assert str(found) == "bad [2J row (line 5, column age). Mend it."
    failing(Failed("IntegrityError", "altered", "", ""), IntegrityError)
    failing(Failed("PolicyRefused", "no", "", ""), PolicyRefused)
    assert "(ValueError)" in str(failing(Failed("ValueError", "the work failed", "", ""), ProtocolError))
    failing(Failed("SystemExit", "the work failed", "", ""), ProtocolError)


def test_refusals_name_the_callers_file(artifact: ModelArtifact, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    ask: Any = {"output_format": "csv", "readers": None, "start": twin(tmp_path / "scratch")}
    bad = ROWS + CANARY + b",12,none,1\n"
    for content in (bad, seal_bytes(bad, [OWNER.public])):
        with pytest.raises(SchemaError) as wrong:
            predict_walled(artifact, rows(tmp_path / "rows", content), **ask)
        assert (wrong.value.line, wrong.value.column) == (5, "age")
    for content, where in ((b"", "{}"), (seal_bytes(b"", [OWNER.public]), "in {}")):
        with pytest.raises(InputError, match="empty") as error:
            predict_walled(artifact, rows(tmp_path / "rows", content), **ask)
        assert error.value.where == where.format(tmp_path / "rows")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_rows_that_are_too_large_are_refused(
    artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.inference import walledprocess

    monkeypatch.setattr(walledprocess, "MAX_CONTENT", 16)
    with pytest.raises(InputError, match="rows up to"):
        predict_walled(
            artifact, rows(tmp_path / "rows"), output_format="csv", readers=None, start=twin(tmp_path)
        )
    monkeypatch.setattr(walled, "MAX_FILE", 16)
    with pytest.raises(InputError, match="files of rows up to"):
        rows(tmp_path / "rows")


def test_a_files_name_need_not_be_text(artifact: ModelArtifact, tmp_path: Path) -> None:
    given = rows(tmp_path / "rows\udcff")
    assert predict_walled(
        artifact, given, output_format="csv", readers=None, start=twin(tmp_path)
    ).content.nbytes


def test_the_worker_takes_a_task_and_nothing_else(tmp_path: Path) -> None:
    for sent in (b"", b"\xc1", encode(Meet(b"", PROTOCOL)), msgspec.msgpack.encode(["Task", b"", 1])):
        running = twin(tmp_path)()
        identity = Identity.generate("caller")
        send_clear(running.socket, encode(Meet(identity.public.to_json(), PROTOCOL)))
        worker = PublicIdentity.from_json(recv_clear(running.socket, 1 << 16, 10))
        channel = Channel(Link(identity, worker, PROTOCOL, initiator=True), running.socket)
        channel.open(10)
        channel.send(encode(Prepare([], "nothing", 1)))
        assert msgspec.msgpack.decode(channel.receive(), type=Ready) == Ready()
        channel.send(sent)
        answer = msgspec.msgpack.decode(channel.receive(), type=Failed)
        assert answer.kind == "ProtocolError"
        running.close()
    running = twin(tmp_path)()
    send_clear(running.socket, encode(Meet(OTHER.public.to_json(), bytes(32))))
    running._thread.join(10)
    assert isinstance(running.error, ProtocolError)
    running.close()


def test_behind_the_walls(artifact: ModelArtifact, tmp_path: Path) -> None:
    needs_walls()
    given = rows(tmp_path / "rows", seal_bytes(ROWS, [OWNER.public]))
    running = start_worker()
    answer = predict_walled(
        artifact, given, output_format="csv", readers=[READER.public], start=lambda: running
    )
    assert CANARY not in bytes(answer.content)
    assert open_bytes(bytes(answer.content), READER).count(b"\n") == 4
    assert running.socket.fileno() == -1
