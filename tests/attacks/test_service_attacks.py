"""What a server, its operator, or whoever took over a part of it learns of prompts and answers: nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.enclave.sandbox.inside import need_walls
from tests.inference.service.engines import engine
from tests.inference.service.real import NONCE
from tests.inference.service.test_slow_clients import SCOPE, Caller
from tests.inference.service.world import EchoApp, ask, world

from cloister.crypto import sha256
from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH, Asking, KeySet, Published, RequestHead
from cloister.inference.service import Client, Limits
from cloister.inference.service.pipe import WINDOW, Kind, Pipe, frame

PROMPT = "canary-prompt-7f3a91c2"
ANSWER = "canary-answer-c40d5be8"

FRONT = """
import sys
from tests.enclave.doubles import AttesterDouble
from cloister.inference.service import Address, LoopbackEngine, Service, serving
source = LoopbackEngine(Address.parse(sys.argv[1]), ("big",))
with Service(source, attester=AttesterDouble(), clients=None, allow_swap=True) as service, serving(service) as url:
    print(url, service.pid, flush=True)
    sys.stdin.readline()
    print(service.stats(), flush=True)
"""


class Tap:
    """A TCP proxy that keeps every byte that passes: what a packet capture would hold."""

    def __init__(self, port: int) -> None:
        self._port, self.bytes = port, bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.close()


def memory_of(pid: int) -> Iterator[bytes]:
    """Yield what is in a process's writable memory, as a core file would hold it."""
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None:
                continue
            start, end = (int(each, 16) for each in found.groups())
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                yield memory.read(end - start)


def finds(pid: int, *canaries: str) -> set[str]:
    """Return those canaries that lie in a process's memory, as text or as its base64."""
    forms = {name: (name.encode(), base64.b64encode(name.encode())[:-4]) for name in canaries}
    found: set[str] = set()
    for part in memory_of(pid):
        found |= {name for name, ways in forms.items() if any(way in part for way in ways)}
    return found


def readable(pid: int) -> bool:
    try:
        next(memory_of(pid))
    except (OSError, StopIteration):
        return False
    return True


@pytest.mark.slow
def test_canaries_are_nowhere_outside_the_worker(tmp_path: Path) -> None:
    """Prompt and answer are searched for in what went over the wire, in what the server printed, in the memory
    of its process while it serves and after its worker died; the worker leaves no core file. Controls: the
    search finds both here, where the client is, and the engine saw them."""
    need_walls()
    with engine() as (double, address):
        process = subprocess.Popen(
            [sys.executable, "-c", FRONT, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )
        try:
            assert process.stdout is not None
            url, guardian = process.stdout.readline().split()
            tap = Tap(int(url.rsplit(":", 1)[1]))
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{tap.port}", timeout=60, trust_env=False
            ) as client:
                for _ in range(3):
                    assert f"{ANSWER} " in asked(client, f"{PROMPT} {ANSWER}")
                stream = open_stream(client, f"forever {PROMPT} {ANSWER}")
                next(stream)
                during = finds(process.pid, PROMPT, ANSWER) if readable(process.pid) else None
                stream.close()  # type: ignore[attr-defined]
            worker = int(Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()[0])
            limits = Path(f"/proc/{worker}/limits").read_text() if os.geteuid() == 0 else "core file size 0 0"
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{worker}").exists())
            after = finds(process.pid, PROMPT, ANSWER) if readable(process.pid) else None
            said, complained = process.communicate("\n", timeout=60)
            tap.close()
        finally:
            process.kill()
            process.communicate()
    assert any(PROMPT in body.decode() for _, _, body in double.came)
    assert finds(os.getpid(), PROMPT, ANSWER) == {PROMPT, ANSWER}
    if during is None:
        pytest.skip("this user may not read the memory of its own processes")
    assert (during, after) == (set(), set())
    assert len(tap.bytes) > 10_000
    for canary in (PROMPT, ANSWER):
        assert canary.encode() not in tap.bytes
        assert canary not in said + complained
    assert complained == ""
    assert re.search(r"core file size\s+0\s+0", limits)
    assert list(tmp_path.iterdir()) == []  # no core file


def keys_of(client: httpx2.Client) -> KeySet:
    return KeySet.from_bytes(
        Published.from_json(client.get(KEYS_PATH, params={"nonce": NONCE.hex()}).content).keys
    )


def open_stream(client: httpx2.Client, text: str) -> Iterator[str]:
    body = {"model": "big", "messages": [{"role": "user", "content": text}], "stream": True}
    asking = Asking(keys_of(client), RequestHead("POST", "/v1/chat/completions"), json.dumps(body).encode())
    with client.stream("POST", EXCHANGE_PATH, content=asking.request) as answer:
        for part in answer.iter_raw():
            for event in asking.feed(part):
                if isinstance(event, bytes) and event:
                    yield event.decode()


def asked(client: httpx2.Client, text: str) -> str:
    return "".join(open_stream(client, text))


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_what_a_model_prints_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A released module whose code prints the rows it sees: the service's operator reads none of them."""
    import pyarrow as pa
    from tests.inference.service.printing import printing_model
    from tests.inference.service.real import running

    from cloister.inference.torchpredict import torch_predictor

    source, row = printing_model(tmp_path)
    with running(source) as here:
        status, body = here.ask("/v1/score", {"rows": [row]})
        assert status == 200, body
        process = here.service._process
        assert process is not None
    assert process.last_words() == ""
    capfd.readouterr()
    with pytest.warns(UserWarning, match="canary"):
        torch_predictor(source.artifact, source.code, scratch=tmp_path).predict(pa.Table.from_pylist([row]))
    assert "canary" in capfd.readouterr().out  # the control: without walls it prints


def test_plaintext_is_refused_unread() -> None:
    """A client that forgot its proxy: the refusal comes before its prompt was sent, and the connection ends."""
    from tests.inference.artifacts import make_artifact
    from tests.inference.service.real import running

    from cloister.inference.service import TableModel
    from cloister.learning.sections import ModelSection

    with running(TableModel(make_artifact("boolean", ModelSection(kind="logistic")))) as here:
        host, port = here.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            plain.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 1000000\r\n\r\n"
            )
            answer = b""
            while part := plain.recv(1 << 16):
                answer += part
        assert answer.startswith(b"HTTP/1.1 403")
        assert b'"code":"plaintext_refused"' in answer
        assert here.service.stats()["plaintext"] == 1


def test_a_request_is_answered_once_however_often_it_is_sent() -> None:
    async def main() -> None:
        async with world() as here:
            request = Asking(await here.keys(), RequestHead("POST", "/echo"), b"x").request
            answers = await asyncio.gather(
                *(here.client.post(EXCHANGE_PATH, content=request) for _ in range(5))
            )
            assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
            assert len(here.application.asked) == 1

    asyncio.run(main())


def test_from_outside_nobody_sees_who_was_let_in() -> None:
    """An answer to a stranger has the size of an answer to a client, and the server's counts are the same."""

    async def main() -> None:
        known = [Client("ward", sha256(b"clst-a").hex())]
        async with world(clients=known) as here:
            sizes = set()
            for token in ("clst-a", "clst-b", ""):
                head = RequestHead("POST", "/echo", credential=token)
                request = Asking(await here.keys(), head, b"x").request
                answer = await here.client.post(EXCHANGE_PATH, content=request)
                sizes.add((len(request), answer.status_code, len(answer.content), str(answer.headers)))
            assert len(sizes) == 1
            assert here.front.stats() == {"attested": 3, "answered": 3, "open": 0}

    asyncio.run(main())


# --- whoever took over the worker


class Worker:
    """The worker's end of a pipe, in the hands of an attacker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.opened = sock, asyncio.Event()
        self.number = 0
        self.came: list[tuple[Kind, int, bytes]] = []
        self.pipe = Pipe(sock, self._frame, lambda: None)
        self.pipe.attach(asyncio.get_running_loop())

    def _frame(self, kind: Kind, number: int, payload: bytes) -> None:
        self.came.append((kind, number, payload))
        if kind in (Kind.EOF, Kind.KEYS):
            self.number = number
            self.opened.set()


@contextlib.asynccontextmanager
async def taken_over(limits: Limits | None = None) -> Any:
    from tests.enclave.doubles import AttesterDouble

    from cloister.inference.service.front import Front

    ours, theirs = socket.socketpair()
    worker = Worker(theirs)
    front = Front(ours, AttesterDouble(), limits or Limits(), say=lambda _: None, on_lost=lambda: None)
    transport = httpx2.ASGITransport(app=front)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        yield front, worker, client
        front.close()
        worker.pipe.close()
        await asyncio.sleep(0.01)


def test_a_worker_that_floods_fills_no_more_than_a_window() -> None:
    async def main() -> None:
        async with taken_over() as (front, worker, _):
            caller = Caller(b"x")
            caller.reads.clear()
            task = asyncio.ensure_future(front(dict(SCOPE), caller.receive, caller.send))
            await asyncio.wait_for(worker.opened.wait(), 20)
            worker.pipe.send(frame(Kind.DATA, worker.number, bytes(WINDOW)) * 8)
            await asyncio.wait_for(worker.pipe.drained(), 20)
            caller.reads.set()
            await asyncio.wait_for(task, 20)
            assert sum(len(message.get("body", b"")) for message in caller.sent) <= WINDOW
            assert front.stats() == {"cut": 1, "open": 0}

    asyncio.run(main())


@pytest.mark.parametrize(
    "said",
    [
        [(Kind.DATA, 99, b"x"), (Kind.END, 99, b""), (Kind.REFUSED, 98, b"\x01"), (Kind.KEYSET, 97, b"x")],
        [(Kind.OPEN, 1, b""), (Kind.EOF, 2, b""), (Kind.CREDIT, 3, b"\xff" * 9)],
    ],
)
def test_a_worker_that_speaks_of_streams_that_are_none(said: list[tuple[Kind, int, bytes]]) -> None:
    async def main() -> None:
        async with taken_over() as (front, worker, client):
            worker.pipe.send(b"".join(frame(kind, number + 1000, data) for kind, number, data in said))
            task = asyncio.ensure_future(client.post(EXCHANGE_PATH, content=b"x"))
            await asyncio.wait_for(worker.opened.wait(), 20)
            worker.pipe.send(frame(Kind.DATA, worker.number, b"answer") + frame(Kind.END, worker.number))
            assert (await asyncio.wait_for(task, 20)).content == b"answer"
            assert front.stats()["answered"] == 1

    asyncio.run(main())


@pytest.mark.parametrize("code", [b"", b"\x00", b"\x09", b"\xff\xff"])
def test_a_worker_that_refuses_for_no_reason_that_is_known(code: bytes) -> None:
    async def main() -> None:
        async with taken_over() as (_, worker, client):
            task = asyncio.ensure_future(client.post(EXCHANGE_PATH, content=b"x"))
            await asyncio.wait_for(worker.opened.wait(), 20)
            worker.pipe.send(frame(Kind.REFUSED, worker.number, code))
            answer = await asyncio.wait_for(task, 20)
            assert (answer.status_code, answer.json()) == (400, {"refused": "request"})

    asyncio.run(main())


def test_a_worker_has_the_machine_vouch_for_no_text_of_its_own() -> None:
    """What is no key set gets no evidence: report data is the front's to write."""

    async def main() -> None:
        async with taken_over() as (_, worker, client):
            task = asyncio.ensure_future(client.get(KEYS_PATH, params={"nonce": NONCE.hex()}))
            await asyncio.wait_for(worker.opened.wait(), 20)
            worker.pipe.send(frame(Kind.KEYSET, worker.number, b'{"purpose": "cloister/key-release/v1"}'))
            assert (await asyncio.wait_for(task, 20)).status_code == 503

    asyncio.run(main())


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_that_dies_ends_every_stream(begun: bool) -> None:
    async def main() -> None:
        async with taken_over() as (front, worker, client):
            task = asyncio.ensure_future(client.post(EXCHANGE_PATH, content=b"x"))
            await asyncio.wait_for(worker.opened.wait(), 20)
            if begun:
                worker.pipe.send(frame(Kind.DATA, worker.number, b"half an answer"))
                await asyncio.sleep(0.1)
            worker.sock.close()
            answer = await asyncio.wait_for(task, 20)
            assert answer.status_code == (200 if begun else 503)
            assert (await client.post(EXCHANGE_PATH, content=b"x")).status_code == 503
            assert (await client.get(KEYS_PATH, params={"nonce": NONCE.hex()})).status_code == 503
            assert front.stats()["open"] == 0

    asyncio.run(main())


# --- whoever took over the front


def test_a_front_that_breaks_every_rule_gets_nothing_but_its_own_refusals() -> None:
    """The pipe's other end in the hands of an attacker: the door answers honest streams all the same."""

    async def main() -> None:
        async with world(EchoApp()) as here:
            pipe = here.front._pipe
            sane = Asking(await here.keys(), RequestHead("POST", "/echo"), b"x").request
            for number, frames in enumerate(
                [
                    [(Kind.OPEN, b""), (Kind.OPEN, b"")],
                    [(Kind.OPEN, b""), (Kind.EOF, b"")],
                    [(Kind.OPEN, b""), (Kind.DATA, os.urandom(5000)), (Kind.EOF, b"")],
                    [(Kind.OPEN, b""), (Kind.DATA, sane + b"more"), (Kind.EOF, b""), (Kind.EOF, b"")],
                    [(Kind.OPEN, b""), (Kind.CREDIT, b""), (Kind.CREDIT, b"\xff" * 4)],
                    [(Kind.DATA, sane), (Kind.EOF, b""), (Kind.CANCEL, b"")],
                    [(Kind.OPEN, b""), (Kind.KEYSET, b"x"), (Kind.END, b""), (Kind.REFUSED, b"\x01")],
                ],
                1 << 20,
            ):
                pipe.send(b"".join(frame(kind, number, data) for kind, data in frames))
            assert (await ask(here, "/echo", b"still here"))[1] == b"echo still here"
            assert [request.body for request in here.application.asked] == [b"still here"]

    asyncio.run(main())


def test_a_front_cannot_make_the_worker_hold_more_than_its_limit() -> None:
    async def main() -> None:
        async with world(limits=Limits(held=1 << 16, streams=64)) as here:
            pipe = here.front._pipe
            for number in range(1 << 20, (1 << 20) + 60):
                pipe.send(frame(Kind.OPEN, number) + frame(Kind.DATA, number, bytes(1000)))
            await asyncio.sleep(0.1)
            assert here.door._held <= 1 << 16
            pipe.send(frame(Kind.OPEN, 5) + frame(Kind.DATA, 5, bytes(1 << 17)))
            await asyncio.sleep(0.1)
            assert here.door._held <= 1 << 16
            for number in range(1 << 20, (1 << 20) + 60):
                pipe.send(frame(Kind.CANCEL, number))
            assert (await ask(here, "/echo", b"x"))[1] == b"echo x"

    asyncio.run(main())


def test_strangers_cannot_fill_the_worker() -> None:
    """What nobody let in sends is read and dropped: many of them leave the clients' room as it was."""

    async def main() -> None:
        known = [Client("ward", sha256(b"clst-a").hex())]
        async with world(clients=known, limits=Limits(held=200_000, body=1 << 20)) as here:
            keys = await here.keys()
            pipe = here.front._pipe
            for number in range(1 << 20, (1 << 20) + 10):
                asking = Asking(keys, RequestHead("POST", "/echo", credential="clst-b"), bytes(100_000))
                pipe.send(frame(Kind.OPEN, number) + frame(Kind.DATA, number, asking.request[:-1]))
            mine = Asking(keys, RequestHead("POST", "/echo", credential="clst-a"), bytes(100_000))
            answer = await here.client.post(EXCHANGE_PATH, content=mine.request)
            assert answer.status_code == 200, answer.content
            assert b"".join(mine.feed(answer.content)[1:]) == b"echo " + bytes(100_000)  # type: ignore[arg-type]
            theirs = Asking(keys, RequestHead("POST", "/echo", credential="clst-b"), bytes(100_000))
            answer = await here.client.post(EXCHANGE_PATH, content=theirs.request)
            head = theirs.feed(answer.content)[0]
            theirs.finish()
            assert getattr(head, "status", 0) == 401
            assert [request.client for request in here.application.asked] == ["ward"]

    asyncio.run(main())


def test_one_client_cannot_take_the_places_of_all() -> None:
    async def main() -> None:
        known = [Client("ward", sha256(b"clst-a").hex()), Client("lab", sha256(b"clst-b").hex())]
        gate = asyncio.Event()
        async with world(EchoApp(gate=gate.wait), clients=known, limits=Limits(share=3)) as here:
            keys = await here.keys()

            async def status(token: str) -> int:
                asking = Asking(keys, RequestHead("POST", "/echo", credential=token), b"x")
                answer = await here.client.post(EXCHANGE_PATH, content=asking.request)
                head = asking.feed(answer.content)[0]
                asking.finish()
                return getattr(head, "status", 0)

            waiting = [asyncio.ensure_future(status("clst-a")) for _ in range(3)]
            while len(here.application.asked) < 3:
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(status("clst-a"), 10) == 429
            waiting.append(asyncio.ensure_future(status("clst-b")))
            while len(here.application.asked) < 4:
                await asyncio.sleep(0.01)
            gate.set()
            assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [200] * 4
            assert await asyncio.wait_for(status("clst-a"), 10) == 200

    asyncio.run(main())
