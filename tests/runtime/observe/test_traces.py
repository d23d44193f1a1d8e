from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloister.errors import InputError
from cloister.runtime import Burnt, Refused, RoundDone, Stopped
from cloister.runtime.events import Connected, Ended, Started
from cloister.runtime.observe import Observer, Traces
from cloister.runtime.observe.traces import collector

SECOND = 10**9


class Clock:
    now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


def test_a_study_is_a_span_and_every_round_one_within_it() -> None:
    exporter, clock = InMemorySpanExporter(), Clock()
    traces = Traces("", study="s", party="hub", exporter=exporter, clock=clock)
    traces(Started("hub", 2, ("a", "b", "c")))
    clock.now += 10 * SECOND
    traces(Burnt(0, 0, "canary"))
    traces(RoundDone(0, 1, ("a", "b"), 4.0, {"loss": 0.5}, epoch=3))
    clock.now += 5 * SECOND
    traces(Ended(1))
    traces.close()
    traces(Ended(1))
    traces.close()
    first, study = exporter.get_finished_spans()
    assert (first.name, study.name) == ("round", "study")
    assert first.parent is not None
    assert first.parent.span_id == study.context.span_id
    assert dict(first.attributes or {}) == {
        "cloister.epoch": 3,
        "cloister.round": 0,
        "cloister.attempt": 1,
        "cloister.survivors": 2,
    }
    assert first.start_time == Clock.now + 6 * SECOND
    assert first.end_time == Clock.now + 10 * SECOND
    assert study.end_time == Clock.now + 15 * SECOND
    assert [event.name for event in study.events] == ["burnt", "ended"]
    assert dict(study.resource.attributes) == {
        "service.name": "cloister",
        "cloister.party": "hub",
        "cloister.study": "s",
    }


def test_no_reason_and_no_measure_leaves() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces("", study="s", party="hub", exporter=exporter)
    for event in (
        Connected("a"),
        Burnt(0, 0, "canary"),
        Refused("canary", "canary"),
        RoundDone(0, 1, ("canary",), 1.0, {"canary": 0.5}, {"canary": {"canary": 0.5}}),
        Stopped("canary"),
    ):
        traces(event)
    traces.close()
    assert "canary" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.fixture
def received() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, got
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_collector_gets_them(tmp_path: Path, received: tuple[int, list[tuple[str, bytes]]]) -> None:
    port, got = received
    with Observer.of(tmp_path, study="s", party="site1", otlp=f"http://127.0.0.1:{port}") as observer:
        observer(Started("site", 1, ()))
        observer(RoundDone(0, 0, ("a", "b", "c"), 0.5))
    spans = [
        span.name
        for path, body in got
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(spans) == ["round", "study"]


def test_a_collector_that_is_not_there_delays_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with Observer.of(tmp_path, study="s", party="hub", otlp="http://127.0.0.1:9") as observer:
        observer(RoundDone(0, 0, ("a", "b", "c"), 0.5))
        assert time.monotonic() - began < 2.5
    assert time.monotonic() - began < 10
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://otel.example", "https://otel.example/v1/traces"),
        ("https://otel.example/in/traces", "https://otel.example/in/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_urls(url: str, found: str) -> None:
    assert collector(url) == found


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("localhost:4318", "URL of a collector"),
        ("", "URL of a collector"),
        ("ftp://h", "URL of a collector"),
        ("http://h:99999", "URL of a collector"),
        ("https://user:secret@h", "URL of a collector"),
        ("http://otel.example:4318", "in the clear"),
        ("http://10.0.0.1:4318", "in the clear"),
    ],
)
def test_what_is_no_url_is_one_sentence(url: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as raised:
        collector(url)
    assert "secret" not in str(raised.value)


def test_without_the_packages_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"traces need opentelemetry-sdk.*cloister\[observe\]"):
        Traces("http://127.0.0.1:4318", study="s", party="hub")
