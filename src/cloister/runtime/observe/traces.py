"""OpenTelemetry traces of one party: a span for its part in the study, and within it one for each round.

Spans carry numbers and names of this plan, no reasons: what a collector gets leaves this machine. They are
sent in the background, and dropped where the collector does not answer.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cloister.errors import InputError
from cloister.runtime.events import Burnt, Ended, Event, Resumed, RoundDone, Stalled, Started, Stopped
from cloister.runtime.observe.fields import event_fields, event_name

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

__all__ = ["Traces", "collector"]

_TIMEOUT: Final = 3.0
_PATH: Final = "/v1/traces"


def collector(url: str) -> str:
    """Return where traces go, of a collector's URL as `--otlp` takes it.

    Raises:
        InputError: it is no such URL, or would carry them over a network in the clear.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port == 0 or parts.scheme not in ("http", "https") or parts.username is not None:
        raise InputError(
            "traces need the URL of a collector that speaks OTLP over HTTP",
            fix="Write http://127.0.0.1:4318 or https://HOST:4318",
        )
    if parts.scheme == "http" and not _loopback(host):
        raise InputError(
            "traces would travel in the clear",
            where=host[:80],
            fix="Use https, or a collector on this machine",
        )
    return url if parts.path.strip("/") else url.rstrip("/") + _PATH


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Traces:
    """Turns events into spans; a `Watcher`.

    Args:
        url: the collector's, as `collector` returns it.
        study: the study's name.
        party: this party's name.
        exporter: where spans go instead, in tests.
        clock: nanoseconds since 1970.

    Raises:
        InputError: the packages are not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        study: str,
        party: str,
        exporter: SpanExporter | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise InputError(
                "traces need opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http",
                fix="Install them with: pip install 'cloister[observe]'",
            ) from None
        # without a handler of its own it would print tracebacks where the collector does not answer
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        whose = {"service.name": "cloister", "cloister.party": party, "cloister.study": study}
        self._provider = TracerProvider(resource=Resource(whose), shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(url, timeout=_TIMEOUT))
        )
        self._tracer = self._provider.get_tracer("cloister")
        self._clock = clock
        self._study: Span | None = None
        self._closed = False

    def __call__(self, event: Event) -> None:
        """Note an event in the study's span, or add a round's."""
        if self._closed:
            return
        study = self._span()
        match event:
            case Started():
                study.set_attributes({"cloister.role": event.role, "cloister.rounds": event.rounds})
            case RoundDone():
                self._round(study, event)
            case Burnt() | Stalled() | Resumed() | Stopped() | Ended():
                counted = {k: v for k, v in event_fields(event).items() if isinstance(v, int)}
                study.add_event(event_name(event), counted, self._clock())
            case _:
                pass

    def close(self) -> None:
        """End the study's span and send what is outstanding, for a few seconds at most."""
        if self._closed:
            return
        self._closed = True
        if self._study is not None:
            self._study.end(self._clock())
        self._provider.shutdown()

    def _span(self) -> Span:
        if self._study is None:
            self._study = self._tracer.start_span("study", start_time=self._clock())
        return self._study

    def _round(self, study: Span, event: RoundDone) -> None:
        from opentelemetry.trace import set_span_in_context

        end = self._clock()
        span = self._tracer.start_span(
            "round",
            context=set_span_in_context(study),
            start_time=end - int(max(event.seconds, 0.0) * 1e9),
            attributes={
                "cloister.epoch": event.epoch,
                "cloister.round": event.round,
                "cloister.attempt": event.attempt,
                "cloister.survivors": len(event.survivors),
            },
        )
        span.end(end)
