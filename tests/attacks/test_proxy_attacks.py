"""Attacks on a client of private inference: by the service, by whoever sits between, by a relay, by web pages.

Each of them would like a prompt, a token, or an application that believes a forged answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from tests.enclave.doubles import AppraiserDouble, AttesterDouble
from tests.inference.client.doubles import ServiceDouble, now, proxied, run, running, scripted, verifier
from tests.inference.openai.engine import chat_body

from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.inference.client import AsyncPrivateClient, ExchangeError, PrivateClient, Relay
from cloister.inference.client.asgi import Incoming, Receive, Scope, Send
from cloister.inference.exchange import KeyRing, Published, keys_report_data

PROMPT, TOKEN, ANSWER = "canary-prompt", "canary-token", "canary-answer"
BODY = chat_body(messages=[{"role": "user", "content": PROMPT}])
CHAT = "/v1/chat/completions"


class Listener:
    """A server that is none of ours: writes down every byte that it gets, and answers what it likes."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"{}") -> None:
        self.status, self.headers, self.body = status, headers or {"content-type": "application/json"}, body
        self.heard = bytearray()
        self.times = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.times += 1
        self.heard += (
            f"{scope['method']} {scope['path']} {scope['query_string']!r} {scope['headers']!r}".encode()
        )
        self.heard += await Incoming(receive, 64 << 20).body()
        lines = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": lines})
        await send({"type": "http.response.body", "body": self.body})


@pytest.fixture
def service() -> Iterator[tuple[ServiceDouble, str]]:
    _, double = scripted(ANSWER)
    with running(double) as url:
        yield double, url


def refused(
    url: str,
    expected: type[Exception] | tuple[type[Exception], ...],
    match: str | None = None,
    **changes: Any,
) -> None:
    """Ask by both clients; both must refuse, without a secret in what they say."""
    said = ""
    with PrivateClient(url, verifier(), token=TOKEN, **changes) as client:
        with pytest.raises(expected, match=match) as caught:
            client.post(CHAT, json=BODY)
        said += repr(caught.value) + str(caught.value)

    async def twin() -> str:
        async with AsyncPrivateClient(url, verifier(), token=TOKEN, **changes) as client:
            with pytest.raises(expected, match=match) as caught:
                await client.post(CHAT, json=BODY)
            return repr(caught.value) + str(caught.value)

    said += run(twin())
    assert "canary" not in said
    assert said.isprintable()


OPENAI_ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "trust me"}}]}).encode()


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"content-type": "application/json"}, OPENAI_ANSWER),
        (200, {"content-type": "application/json"}, b'{"keys": "", "evidence": ""}'),
        (200, {"content-type": "text/html"}, b"<html>log in</html>"),
        (404, {"content-type": "application/json"}, b'{"error": {"message": "no such path"}}'),
        (401, {"www-authenticate": "Bearer"}, b""),
        (302, {"location": "http://127.0.0.1:9/"}, b""),
        (500, {"content-type": "text/plain"}, b"send it in the clear, please"),
        (200, {"content-type": "application/json"}, b"x" * (20 << 20)),
        (200, {"content-type": "application/json"}, b'{"keys": "", "evidence": "", "\\u001b[2J": 1}'),
    ],
)
def test_a_server_without_evidence_gets_neither_prompt_nor_token(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    listener = Listener(status, headers, body)
    with running(listener) as url:
        refused(url, (ExchangeError, ProtocolError))
        with pytest.raises((ExchangeError, ProtocolError)), proxied(url, token=TOKEN):
            pass
    assert listener.times == 3
    assert b"canary" not in listener.heard


def _other_ring() -> KeyRing:
    return KeyRing("scripted", "ab" * 32, lifetime=3600, overlap=600)


def _swapped_keys(document: Published, nonce: bytes) -> Published:
    return msgspec.structs.replace(document, keys=_other_ring().current(now()).to_bytes())


def _own_evidence(document: Published, nonce: bytes) -> Published:
    keys = _other_ring().current(now())
    evidence = AttesterDouble(maker=b"the attacker").attest(keys_report_data(nonce, keys))
    return Published(keys.to_bytes(), evidence.to_json())


def _software(document: Published, nonce: bytes) -> Published:
    keys = _other_ring().current(now())
    return Published(
        keys.to_bytes(), AttesterDouble(hardware=False).attest(keys_report_data(nonce, keys)).to_json()
    )


def _other_purpose(document: Published, nonce: bytes) -> Published:
    from cloister.enclave.evidence import report_data
    from cloister.inference.exchange import KeySet

    digest = KeySet.from_bytes(document.keys).digest
    made = AttesterDouble().attest(report_data("cloister/key-release/v1", nonce, digest))
    return Published(document.keys, made.to_json())


def _longer_life(document: Published, nonce: bytes) -> Published:
    keys = msgspec.json.decode(document.keys)
    keys["not_after"] = "2099-01-01T00:00:00Z"
    return msgspec.structs.replace(document, keys=msgspec.json.encode(keys, order="deterministic"))


@pytest.mark.parametrize("lie", [_swapped_keys, _own_evidence, _software, _other_purpose, _longer_life])
def test_keys_that_evidence_does_not_vouch_for(
    service: tuple[ServiceDouble, str], lie: Callable[[Published, bytes], Published]
) -> None:
    double, url = service
    double.sabotage.published = lie
    refused(url, PolicyRefused, "evidence was refused")
    with pytest.raises(PolicyRefused), proxied(url):
        pass
    assert {method for method, _, _ in double.outside} == {"GET"}


def test_old_evidence_played_again(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    recorded: list[Published] = []

    def replay(document: Published, nonce: bytes) -> Published:
        recorded.append(document)
        return recorded[0]

    double.sabotage.published = replay
    with PrivateClient(url, verifier()) as client:
        assert client.post(CHAT, json=BODY).status_code == 200
    refused(url, PolicyRefused, "freshness")
    assert len(double.asked) == 1


def test_evidence_passed_on_from_an_honest_service_is_of_no_use() -> None:
    """A middleman shows the honest service's keys and evidence: all that it gets is what it cannot open."""
    _, honest = scripted(ANSWER)
    with running(honest) as url:

        class Middleman(ServiceDouble):
            async def _keys(self, scope: Scope, send: Send) -> None:
                query = scope["query_string"].decode()
                async with httpx2.AsyncClient(trust_env=False) as client:
                    shown = await client.get(f"{url}{scope['path']}?{query}")
                lines = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 200, "headers": lines})
                await send({"type": "http.response.body", "body": shown.content})

        middleman = Middleman(honest.app)
        with running(middleman) as front:
            refused(front, ExchangeError, "own keys")
        assert middleman.asked == []
        assert b"canary" not in middleman.wire
        assert len([1 for method, _, _ in middleman.outside if method == "POST"]) == 4  # each client: twice


OCTETS = [(b"content-type", b"application/octet-stream")]
JSON = [(b"content-type", b"application/json")]


PLAIN: list[tuple[int, list[tuple[bytes, bytes]], bytes]] = [
    (200, JSON, OPENAI_ANSWER),
    (200, OCTETS, OPENAI_ANSWER),
    (200, OCTETS, b""),
    (200, OCTETS, b"\x01" + bytes(400)),
    (200, [(b"content-type", b"text/event-stream")], b'data: {"choices": []}\n\ndata: [DONE]\n\n'),
    (400, JSON, b'{"error": {"message": "give me your key"}}'),
    (401, JSON, b'{"error": {"message": "give me your key"}}'),
    (500, [(b"content-type", b"text/plain")], b"x" * 100_000),
    (200, JSON, b'{"refused": "busy"}'),
    (503, JSON, b'{"refused": "because"}'),
    (503, JSON, b'{"refused": "busy", "more": 1}'),
    (204, [], b""),
]


def test_an_answer_in_the_clear_is_none(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    with PrivateClient(url, verifier()) as client, proxied(url) as proxy:
        client.attest()
        for double.sabotage.plain in PLAIN:
            with pytest.raises(ExchangeError) as caught:
                client.post(CHAT, json=BODY)
            answer = httpx2.post(f"{proxy.address}{CHAT}", json=BODY)
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] in ("not_private", "exchange_broken")
            assert answer.headers["x-should-retry"] == "false"
            assert "trust me" not in str(caught.value) + answer.text
            assert "give me" not in str(caught.value) + answer.text


def test_redirects_are_not_followed(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    trap = Listener()
    with running(trap) as elsewhere, PrivateClient(url, verifier()) as http, proxied(url) as proxy:
        client = openai.OpenAI(base_url="http://private/v1", http_client=http, api_key=TOKEN, max_retries=0)
        http.attest()
        for status in (301, 302, 303, 307, 308):
            double.sabotage.plain = (status, [(b"location", elsewhere.encode())], b"")
            with pytest.raises(openai.APIConnectionError) as caught:
                client.chat.completions.create(**BODY)
            assert isinstance(caught.value.__cause__, ExchangeError)
            assert httpx2.post(f"{proxy.address}{CHAT}", json=BODY, follow_redirects=True).status_code == 502
            with pytest.raises(ExchangeError):
                http.post(CHAT, json=BODY, follow_redirects=True)
    assert trap.times == 0


def test_a_redirect_of_the_keys_is_not_followed(service: tuple[ServiceDouble, str]) -> None:
    _, url = service
    with running(Listener(307, {"location": f"{url}/.well-known/cloister/keys"})) as elsewhere:
        refused(elsewhere, ExchangeError, "no keys")


def _answers(client: PrivateClient, *, stream: bool) -> bytes:
    with client.stream("POST", CHAT, json={**BODY, "stream": stream}) as response:
        return b"".join(response.iter_bytes())


@pytest.mark.parametrize("stream", [False, True])
def test_cut_at_every_piece(service: tuple[ServiceDouble, str], stream: bool) -> None:
    """The service's front ends the answer, with a proper end of its HTTP and without."""
    double, url = service
    pieces: list[int] = []

    def count(number: int, piece: bytes) -> bytes:
        pieces.append(number)
        return piece

    with PrivateClient(url, verifier()) as client, proxied(url) as proxy:
        double.sabotage.alter = count
        whole = _answers(client, stream=stream)
        assert ANSWER.encode() in whole or stream
        for end in range(len(pieces)):
            for cut in (None, b""):
                double.sabotage.alter = lambda number, piece, end=end, cut=cut: piece if number < end else cut  # type: ignore[misc]
                with pytest.raises(httpx2.TransportError):
                    _answers(client, stream=stream)
            if not stream:
                answer = httpx2.post(f"{proxy.address}{CHAT}", json=BODY)
                assert (answer.status_code, answer.json()["error"]["code"]) == (502, "exchange_broken")
            elif end % 4 == 0:
                with openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="x", max_retries=0) as official:
                    with pytest.raises(openai.APIError) as caught:
                        list(official.chat.completions.create(**BODY, stream=True))
                    if end:  # after the head: an error event in the stream
                        assert caught.value.code == "exchange_broken"


def test_cut_inside_pieces_and_altered(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    changes: list[Callable[[int, bytes], bytes | None]] = [
        lambda number, piece: piece[:-1],
        lambda number, piece: piece[:10] if number == 1 else piece,
        lambda number, piece: piece + b"\0" if number == 2 else piece,
        lambda number, piece: piece + piece if number == 1 else piece,
        lambda number, piece: b"" if number == 1 else piece,
        lambda number, piece: piece[:-1] + bytes([piece[-1] ^ 1]) if number == 0 else piece,
        lambda number, piece: bytes([piece[0] ^ 0x80]) + piece[1:] if number == 1 else piece,
        lambda number, piece: bytes([piece[0] ^ 0x80]) + piece[1:] if number == 2 else piece,
        lambda number, piece: b"\x02" + piece[1:] if number == 0 else piece,
        lambda number, piece: piece + bytes(10_000_000) if number == 2 else piece,
    ]
    with PrivateClient(url, verifier()) as client:
        client.attest()
        for change in changes:
            double.sabotage.alter = change
            with pytest.raises(ExchangeError) as caught:
                client.post(CHAT, json=BODY)
            assert caught.value.code == "exchange_broken"


def until_cut(response: httpx2.Response) -> bytes:
    """Read a stream that must break off, and return what came before."""
    seen = bytearray()
    try:
        for piece in response.iter_bytes():
            seen += piece
    except httpx2.TransportError:
        return bytes(seen)
    raise AssertionError("it ended as if it were whole")


def test_done_is_not_seen_without_the_end(service: tuple[ServiceDouble, str]) -> None:
    """An application that takes [DONE] for the end has a complete answer whose receipt was checked."""
    double, url = service
    last: list[int] = []
    with PrivateClient(url, verifier()) as client, proxied(url) as proxy:
        double.sabotage.alter = lambda number, piece: last.append(number) or piece  # type: ignore[func-returns-value]
        _answers(client, stream=True)
        ending = last[-1]
        double.sabotage.alter = lambda number, piece: piece if number < ending else None
        with client.stream("POST", CHAT, json={**BODY, "stream": True}) as response:
            seen = until_cut(response)
        assert b"finish_reason" in seen
        assert b"[DONE]" not in seen
        with httpx2.stream("POST", f"{proxy.address}{CHAT}", json={**BODY, "stream": True}) as response:
            heard = until_cut(response)
        assert b"[DONE]" not in heard
        assert b"exchange_broken" in heard


def test_the_answer_to_somebody_else(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    recorded: list[bytes] = []
    with PrivateClient(url, verifier()) as one, PrivateClient(url, verifier()) as two:
        double.sabotage.alter = lambda number, piece: recorded.append(piece) or piece  # type: ignore[func-returns-value]
        one.post(CHAT, json=BODY)
        for victim in (one, two):
            double.sabotage.alter = lambda number, piece: recorded[number]
            with pytest.raises(ExchangeError):
                victim.post(CHAT, json=BODY)


def test_forged_refusals_cost_one_more_sealed_request_at_most(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    with PrivateClient(url, verifier(), token=TOKEN) as client:
        client.attest()
        double.sabotage.plain = (409, JSON, b'{"refused": "stale-key"}')
        before = len(double.outside)
        with pytest.raises(ExchangeError):
            client.post(CHAT, json=BODY)
        sent = [path for _, path, _ in double.outside[before:]]
        assert [path.rpartition("/")[2] for path in sent] == ["exchange", "keys", "exchange"]
        assert b"canary" not in double.wire
        double.sabotage.published = _swapped_keys
        with pytest.raises(PolicyRefused):  # a refusal does not lead to worse keys
            client.post(CHAT, json=BODY)
        assert [path.rpartition("/")[2] for _, path, _ in double.outside[before + 3 :]] == [
            "exchange",
            "keys",
        ]


class _Endless(httpx2.SyncByteStream):
    read = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.read += 1 << 16
            yield bytes(1 << 16)


def test_endless_answers_are_not_read_to_their_end() -> None:
    from cloister.inference.client.transport import PrivateTransport

    for status in (200, 500):
        endless = _Endless()
        inner = httpx2.MockTransport(lambda request, s=status, e=endless: httpx2.Response(s, stream=e))  # type: ignore[misc]
        transport = PrivateTransport("http://service.example", verifier(), inner)
        with pytest.raises(ExchangeError, match="longer"):
            transport.attest()
        assert endless.read <= 16 << 20


STRANGERS = [
    {"host": "evil.example"},
    {"host": "evil.example:8100"},
    {"host": "127.0.0.1.evil.example"},
    {"host": "localhost.evil.example:1"},
    {"host": ""},
    {"host": "192.168.0.1"},
    {"host": "10.0.0.1"},
    {"host": "[::2]"},
    {"host": "127.0.0.1@evil.example"},
    {"origin": "http://evil.example"},
    {"origin": "https://localhost"},
    {"origin": "http://localhost:3000"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


def test_web_pages_and_rebound_names_get_nothing(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    with proxied(url, token=TOKEN) as proxy, httpx2.Client(base_url=proxy.address) as browser:
        for headers in STRANGERS:
            for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", CHAT), ("OPTIONS", CHAT)):
                body = BODY if method == "POST" else None
                answer = browser.request(method, path, headers=headers, json=body)
                assert answer.status_code == 403, (method, path, headers)
                assert "scripted" not in answer.text
                assert not [name for name in answer.headers if name.startswith("access-control")]
    assert double.asked == []


def test_its_own_names_are_answered(service: tuple[ServiceDouble, str]) -> None:
    _, url = service
    with proxied(url) as proxy, httpx2.Client(base_url=proxy.address) as local:
        port = proxy.address.rpartition(":")[2]
        for host in (
            f"127.0.0.1:{port}",
            f"localhost:{port}",
            f"LOCALHOST:{port}",
            f"[::1]:{port}",
            "localhost",
        ):
            assert local.get("/v1/models", headers={"host": host}).status_code == 200
        own = {"origin": proxy.address, "sec-fetch-site": "same-origin"}
        assert local.get("/v1/models", headers=own).status_code == 200
        assert local.get("/", headers={"sec-fetch-site": "none"}).status_code == 200


def test_headers_of_the_answer_open_no_door(service: tuple[ServiceDouble, str]) -> None:
    """Even the verified application must not let web pages in, or leave cookies."""
    from cloister.inference.application import Reply, Request

    class Generous:
        async def __call__(self, request: Request) -> Reply:
            headers = {
                "content-type": "application/json",
                "access-control-allow-origin": "*",
                "set-cookie": "a=b",
                "content-length": "1",
                "transfer-encoding": "chunked",
                "x-request-id": "7",
            }
            return Reply(200, headers, b'{"a": 1}')

        def aclose(self) -> None:
            pass

    with running(ServiceDouble(Generous())) as url, proxied(url) as proxy:
        answer = httpx2.get(f"{proxy.address}/v1/models")
        assert answer.json() == {"a": 1}
        assert answer.headers["x-request-id"] == "7"
        assert not {"access-control-allow-origin", "set-cookie"} & set(answer.headers)


def test_a_relay_that_turns_on_its_clients(service: tuple[ServiceDouble, str]) -> None:
    """It sees nothing, opens nothing, and what it alters, swaps or repeats is noticed."""
    double, url = service

    class Spy(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self.inner = httpx2.AsyncHTTPTransport(trust_env=False)
            self.seen = bytearray()
            self.answers: list[bytes] = []
            self.play: Callable[[bytes], bytes] = lambda answer: answer

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            content = await request.aread()
            self.seen += content + repr(request.headers.raw).encode() + str(request.url).encode()
            response = await self.inner.handle_async_request(
                httpx2.Request(request.method, request.url, headers=request.headers, content=content)
            )
            body = await response.aread()
            self.seen += body
            if request.method == "POST":
                self.answers.append(body)
                body = self.play(body)
            headers = {"content-type": response.headers["content-type"]}
            return httpx2.Response(
                response.status_code,
                headers=headers,
                stream=_Bytes(body),
            )

        async def aclose(self) -> None:
            await self.inner.aclose()

    spy = Spy()
    with (
        running(Relay(url, inner=spy)) as relay,
        PrivateClient("http://service.example", verifier(), relay=relay, token=TOKEN) as client,
    ):
        assert ANSWER in client.post(CHAT, json=BODY).text
        assert b"canary" not in spy.seen
        plays: list[Callable[[bytes], bytes]] = [
            lambda answer: spy.answers[0],
            lambda answer: answer[:-1],
            lambda answer: answer[:40] + bytes([answer[40] ^ 1]) + answer[41:],
            lambda answer: OPENAI_ANSWER,
            lambda answer: b"",
        ]
        for play in plays:
            spy.play = play
            with pytest.raises(ExchangeError):
                client.post(CHAT, json=BODY)
    assert len(double.asked) == 6
    assert {address for _, _, seen in double.outside for address in seen} <= {
        b"host",
        b"content-type",
        b"content-length",
    }


class _Bytes(httpx2.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> Any:
        yield self._body


def test_a_request_that_was_recorded_is_answered_once(service: tuple[ServiceDouble, str]) -> None:
    double, url = service
    with PrivateClient(url, verifier()) as client:
        client.post(CHAT, json=BODY)
    recorded = bytes(double.wire[:1201])
    again = httpx2.post(
        f"{url}/.well-known/cloister/exchange",
        content=recorded,
        headers={"content-type": "application/octet-stream"},
    )
    assert (again.status_code, again.json()) == (400, {"refused": "request"})
    assert len(double.asked) == 1


def test_the_proxy_survives_a_fuzz_of_its_door(service: tuple[ServiceDouble, str]) -> None:
    """Requests that are none do not end it, and reach nobody."""
    double, url = service
    with proxied(url) as proxy:
        port = int(proxy.address.rpartition(":")[2])

        async def throw(data: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 5)
            writer.close()

        async def work() -> None:
            for data in (
                b"\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
                b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
                b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"GET /v1/%ff%00\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                b"\x16\x03\x01" + bytes(200),
            ):
                await throw(data)

        run(work())
        assert httpx2.get(f"{proxy.address}/v1/models").status_code == 200
    assert len([each for each in double.asked if each.path != "/v1/models"]) <= 1


def test_nothing_is_logged(
    service: tuple[ServiceDouble, str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    double, url = service
    with caplog.at_level("DEBUG"), proxied(url, token=TOKEN, receipts=tmp_path / "r.jsonl") as proxy:
        body = json.dumps(BODY).encode()
        from http.client import HTTPConnection

        connection = HTTPConnection("127.0.0.1", int(proxy.address.rpartition(":")[2]), timeout=5)
        connection.request("POST", f"{CHAT}?q=canary-query", body)
        with connection.getresponse() as answer:
            assert (answer.status, ANSWER.encode() in answer.read()) == (200, True)
        double.attester = AttesterDouble(hardware=False)
        double.rotate()
        connection.request("POST", CHAT, body)
        with connection.getresponse() as answer:
            assert (answer.status, b"evidence_refused" in answer.read()) == (502, True)
        connection.close()
        assert "canary" not in " ".join(record.getMessage() for record in caplog.records)
    captured = capfd.readouterr()
    assert "canary" not in captured.out + captured.err
    assert b"canary" not in (tmp_path / "r.jsonl").read_bytes()


def test_a_careless_appraiser_is_made_up_for() -> None:
    """A policy that overlooks report data does not make foreign keys count."""
    _, double = scripted(ANSWER)
    double.sabotage.published = _swapped_keys
    with running(double) as url:
        judge = verifier(appraise=AppraiserDouble(unbound=True))
        with (
            PrivateClient(url, judge) as client,
            pytest.raises(CloisterError, match="does not carry these keys"),
        ):
            client.post(CHAT, json=BODY)
    assert double.asked == []
