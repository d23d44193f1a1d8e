"""A service in real processes behind uvicorn, and whoever asks it. Importable, not collected."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from tests.enclave.doubles import AttesterDouble
from tests.enclave.sandbox.inside import need_walls

from cloister.inference.exchange import (
    EXCHANGE_PATH,
    KEYS_PATH,
    Asking,
    KeySet,
    Published,
    RequestHead,
    ResponseHead,
)
from cloister.inference.service import Service, Source, serving

NONCE = bytes(range(32))


@dataclass
class Running:
    """A served service. Its client verifies nothing: that is the business of `inference.client`."""

    service: Service
    url: str
    client: httpx2.Client

    def keys(self) -> KeySet:
        answer = self.client.get(KEYS_PATH, params={"nonce": NONCE.hex()})
        return KeySet.from_bytes(Published.from_json(answer.raise_for_status().content).keys)

    def stream(self, path: str, body: object, *, method: str = "POST", token: str = "") -> Iterator[Any]:
        """Yield the head, then pieces of the body; the answer is checked to its end."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asking = Asking(self.keys(), RequestHead(method, path, credential=token), data)
        with self.client.stream("POST", EXCHANGE_PATH, content=asking.request) as answer:
            assert answer.status_code == 200, answer.read()
            for part in answer.iter_raw():
                yield from asking.feed(part)
        asking.finish()

    def ask(
        self, path: str, body: object = b"", *, method: str = "POST", token: str = ""
    ) -> tuple[int, bytes]:
        """Return status and body."""
        head, *pieces = self.stream(path, body, method=method, token=token)
        assert isinstance(head, ResponseHead)
        return head.status, b"".join(pieces)


@contextlib.contextmanager
def running(source: Source, **options: Any) -> Iterator[Running]:
    """Start a service with walls, serve it on a free port, and end both."""
    need_walls()
    options = {"attester": AttesterDouble(), "clients": None, "allow_swap": True} | options
    with Service(source, **options) as service, serving(service) as url:  # noqa: SIM117  # one line would be long
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Running(service, url, client)
