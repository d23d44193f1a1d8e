"""What private inference costs, beside the same engine without protection, in the same run.

    python -m benchmarks.inference [--quick]

    ttft_over_plain       time to the first token of a streamed completion through `PrivateClient`, over that
                          of the unprotected server: alternating requests, medians, 103 M parameters, CPU
    ttft_extra_ms         the difference of these medians
    tokens_per_s_over_plain  tokens a second of one stream after its first token, the same way
    setup_ms              once for a client: a nonce, evidence made and appraised, the key set checked
    request_ms            what each request takes longer after that: `GET /v1/models`, alternating, medians
    exchange_ms           of that, the exchange's own work at both ends, without sockets: a request sealed,
                          opened, answered, and its receipt signed and checked
    frame_overhead_bytes  what a frame adds to what is in it, before padding
    streams               {asked, whole, seconds, errors}: streams at the same time; a whole one came to its
                          end, with as many tokens as were asked for and a receipt that fits
    proxy_extra_ms        what the way through `cloister proxy` adds to `PrivateClient`: `GET /v1/models`
    scoring               a logistic model of 30 features, a row a request, 200 requests a second in an open
                          loop, server pinned to one core: {p50_ms, p99_ms, plain_p50_ms, plain_p99_ms,
                          over_plain, requests, errors}; over_plain is the ratio of the medians
    encrypted             scoring under CKKS, without any enclave (`benchmarks.inference_he`); models with a
                          hidden layer not with `--quick`

The unprotected server is `benchmarks.inference_plain`: the same application and engine behind plain HTTP, in
one process. Both servers run at once, one working at a time; each computes with one thread. Evidence comes
from a software TPM, which is not hardware-protected; a hardware TPM takes some hundred milliseconds for a
quote, which is part of `setup_ms` there. `accelerator` is null where there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.common import arguments, emit
from benchmarks.inference_models import FEATURES, make_language_model, make_table_model
from cloister.enclave.policy import EnclavePolicy
from cloister.inference.client import AsyncPrivateClient, PrivateClient

POLICY = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)
PROMPT = " ".join(f"w{n}" for n in range(100, 164))
SHORT = " ".join(f"w{n}" for n in range(100, 108))
_PATIENCE_S = 120


@contextlib.contextmanager
def server(module: str, *given: object, core: int | None = None) -> Iterator[str]:
    """Run a server of this folder; yield its address."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, given)]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{module} did not start")
        yield f"http://127.0.0.1:{line}"
    finally:
        process.communicate(timeout=_PATIENCE_S)  # the end of its standard input ends it


def asked(tokens: int, prompt: str = PROMPT) -> dict[str, Any]:
    """Return a completion to ask for."""
    return {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}


def _tokens(line: str) -> bool:
    """Tell whether an event carries text."""
    return line.startswith("data: {") and bool(json.loads(line[6:])["choices"][0]["text"])


def streamed(client: httpx2.Client, tokens: int) -> tuple[float, float]:
    """Return seconds to the first token, and tokens a second after it."""
    begun = time.perf_counter()
    first = last = 0.0
    count = 0
    with client.stream("POST", "/v1/completions", json=asked(tokens)) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if _tokens(line):
                last = time.perf_counter()
                first, count = first or last, count + 1
    if count != tokens:
        raise RuntimeError(f"{count} tokens of {tokens}")
    return first - begun, (count - 1) / (last - first)


def alternating(acts: Sequence[Callable[[], Any]], runs: int) -> list[list[Any]]:
    """Return what each act returned, run in turns."""
    found: list[list[Any]] = [[] for _ in acts]
    for run in range(runs):
        order = range(len(acts)) if run % 2 else reversed(range(len(acts)))
        for at in order:
            found[at].append(acts[at]())
    return found


def timed(act: Callable[[], object]) -> Callable[[], float]:
    """Return what runs an act and returns its milliseconds."""

    def run() -> float:
        begun = time.perf_counter()
        act()
        return 1e3 * (time.perf_counter() - begun)

    return run


def first_tokens(plain: httpx2.Client, private: httpx2.Client, runs: int, tokens: int) -> dict[str, float]:
    """Return the figures of one stream."""
    acts = [lambda: streamed(plain, tokens), lambda: streamed(private, tokens)]
    alternating(acts, 1)
    ours = [list(zip(*each, strict=True)) for each in alternating(acts, runs)]
    (plain_first, plain_rate), (first, rate) = [[statistics.median(part) for part in each] for each in ours]
    return {
        "ttft_over_plain": round(first / plain_first, 3),
        "ttft_extra_ms": round(1e3 * (first - plain_first), 2),
        "ttft_ms": round(1e3 * first, 1),
        "tokens_per_s_over_plain": round(rate / plain_rate, 3),
        "tokens_per_s": round(rate, 2),
    }


async def many(address: str, count: int, tokens: int) -> dict[str, Any]:
    """Return how streams at the same time went."""
    begun = time.perf_counter()
    async with AsyncPrivateClient(address, POLICY) as client:

        async def one() -> bool:
            seen = 0
            async with client.stream("POST", "/v1/completions", json=asked(tokens, SHORT)) as answer:
                async for line in answer.aiter_lines():
                    seen += _tokens(line)
            return seen == tokens

        ends = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    errors = sorted({f"{type(each).__name__}: {each}" for each in ends if isinstance(each, BaseException)})
    whole = sum(each is True for each in ends)
    return {
        "asked": count,
        "whole": whole,
        "seconds": round(time.perf_counter() - begun, 1),
        "errors": errors,
    }


def row() -> dict[str, Any]:
    """Return one row to score."""
    return {"rows": [{f"x{n:02d}": 0.1 * n - 1 for n in range(FEATURES)}]}


async def open_loop(client: httpx2.AsyncClient, rate: int, seconds: float) -> tuple[list[float], int]:
    """Return milliseconds of each request, from when it was due, and how many failed."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    failed = 0
    body = row()

    async def one(due: float) -> None:
        nonlocal failed
        try:
            answer = await client.post("/v1/score", json=body)
            failed += answer.status_code != 200
        except Exception:  # noqa: BLE001
            failed += 1
        times.append(1e3 * (loop.time() - due))

    async with client:
        for _ in range(20):
            await one(loop.time())
        times.clear()
        begun, tasks = loop.time() + 0.05, []
        for at in range(int(rate * seconds)):
            due = begun + at / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            tasks.append(asyncio.create_task(one(due)))
        await asyncio.gather(*tasks)
    return times, failed


def scoring(model: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the figures of scoring; the servers share core 0, the client has core 1 where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {"plain": [], "private": []}
    failed = 0
    with (
        server("inference_plain", "table", model, core=cores[0]) as plain,
        server("inference_private", "table", model, core=cores[0]) as private,
    ):
        os.sched_setaffinity(0, cores[1:] or cores)
        try:
            for _ in range(rounds):
                for name, client in (
                    ("plain", httpx2.AsyncClient(base_url=plain, trust_env=False)),
                    ("private", AsyncPrivateClient(private, POLICY)),
                ):
                    found, wrong = asyncio.run(open_loop(client, 200, seconds / rounds))
                    times[name] += found
                    failed += wrong
        finally:
            os.sched_setaffinity(0, cores)
    middle = {name: statistics.median(each) for name, each in times.items()}
    tail = {name: statistics.quantiles(each, n=100)[98] for name, each in times.items()}
    return {
        "p50_ms": round(middle["private"], 2),
        "p99_ms": round(tail["private"], 2),
        "plain_p50_ms": round(middle["plain"], 2),
        "plain_p99_ms": round(tail["plain"], 2),
        "over_plain": round(middle["private"] / middle["plain"], 2),
        "requests": len(times["private"]),
        "errors": failed,
    }


def set_up(address: str, runs: int) -> float:
    """Return milliseconds of a client's first verification, connecting included."""

    def once() -> None:
        with PrivateClient(address, POLICY) as client:
            client.attest()

    once()
    return statistics.median(timed(once)() for _ in range(runs))


def frame_overhead() -> int:
    """Return bytes that a frame adds to its content before padding."""
    from cloister.inference.exchange.frames import FrameSealer
    from cloister.inference.exchange.padding import STREAM_BLOCK, BlockKind, blocks

    content = STREAM_BLOCK - 5  # as much as a streamed block takes without padding
    (block,) = blocks(BlockKind.BODY, bytes(content), streamed=True)
    return len(FrameSealer(bytes(32), b"a").seal(block)) - content


def exchange(runs: int) -> float:
    """Return milliseconds of one exchange at both ends, one after another in this process."""
    from datetime import UTC, datetime

    from cloister.inference.exchange import REQUEST_PREFIX, Asking, KeyRing, RequestHead

    now = datetime.now(UTC)
    ring = KeyRing("model", "0" * 64, lifetime=3600, overlap=60)
    keys, head = ring.current(now), RequestHead("GET", "/v1/models", {"accept": "*/*"}, "0" * 64, "")

    def once() -> None:
        asking = Asking(keys, head, b"")
        answering = ring.open(asking.request[:REQUEST_PREFIX], now)
        answering.feed(asking.request[REQUEST_PREFIX:])
        answering.request()
        answer = answering.head(200, {"content-type": "application/json"}, streamed=False)
        asking.feed(answer + answering.body(b"{}") + answering.end(now))
        asking.finish()

    once()
    return round(statistics.median(timed(once)() for _ in range(runs)), 3)


def language(folder: Path, quick: bool) -> dict[str, Any]:
    """Return the figures of a language model."""
    model = folder / "model"
    parameters = make_language_model(model)
    runs, tokens = (4, 16) if quick else (21, 64)
    figures: dict[str, Any] = {"parameters": parameters}
    with (
        server("inference_plain", "language", model, 1) as plain_address,
        server("inference_private", "language", model, 1) as address,
    ):
        figures["setup_ms"] = round(set_up(address, 5 if quick else 31), 2)
        with (
            httpx2.Client(base_url=plain_address, trust_env=False, timeout=600) as plain,
            PrivateClient(address, POLICY) as private,
        ):
            acts = [
                timed(lambda: plain.get("/v1/models").json()),
                timed(lambda: private.get("/v1/models").json()),
            ]
            alternating(acts, 20)
            without, with_ = (statistics.median(each) for each in alternating(acts, 100 if quick else 1000))
            figures["request_ms"] = round(with_ - without, 3)
            with server("inference_proxy", address) as proxied, httpx2.Client(base_url=proxied) as client:
                acts = [
                    timed(lambda: private.get("/v1/models").json()),
                    timed(lambda: client.get("/v1/models").json()),
                ]
                alternating(acts, 20)
                direct, through = (
                    statistics.median(each) for each in alternating(acts, 100 if quick else 1000)
                )
                figures["proxy_extra_ms"] = round(through - direct, 3)
            figures |= first_tokens(plain, private, runs, tokens)
        figures["streams"] = asyncio.run(many(address, 100, 4 if quick else 16))
    return figures


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    reasons = {"accelerator": "no GPU here: private serving was measured on a CPU alone"}
    figures: dict[str, Any] = {"frame_overhead_bytes": frame_overhead()}
    figures["exchange_ms"] = exchange(200 if options.quick else 2000)
    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as name:
        folder = Path(name)
        (folder / "table.safetensors").write_bytes(make_table_model().to_bytes())
        parts: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
            ("scoring", lambda: scoring(folder / "table.safetensors", 4 if options.quick else 30, 2)),
            ("encrypted", lambda: _encrypted(options.quick)),
            ("language", lambda: language(folder, options.quick)),
        )
        for part, measure in parts:
            try:
                found = measure()
                figures |= found if part == "language" else {part: found}
            except Exception as error:  # noqa: BLE001  # a figure that cannot be measured is null, with its reason
                figures[part], reasons[part] = None, f"{type(error).__name__}: {error}"
    emit("inference", {**figures, "accelerator": None, "reasons": reasons})


def _encrypted(quick: bool) -> dict[str, Any]:
    from benchmarks.inference_he import measure

    return measure(quick, ("logistic",)) if quick else measure(quick)


if __name__ == "__main__":
    main()
