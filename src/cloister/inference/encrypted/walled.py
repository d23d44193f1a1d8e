"""Scoring in a walled worker: SEAL is C++ and reads what strangers send, so it runs where it can do no harm.

1. A worker is started; it puts its walls up and says so.
2. It gets the model and the encrypted rows. Nothing else of this process is there: no key, no file, no
   network.
3. It answers with scores, or with what is wrong. The answer has a bound and is parsed strictly; it must be of
   these rows, by this model's card.
4. This process signs, for it alone has the home's keys.

What it does not do: check that the scores are right; for that one would have to decrypt them.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from cloister.crypto import Signer, sha256
from cloister.errors import CloisterError, InputError, IntegrityError, ProtocolError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.container import FILE_LIMIT, RowsHeader, ScoresHeader, read
from cloister.inference.encrypted.scheme import library
from cloister.inference.encrypted.server import signed
from cloister.runtime.workers.asking import ended
from cloister.runtime.workers.channel import Gone
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.session import StartWorker
from cloister.text import printable

__all__ = ["MODULE", "READY", "Failure", "receive", "score_rows_walled", "send"]

MODULE: Final = "cloister.inference.encrypted.walledprocess"
READY: Final = b"ready"
_START_SECONDS: Final = 60.0
_WORK_SECONDS: Final = 24 * 3600.0
_MAX_TEXT: Final = 2000
_KINDS: Final = {each.__name__: each for each in (InputError, IntegrityError, ProtocolError)}


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong: the error's class, and its words."""

    kind: str
    what: str
    fix: str = ""


def score_rows_walled(
    artifact: ModelArtifact, rows: bytes, signer: Signer | None = None, *, start: StartWorker | None = None
) -> bytes:
    """As `score_rows`, in a walled worker that lives for this call.

    Raises:
        PolicyRefused: the machine lacks a wall.
        ProtocolError: the worker ended, or answered what it was not asked.
        InputError, IntegrityError: as of `score_rows`.
    """
    library()
    card = Card.of(artifact)
    header, parts = read(rows, RowsHeader)
    running = (start or sandbox(MODULE))()  # 1
    try:
        try:
            if receive(running.socket, len(READY), _START_SECONDS) != READY:
                raise ProtocolError("the worker said what nobody understands")
        except Gone:
            raise running.refusal() from None
        send(running.socket, artifact.to_bytes())  # 2
        send(running.socket, rows)
        failed = receive(running.socket, 1, _WORK_SECONDS) != b"\0"
        answer = receive(running.socket, 64 << 10 if failed else FILE_LIMIT, _WORK_SECONDS)
    except Gone:
        raise ended("its work was done", running.why()) from None
    finally:
        running.close()
    if failed:
        raise _error(answer)
    try:  # 3
        scores, found = read(answer, ScoresHeader)
    except CloisterError as error:
        raise ProtocolError("the worker answered with something else than scores") from error
    due = (sha256(parts.header).hex(), card.digest, card.circuit, card.outputs, header.blocks)
    if (scores.request, scores.card, scores.circuit, scores.outputs, scores.blocks) != due or found.envelope:
        raise ProtocolError("the worker answered with other scores than it was asked for")
    return signed(scores, bytes(found.body), signer)  # 4


def send(sock: socket.socket, data: bytes) -> None:
    """Send bytes after their length. Raises Gone where the other process has ended."""
    sock.settimeout(_WORK_SECONDS)
    try:
        sock.sendall(len(data).to_bytes(8, "big"))
        sock.sendall(data)
    except OSError:
        raise Gone("the other process has ended") from None


def receive(sock: socket.socket, most: int, timeout: float | None) -> bytes:
    """Return what the other process sent.

    Raises:
        Gone: it has ended.
        ProtocolError: it is longer than `most`, or did not come in time.
    """
    sock.settimeout(timeout)
    length = int.from_bytes(_exactly(sock, 8), "big")
    if length > most:
        raise ProtocolError(f"the other process announced {length} bytes, over the limit")
    return bytes(_exactly(sock, length))


def _exactly(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    try:
        while view:
            got = sock.recv_into(view)
            if got == 0:
                raise Gone("the other process has ended")
            view = view[got:]
    except TimeoutError:
        raise ProtocolError("the other process said nothing for too long") from None
    except OSError:
        raise Gone("the other process has ended") from None
    return data


def _error(answer: bytes) -> CloisterError:
    try:
        failure = msgspec.json.decode(answer, type=Failure)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ProtocolError("the worker said what nobody understands")
    what, fix = (printable(text[:_MAX_TEXT]) for text in (failure.what, failure.fix))
    return _KINDS.get(failure.kind, ProtocolError)(what, fix=fix)
