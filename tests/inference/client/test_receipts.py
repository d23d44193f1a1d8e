"""Receipts that are kept, and what a check of them finds."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.enclave.doubles import AppraiserDouble
from tests.inference.client.doubles import ServiceDouble, running, scripted, verifier
from tests.inference.openai.engine import chat_body

from cloister.errors import InputError, StorageError
from cloister.inference.client import PrivateClient, ReceiptStore, check_receipts

World = tuple[ServiceDouble, str, Path]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    _, service = scripted("Hello there")
    with running(service) as url:
        yield service, url, tmp_path / "kept" / "receipts.jsonl"


def ask(url: str, path: Path, times: int = 2) -> None:
    with PrivateClient(url, verifier(), receipts=path) as client:
        for _ in range(times):
            assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_kept_and_checked(world: World) -> None:
    service, url, path = world
    ask(url, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [line["type"].rpartition("/")[2] for line in lines(path)] == ["keys", "receipt", "receipt"]
    service.rotate()
    ask(url, path, 1)
    ask(url, path, 1)
    found = check_receipts(path, AppraiserDouble())
    assert found.accepted
    assert (found.receipts, [each.receipts for each in found.key_sets]) == (4, [2, 2])
    assert {each.model for each in found.key_sets} == {"scripted"}
    assert found.last is not None
    assert b"Hello" not in path.read_bytes()


def test_the_salts_show_what_was_asked(world: World) -> None:
    from cloister.inference.exchange import RequestHead, open_receipt, salted
    from cloister.inference.exchange.messages import encode

    service, url, path = world
    with PrivateClient(url, verifier(), receipts=path, token="t") as client:
        answer = client.post("/v1/chat/completions", json=chat_body())
    line = lines(path)[1]
    keys = service.ring.current(__import__("datetime").datetime.now(__import__("datetime").UTC))
    receipt = open_receipt(base64.b64decode(line["receipt"]), keys.receipt_key)
    asked = service.asked[0]
    head = RequestHead("POST", asked.path, dict(asked.headers), receipt.policy, "t")
    salt = base64.b64decode(line["request_salt"])
    assert salted(salt, encode(head), asked.body).hex() == receipt.request
    assert salted(salt, encode(head), asked.body + b" ").hex() != receipt.request
    assert answer.status_code == receipt.status


def test_what_does_not_hold_is_named(world: World, tmp_path: Path) -> None:
    service, url, path = world
    ask(url, path)
    whole = path.read_bytes().splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    service.rotate()
    ask(url, other, 1)
    stranger = other.read_bytes().splitlines(keepends=True)

    def check(*content: bytes) -> tuple[int, str]:
        path.write_bytes(b"".join(content))
        found = check_receipts(path, AppraiserDouble())
        assert not found.accepted
        return found.receipts, " ".join(
            [*found.problems, *(r for k in found.key_sets for r in k.refused_because)]
        )

    receipt = json.loads(whole[1])
    envelope = json.loads(base64.b64decode(receipt["receipt"]))
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["status"] = 500
    envelope["payload"] = base64.b64encode(json.dumps(payload, separators=(",", ":")).encode()).decode()
    forged = receipt | {"receipt": base64.b64encode(json.dumps(envelope).encode()).decode()}
    assert check(whole[0], json.dumps(forged).encode() + b"\n", whole[2])[0] == 1
    assert "before it" in check(whole[1], whole[0], whole[2])[1]
    assert "neither" in check(*whole, b"nonsense\n")[1]
    assert "neither" in check(*whole, whole[1][:50])[1]
    moved = json.loads(stranger[1]) | {"keys": receipt["keys"]}
    assert check(*whole, json.dumps(moved).encode())[0] == 2
    swapped = json.loads(whole[0]) | {"evidence": json.loads(stranger[0])["evidence"]}
    assert "freshness" in check(json.dumps(swapped).encode() + b"\n", *whole[1:])[1]
    nonce = json.loads(whole[0]) | {"nonce": base64.b64encode(bytes(32)).decode()}
    assert "freshness" in check(json.dumps(nonce).encode() + b"\n", *whole[1:])[1]


def test_the_checker_has_a_policy_of_his_own(world: World) -> None:
    _, url, path = world
    ask(url, path, 1)
    found = check_receipts(path, AppraiserDouble(machines=("another",)))
    assert not found.accepted
    assert "accepted images" in found.key_sets[0].refused_because[0]


def test_a_line_that_was_cut_spoils_no_other(world: World) -> None:
    _, url, path = world
    ask(url, path, 1)
    with path.open("ab") as file:
        file.write(b'{"type":"cloister/rec')
    ask(url, path, 1)
    found = check_receipts(path, AppraiserDouble())
    assert (found.receipts, len(found.problems)) == (2, 1)


def test_a_full_disk_spoils_no_later_receipt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written of a receipt that does not fit is taken back: the next one begins a line of its own."""
    _, url, path = world
    ask(url, path, 1)
    write, full = os.write, True

    def fill(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_ino != path.stat().st_ino or not full:
            return write(descriptor, data)
        if len(data) <= 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:-100])

    monkeypatch.setattr("cloister.inference.client.receipts.os.write", fill)
    with PrivateClient(url, verifier(), receipts=path) as client:
        with pytest.raises(StorageError, match="No space"):
            client.post("/v1/chat/completions", json=chat_body())
        assert len(lines(path)) == 2
        full = False
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
    found = check_receipts(path, AppraiserDouble())
    assert (found.accepted, found.receipts) == (True, 2)


def test_several_writers_at_once(world: World) -> None:
    _, url, path = world
    store = ReceiptStore(path)
    with (
        PrivateClient(url, verifier(), receipts=store) as one,
        PrivateClient(url, verifier(), receipts=path) as two,
    ):
        one.attest(), two.attest()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda each: each.post("/v1/chat/completions", json=chat_body()), [one, two] * 12))
    assert store.added == 12
    store.close()
    store.close()
    found = check_receipts(path, AppraiserDouble())
    assert (found.accepted, found.receipts) == (True, 24)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(InputError, match="no file of receipts"):
        ReceiptStore(path)
    assert path.read_text() == "my notes\n"
    with pytest.raises(StorageError):
        ReceiptStore(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        check_receipts(tmp_path / "none", AppraiserDouble())
    empty = tmp_path / "empty"
    ReceiptStore(empty).close()
    assert check_receipts(empty, AppraiserDouble()).receipts == 0


def test_an_answer_whose_receipt_cannot_be_kept_is_an_error(world: World) -> None:
    _, url, path = world
    store = ReceiptStore(path)
    store.close()
    with (
        PrivateClient(url, verifier(), receipts=store) as client,
        pytest.raises(StorageError, match="cannot be kept"),
    ):
        client.post("/v1/chat/completions", json=chat_body())


def test_a_check_asks_for_all_that_a_client_asks_for(tmp_path: Path) -> None:
    """Who kept the file may have asked for less: no evidence of accelerators, and of keys of another time."""
    import msgspec

    from cloister.enclave.claims import Claims

    def lenient(*given: object) -> object:
        claims, reasons = AppraiserDouble()(*given)  # type: ignore[arg-type]
        gpu = Claims(kind="nvidia-gpu", signature=True, chain=True, freshness=True, platform="a")
        return msgspec.structs.replace(claims, devices=(gpu,)), reasons

    path = tmp_path / "receipts.jsonl"
    service = ServiceDouble(scripted("Hello there")[1].app, accelerators=1)
    with running(service) as url, PrivateClient(url, verifier(appraise=lenient), receipts=path) as client:
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
    assert check_receipts(path, lenient).accepted  # type: ignore[arg-type]
    found = check_receipts(path, AppraiserDouble())
    assert not found.accepted
    assert "accelerators" in " ".join(found.key_sets[0].refused_because)
    whole = path.read_bytes().splitlines(keepends=True)
    long_ago = json.loads(whole[0]) | {"at": "2001-01-01T00:00:00Z"}
    path.write_bytes(json.dumps(long_ago).encode() + b"\n" + whole[1])
    found = check_receipts(path, lenient)  # type: ignore[arg-type]
    assert "not in force" in " ".join(found.key_sets[0].refused_because)
