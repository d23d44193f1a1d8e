"""What a site's first process tells the others: a call as JSON, and arrays behind it, through their stdin.

Rows go through pipes, which nobody else can read; only gradients, parts of a sharded base and sums of an
evaluation go over torch.distributed, within the machine. Nothing is pickled.

    frame   length of the header (8 bytes, big-endian) | header | each array's bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.learning.language.layout import Window
from cloister.learning.sections import LanguageSection, ModelSection, TrainingSection
from cloister.learning.torch.language.examples import Examples

__all__ = ["Call", "Opening", "Report", "arrays_of", "examples_of", "receive", "send"]

Arrays = Sequence[NDArray[Any]]


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a process begins. `base`, `scratch` and `store` are paths."""

    rank: int
    size: int
    threads: int
    device: str
    shard: bool
    base: str
    scratch: str
    store: str
    model: ModelSection
    language: LanguageSection


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A method that every process calls.

    Attributes:
        method: of the learner.
        rows: number of the examples in use, counted from the first that were sent; -1 for none.
        fresh: whether they follow as arrays, the call's own arrays behind them.
        pad: of fresh examples.
        training: for steps.
        window: for steps.
        prompts: for answers.
        most: tokens of an answer.
        temperature: of answers.
        key: 32 bytes in hex, what answers are drawn by.
        arrays: dtype and shape of each array behind the call.
    """

    method: Literal["steps", "losses", "predict", "evaluation_sums", "generate"]
    rows: int = -1
    fresh: bool = False
    pad: int = 0
    training: TrainingSection | None = None
    window: Window = (0, 0)
    prompts: list[list[int]] = []
    most: int = 0
    temperature: float = 0.0
    key: str = ""
    arrays: list[tuple[str, list[int]]] = []


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process says of itself: that it is ready, or why it ended."""

    what: str = ""
    where: str = ""
    fix: str = ""


def send(stream: IO[bytes], message: Call | Opening, arrays: Arrays = ()) -> None:
    """Write a message and arrays. Raises OSError where nobody reads."""
    plain = [np.ascontiguousarray(each) for each in arrays]
    if isinstance(message, Call):
        described = [(each.dtype.str, list(each.shape)) for each in plain]
        message = msgspec.structs.replace(message, arrays=described)
    header = msgspec.json.encode(message)
    stream.write(len(header).to_bytes(8, "big") + header)
    for each in plain:
        stream.write(each.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Call, list[NDArray[Any]]] | None:
    """Return the next call and its arrays, or None where the stream has ended."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    call = msgspec.json.decode(stream.read(int.from_bytes(head, "big")), type=Call)
    found = []
    for dtype, shape in call.arrays:
        array = np.empty(shape, np.dtype(dtype))
        view = memoryview(array.reshape(-1).view(np.uint8).data)
        at = 0
        while at < len(view):
            read = stream.readinto(view[at:])  # type: ignore[attr-defined]
            if not read:
                return None
            at += read
        found.append(array)
    return call, found


def arrays_of(examples: Examples) -> list[NDArray[Any]]:
    """Return what `examples_of` takes."""
    places = [] if examples.places is None else [examples.places]
    return [examples.ids, examples.starts, examples.counted, examples.labels, *places]


def examples_of(arrays: Arrays, pad: int) -> Examples:
    """Return the examples that these arrays are."""
    ids, starts, counted, labels, *places = arrays
    return Examples(ids, starts, counted, labels, pad=pad, places=places[0] if places else None)
