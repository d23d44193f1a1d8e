"""What runs in the process of walled scoring: `spawn` isolates it and starts this module.

1. What is needed is imported, SEAL among it; then every wall goes up. No ciphertext was here before.
2. Model and encrypted rows are taken, scored, and the scores go back, unsigned; then the process ends.

An error of ours goes back as class and text, any other as its class's name alone.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import msgspec
from tenseal import sealapi  # noqa: F401  # before the walls

from cloister.enclave.sandbox import confine
from cloister.errors import CloisterError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.container import FILE_LIMIT
from cloister.inference.encrypted.server import score_rows
from cloister.inference.encrypted.walled import READY, Failure, receive, send
from cloister.inference.tensors import MODEL_LIMIT
from cloister.runtime.workers.channel import Gone

__all__ = ["main", "serve"]

_CHANNEL: Final = 3  # where `spawn` puts this end of the pair
_TEXT: Final = 2000


def main() -> None:
    """Put the walls up and score once. Raises PolicyRefused where the machine lacks a wall."""
    scratch = confine(read=[]).scratch  # 1
    serve(socket.socket(fileno=_CHANNEL), scratch)


def serve(sock: socket.socket, scratch: Path) -> None:
    """Score one file of rows; `scratch` is a folder in memory."""
    try:
        send(sock, READY)
        model, rows = receive(sock, MODEL_LIMIT, None), receive(sock, FILE_LIMIT, None)  # 2
        failed, answer = _answer(model, rows, scratch)
        send(sock, b"\1" if failed else b"\0")
        send(sock, answer)
        receive(sock, 0, None)  # the answer travels meanwhile; the caller ends this
    except Gone:
        return


def _answer(model: bytes, rows: bytes, scratch: Path) -> tuple[bool, bytes]:
    try:
        return False, score_rows(ModelArtifact.from_bytes(model), rows, scratch=scratch)
    except CloisterError as error:
        failure = Failure(type(error).__name__, error.what[:_TEXT], error.fix[:_TEXT])
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends here, without its text
        failure = Failure("ProtocolError", f"the work failed inside the worker ({type(error).__name__[:64]})")
    return True, msgspec.json.encode(failure)


if __name__ == "__main__":
    main()
