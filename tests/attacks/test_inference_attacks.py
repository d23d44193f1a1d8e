"""The sealed exchange against whoever stands between client and server, or keeps what passes."""

from __future__ import annotations

import pyarrow as pa
import pytest
from tests.governance.releases import identity
from tests.inference.artifacts import make_artifact

from cloister.crypto import Identity, hpke_seal, sha256
from cloister.errors import InputError, IntegrityError
from cloister.inference import Predictor, SealedRequest, answer, seal_request
from cloister.inference.sealed import _ANSWER, _Answer, _columns, _encode
from cloister.learning.sections import ModelSection

PREDICTOR = Predictor.of(make_artifact("category", ModelSection(kind="softmax", classes=3)))
SERVER, CLIENT, STRANGER = identity("server"), identity("client"), identity("stranger")
CANARY = 61.234567890123  # a weight that is in the rows and must be nowhere else


def ask(reader: Identity = CLIENT, age: int = 50) -> SealedRequest:
    rows = pa.table(
        {"age": [age], "pain": ["atypical"], "fluid": [1.5], "note": ["canary-of-the-rows"], "kg": [CANARY]}
    )
    return seal_request(rows, SERVER.public, reader.public)


def test_nothing_in_clear_passes_or_reaches_a_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import os

    written: list[str] = []
    opened = builtins.open

    def watch(file: object, mode: str = "r", *rest: object, **more: object) -> object:
        if set(mode) & set("wax+"):
            written.append(str(file))
        return opened(file, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", watch)
    monkeypatch.setattr(os, "open", lambda path, flags, *rest: pytest.fail(f"opened {path}"))
    request = ask()
    sealed = answer(request.message, SERVER, PREDICTOR)
    assert written == []
    import struct

    needles = [
        b"canary-of-the-rows",
        b"atypical",
        b"mild",
        b"severe",
        b"prediction",
        b"probability",
        b"nonce",
        b"age",
    ]
    needles += [
        struct.pack("<d", CANARY),
        struct.pack(">d", CANARY),
        CLIENT.public.signing,
        CLIENT.public.sealing[:32],
    ]
    probability = request.open_answer(sealed, CLIENT)["probability=mild"][0].as_py()
    needles += [struct.pack("<d", probability), struct.pack(">d", probability)]
    for needle in needles:
        assert needle not in request.message
        assert needle not in sealed


def test_an_answer_moved_to_another_request_is_refused() -> None:
    first, second = ask(age=40), ask(age=60)
    sealed = answer(first.message, SERVER, PREDICTOR)
    with pytest.raises(IntegrityError):
        second.open_answer(sealed, CLIENT)
    same = ask(age=40)
    with pytest.raises(IntegrityError):
        same.open_answer(sealed, CLIENT)
    assert first.open_answer(sealed, CLIENT).num_rows == 1


def test_wrong_keys_are_refused() -> None:
    request = ask()
    with pytest.raises(IntegrityError):
        answer(request.message, STRANGER, PREDICTOR)
    with pytest.raises(IntegrityError):
        request.open_answer(answer(request.message, SERVER, PREDICTOR), STRANGER)


def test_a_request_cannot_be_turned_to_another_reader() -> None:
    """The reader is inside; what a stranger seals anew is another request, whose answer the client does not take."""
    request, stolen = ask(CLIENT), ask(STRANGER)
    sealed = answer(stolen.message, SERVER, PREDICTOR)
    with pytest.raises(IntegrityError):
        request.open_answer(sealed, CLIENT)
    with pytest.raises(IntegrityError):
        request.open_answer(sealed, STRANGER)


def test_an_answer_forged_by_one_who_saw_the_request_is_refused() -> None:
    """The forger has the client's public key and the request's bytes; the nonce inside is what it lacks."""
    request = ask()
    content = _encode(_Answer(predictions=_columns(pa.table({"prediction": ["mild"]}))))
    bound = _ANSWER + sha256(request.message)
    for guess in (b"", bytes(32), sha256(request.message)):
        forged = hpke_seal(CLIENT.public.sealing_key, content, info=_ANSWER + guess, associated_data=bound)
        with pytest.raises(IntegrityError):
            request.open_answer(forged, CLIENT)


@pytest.mark.parametrize("where", [0, 40, 1119, 1121, 5000, -17, -1])
def test_a_changed_byte_is_refused_on_both_ways(where: int) -> None:
    request = ask()
    message = bytearray(request.message)
    message[where] ^= 1
    with pytest.raises(IntegrityError):
        answer(bytes(message), SERVER, PREDICTOR)
    sealed = bytearray(answer(request.message, SERVER, PREDICTOR))
    sealed[where] ^= 1
    with pytest.raises(IntegrityError):
        request.open_answer(bytes(sealed), CLIENT)


@pytest.mark.parametrize("keep", [0, 1, 100, 1120, 16_000, -1])
def test_a_cut_message_is_refused(keep: int) -> None:
    request = ask()
    with pytest.raises(IntegrityError):
        answer(request.message[:keep], SERVER, PREDICTOR)
    sealed = answer(request.message, SERVER, PREDICTOR)
    for cut in (sealed[:keep], sealed + b"\0"):
        with pytest.raises(IntegrityError):
            request.open_answer(cut, CLIENT)


def test_a_request_is_no_answer_and_an_answer_no_request() -> None:
    request = ask()
    sealed = answer(request.message, SERVER, PREDICTOR)
    with pytest.raises(IntegrityError):
        answer(sealed, SERVER, PREDICTOR)
    with pytest.raises(IntegrityError):
        request.open_answer(request.message, CLIENT)


def test_a_model_that_fails_does_not_speak_in_clear() -> None:
    class Broken:
        def predict(self, table: pa.Table) -> pa.Table:
            raise InputError("no such row", where="line 1")

    request = ask()
    sealed = answer(request.message, SERVER, Broken())
    assert len(sealed) == len(answer(request.message, SERVER, PREDICTOR))
    with pytest.raises(InputError, match="refused the rows"):
        request.open_answer(sealed, CLIENT)
