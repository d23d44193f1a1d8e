"""`cloister proxy`, `ask`, `relay` and `receipts`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.cli.conftest import Command
from tests.enclave.attester.machine import needs_swtpm
from tests.enclave.doubles import AppraiserDouble, AttesterDouble
from tests.inference.client.doubles import ServiceDouble, running, scripted
from tests.inference.openai.engine import ScriptedEngine, chat_body
from tests.inference.service.test_server import certificate

from cloister.crypto import Identity, open_bytes
from cloister.inference.application import Reply, Request

SOFT = 'kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n'

World = tuple[ScriptedEngine, ServiceDouble, str]


@pytest.fixture
def world(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A service whose evidence the double's appraiser takes, whatever the policy."""
    monkeypatch.setattr("cloister.enclave.appraise.appraiser", lambda *policies: AppraiserDouble())
    engine, service = scripted("Hello there")
    with running(service) as url:
        yield engine, service, url


def test_ask_prints_the_answer_as_it_comes(world: World, cloister: Command) -> None:
    engine, service, url = world
    Path("token").write_text("clst-token\n")
    Path("token").chmod(0o600)
    done = cloister("ask", url, "hi?", "--token-file", "token", "--system", "Be short.", "--max-tokens", 50)
    assert (done.code, done.out) == (0, "Hello there\n")
    assert "scripted" in done.err
    assert "hardware" in done.err
    asked = json.loads(service.asked[0].body)
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    assert (asked["max_completion_tokens"], asked["model"]) == (50, "scripted")
    assert service.credentials == ["clst-token"]
    assert engine.running == 0


def test_ask_as_json_and_from_standard_input(
    world: World, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    _, service, url = world
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("grüß dich".encode())))
    done = cloister("ask", url, "-", "--json", "--receipts", "kept.jsonl")
    assert (done.json["answer"], done.json["protection"]) == ("Hello there", "hardware")
    assert json.loads(service.asked[0].body)["messages"][0]["content"] == "grüß dich"
    checked = cloister("receipts", "kept.jsonl", "--json")
    assert (checked.code, checked.json["receipts"], checked.json["accepted"]) == (0, 1, True)
    assert "accepted: 1 receipt verifies" in cloister("receipts", "kept.jsonl").out
    kept = Path("kept.jsonl").read_bytes()
    Path("kept.jsonl").write_bytes(kept[:-100] + b"\n")
    spoilt = cloister("receipts", "kept.jsonl")
    assert (spoilt.code, "REFUSED" in spoilt.out, "line 2" in spoilt.out) == (1, True, True)


def test_ask_for_somebody_else(world: World, people: dict[str, Identity], cloister: Command) -> None:
    _, _, url = world
    done = cloister("ask", url, "hi", "--to", "ben", "--out", "answer.sealed", "--json")
    assert (done.code, done.json["sealed_to"]) == (0, ["ben"])
    sealed = Path("answer.sealed").read_bytes()
    assert b"Hello" not in sealed
    opened = json.loads(open_bytes(sealed, people["ben"]))
    assert opened["choices"][0]["message"]["content"] == "Hello there"
    again = cloister("ask", url, "hi", "--to", "ben", "--out", "answer.sealed")
    assert (again.code, "exists" in again.err) == (2, True)
    assert cloister("ask", url, "hi", "--to", "ben").code == 2
    assert cloister("ask", url, "hi", "--out", "x").code == 2


def test_ask_steers_no_terminal(world: World, cloister: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, url = world
    engine.script = ("a\x1b[2Jb\u202ec\td",)
    assert "\x1b" in cloister("ask", url, "hi").out  # into a file or a pipe it goes as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = cloister("ask", url, "hi").out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.endswith("c\td\n")


@pytest.mark.parametrize("command", ["ask", "proxy"])
def test_a_service_that_does_not_pass_gets_nothing(world: World, cloister: Command, command: str) -> None:
    _, service, url = world
    text = ["canary"] if command == "ask" else ["--port", "0"]
    service.attester = AttesterDouble(hardware=False)
    refused = cloister(command, url, *text)
    assert (refused.code, "hardware" in refused.err) == (3, True)
    service.attester = AttesterDouble()
    other = cloister(command, url, *text, "--model-digest", "cd" * 32)
    assert (other.code, "another model" in other.err) == (1, True)
    assert service.asked == []


@pytest.mark.parametrize("command", ["ask", "proxy"])
def test_what_goes_wrong_is_one_sentence(world: World, cloister: Command, command: str) -> None:
    _, service, url = world
    text = ["hi"] if command == "ask" else ["--port", "0"]
    away = cloister(command, "http://127.0.0.1:9", *text)
    assert (away.code, "cannot be reached" in away.err) == (2, True)
    service.sabotage.keys_status = 404
    none = cloister(command, url, *text)
    assert (none.code, "shows no keys" in none.err) == (1, True)
    service.sabotage.keys_status = 503
    busy = cloister(command, url, *text)
    assert (busy.code, "can make no evidence now" in busy.err, "address" in busy.err) == (2, True, False)
    assert cloister(command, "https://x/v1", *text).code == 2
    assert "no path" in cloister(command, "https://x/v1", *text).err
    Path("empty").write_text("\n")
    assert "holds no token" in cloister(command, url, *text, "--token-file", "empty").err
    assert cloister(command, url, *text, "--policy", "none.toml").code == 2
    assert "PEM" in cloister(command, url, *text, "--tls-ca", "empty").err
    Path("rules.toml").write_text("nonsense = 1\n")
    assert cloister(command, url, *text, "--policy", "rules.toml").code == 2


def test_refusals_of_the_application(world: World, cloister: Command) -> None:
    engine, _, url = world
    engine.script = ("x" * 20,)
    engine.broken = lambda made: ValueError("canary") if made == 5 else None
    failed = cloister("ask", url, "hi")
    assert (failed.code, "failed" in failed.err, "canary" in failed.err) == (1, True, False)
    large = cloister("ask", url, "hi", "--max-tokens", 5000)
    assert (large.code, "context" in large.err) == (1, True)
    assert "Change the request" not in large.err  # the service says itself what to do


def test_the_policy_is_this_homes_signed_one(homes: Path, cloister: Command) -> None:
    _, service = scripted()
    policy = homes / "ann" / "policy" / "enclave.toml"
    policy.parent.mkdir()
    policy.write_text(SOFT)
    with running(service) as url:
        unsigned = cloister("ask", url, "hi")
        assert (unsigned.code, service.asked) == (2, [])
        assert cloister("enclave", "policy", "sign").code == 0
        refused = cloister("ask", url, "hi")
        assert (refused.code, "evidence was refused" in refused.err) == (3, True)
        policy.write_text(SOFT + "# changed\n")
        assert cloister("ask", url, "hi").code == 1
    assert service.asked == []


def test_options_that_go_together(world: World, cloister: Command) -> None:
    _, _, url = world
    for options in (["--to", "ben"], ["--answers", "d"]):
        assert "go together" in cloister("proxy", url, *options).err
    assert cloister("proxy", url, "--to", "nobody", "--answers", "d").code == 2
    assert "go together" in cloister("relay", url, "--tls-cert", "x").err
    assert cloister("relay", "nonsense").code == 2
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "port cannot be had" in cloister("proxy", url, "--port", port).err
        assert "port cannot be had" in cloister("relay", url, "--port", port).err


def start(*arguments: str, pattern: str) -> tuple[subprocess.Popen[str], str, str]:
    """Start a command that serves; return it, what the pattern found on stderr, and stderr until then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(pattern, line):
            return process, found.group(1), said
    raise AssertionError(said)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_a_proxy_and_a_relay_as_processes(homes: Path) -> None:
    """Real evidence of a software TPM, a relay, a proxy, the official client; both end by a signal."""
    needs_swtpm()
    from cloister.enclave.attester import find_attester, measure

    Path("soft.toml").write_text(SOFT)
    _, service = scripted("Hello there")
    attester: Any = find_attester(homes / "tpm", software_allowed=True, measured=measure())
    service.attester = attester
    try:
        with running(service) as url:
            relay, port, _ = start("relay", url, "--port", "0", pattern=r"http://127.0.0.1:(\d+) to")
            relayed = ["--relay", f"http://127.0.0.1:{port}", "--policy", "soft.toml"]
            proxy, address, said = start(
                "proxy", url, *relayed, "--port", "0", "--json", "--receipts", "kept.jsonl",
                pattern=r"Listening: (http://\S+)/v1",
            )  # fmt: skip
            try:
                assert "NOT HARDWARE-PROTECTED" in said
                with openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client:
                    answer = client.chat.completions.create(**chat_body())
                    assert answer.choices[0].message.content == "Hello there"
                    assert len(list(client.chat.completions.create(**chat_body(), stream=True))) > 5
                assert httpx2.get(address).json()["protection"] == "not hardware-protected"
                code, out, err = end(proxy, signal.SIGINT)
                assert (code, "2 requests, 2 answers with a receipt" in err) == (0, True)
                assert json.loads(out)["address"] == f"{address}/v1"
                code, _, err = end(relay, signal.SIGTERM)
                assert (code, err) == (0, "")
            finally:
                for process in (proxy, relay):
                    if process.poll() is None:
                        process.kill()
                        process.communicate()
    finally:
        attester.close()
    assert {seen[b"host"] for _, _, seen in service.outside} == {url.removeprefix("http://").encode()}


def test_tls_of_ones_own_authority(world: World, cloister: Command) -> None:
    """A relay behind a certificate of a private authority: named, it is asked; not named, it is not."""
    chain, key = certificate(Path.cwd())
    _, service, url = world
    relay, port, _ = start(
        "relay", url, "--port", "0", "--tls-cert", str(chain), "--tls-key", str(key), pattern=r":(\d+) to"
    )
    try:
        asked = ["ask", "https://service.example", "hi", "--relay", f"https://localhost:{port}"]
        refused = cloister(*asked)
        assert (refused.code, "--tls-ca" in refused.err, service.asked) == (2, True, [])
        assert cloister(*asked, "--tls-ca", chain).out == "Hello there\n"
    finally:
        code, _, err = end(relay, signal.SIGTERM)
    assert (code, err) == (0, "")
    assert cloister("relay", url, "--port", 0, "--tls-cert", "none.pem", "--tls-key", key).code == 2


def test_a_policy_drafted_from_a_service_accepts_that_service(homes: Path, cloister: Command) -> None:
    """From no policy to a first answer: draft, look, ask. Another program behind the address is refused."""
    needs_swtpm()
    from cloister.enclave.attester import find_attester, measure

    _, service = scripted("Hello there")
    first: Any = find_attester(homes / "tpm", software_allowed=True, measured=measure())
    other: Any = find_attester(homes / "other", software_allowed=True)
    service.attester = first
    try:
        with running(service) as url:
            refused = cloister("ask", url, "hi")
            assert (refused.code, "`cloister enclave policy draft" in refused.err) == (3, True)
            done = cloister("enclave", "policy", "draft", url, "--out", "drafted.toml")
            assert (done.code, "NOT HARDWARE-PROTECTED" in done.err) == (0, True)
            text = Path("drafted.toml").read_text()
            assert "Nothing says yet that it is what you want" in text
            assert "pin that with --model-digest" in text
            assert service.asked == []
            assert cloister("ask", url, "hi", "--policy", "drafted.toml").out == "Hello there\n"
            assert cloister("enclave", "policy", "draft", url, "--out", "drafted.toml").code == 2
            service.attester = other
            changed = cloister("ask", url, "hi", "--policy", "drafted.toml")
            assert (changed.code, "none of the accepted images" in changed.err) == (3, True)
    finally:
        first.close()
        other.close()
    assert cloister("enclave", "policy", "draft", "http://127.0.0.1:9").code == 2


def test_words_for_a_token_that_is_not_known_and_for_a_shortened_digest(
    world: World, cloister: Command
) -> None:
    _, service, url = world

    async def unknown(_: Request) -> Reply:
        return Reply(401, {"content-type": "application/json"}, b'{"error": {"message": "Who?"}}')

    service.app = unknown
    done = cloister("ask", url, "hi")
    assert (done.code, "--token-file" in done.err, "Change the request" in done.err) == (1, True, False)

    async def table(_: Request) -> Reply:
        return Reply(404, {"content-type": "application/json"}, b'{"error": {"message": "Invalid URL"}}')

    service.app = table
    assert "cloister predict URL FILE" in cloister("ask", url, "hi").err
    short = cloister("ask", url, "hi", "--model-digest", "ab" * 8)
    assert (short.code, "64 hexadecimal digits" in short.err) == (2, True)
