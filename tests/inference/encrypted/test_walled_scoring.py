"""Scoring in a walled worker: the same scores, and a worker that is believed no more than it must be."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.encrypted.rows import encrypted, make_rows
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import Identity
from cloister.errors import CloisterError, InputError, IntegrityError, ProtocolError
from cloister.inference import ModelArtifact
from cloister.inference.encrypted import ClientKey, score_rows, score_rows_walled
from cloister.inference.encrypted.walled import READY, Failure, receive, send
from cloister.learning.sections import ModelSection

pytest.importorskip("tenseal")


@pytest.fixture(scope="module")
def exchanged() -> tuple[ModelArtifact, bytes, ClientKey]:
    artifact = make_artifact("number", ModelSection(kind="linear"))
    return artifact, *encrypted(artifact, make_rows(3))


class Puppet:
    """A worker in a thread, which says what it is told to."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self.socket, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(act,))
        self._thread.start()

    def _run(self, act: Callable[[socket.socket], None]) -> None:
        with self._end, contextlib.suppress(ProtocolError):
            act(self._end)

    def why(self) -> str:
        return "signal 9"

    def refusal(self) -> CloisterError:
        return ProtocolError("the worker's process did not come up: puppet")

    def close(self) -> None:
        self.socket.close()
        self._thread.join(10)


def answering(kind: bytes, answer: bytes) -> Callable[[socket.socket], None]:
    def act(end: socket.socket) -> None:
        send(end, READY)
        receive(end, 1 << 24, 10)
        receive(end, 1 << 24, 10)
        send(end, kind)
        send(end, answer)

    return act


def test_a_worker_behind_walls_scores_and_this_process_signs(
    exchanged: tuple[ModelArtifact, bytes, ClientKey],
) -> None:
    needs_walls()
    artifact, request, key = exchanged
    server = Identity.generate("server")
    scores = score_rows_walled(artifact, request, server)
    assert scores == score_rows(artifact, request, server)
    assert key.open(scores, server.public).answers.num_rows == 3


def test_a_refusal_comes_back_as_it_was(exchanged: tuple[ModelArtifact, bytes, ClientKey]) -> None:
    needs_walls()
    _, request, _ = exchanged
    with pytest.raises(IntegrityError, match="for another model"):
        score_rows_walled(make_artifact("number", ModelSection(kind="linear"), seed=3), request)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda end: None, "did not come up"),
        (lambda end: send(end, b"hello"), "nobody understands"),
        (lambda end: send(end, READY), "ended before its work"),
        (lambda end: end.sendall(b"\xff" * 8), "over the limit"),
        (answering(b"\0", b"no scores"), "something else than scores"),
        (answering(b"\1", b"not json"), "nobody understands"),
        (answering(b"\1", msgspec.json.encode(Failure("OSError", "boom\nbang"))), "boom bang"),
    ],
)
def test_a_worker_that_misbehaves_is_one_sentence(
    exchanged: tuple[ModelArtifact, bytes, ClientKey], act: Callable[[socket.socket], None], words: str
) -> None:
    artifact, request, _ = exchanged
    with pytest.raises(ProtocolError, match=words):
        score_rows_walled(artifact, request, start=lambda: Puppet(act))


def test_scores_of_other_rows_are_not_signed(exchanged: tuple[ModelArtifact, bytes, ClientKey]) -> None:
    artifact, request, _ = exchanged
    other, _ = encrypted(artifact, make_rows(3, seed=9))
    for scores in (score_rows(artifact, other), score_rows(artifact, request, Identity.generate("eve"))):
        with pytest.raises(ProtocolError, match="other scores than it was asked for"):
            score_rows_walled(
                artifact,
                request,
                Identity.generate("server"),
                start=lambda: Puppet(answering(b"\0", scores)),  # noqa: B023
            )


def test_a_folder_serves_where_no_anonymous_file_may_be_made(
    exchanged: tuple[ModelArtifact, bytes, ClientKey], tmp_path: Path
) -> None:
    artifact, request, _key = exchanged
    assert score_rows(artifact, request, scratch=tmp_path) == score_rows(artifact, request)


def test_nothing_is_started_for_what_is_no_file_of_rows() -> None:
    with pytest.raises(InputError, match="not a file"):
        score_rows_walled(
            make_artifact("number", ModelSection(kind="linear")), b"", start=lambda: pytest.fail("started")
        )
