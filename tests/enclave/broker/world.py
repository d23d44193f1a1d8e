"""A broker to test with: cheap passphrases, one owner, and evidence that no hardware ever saw."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloister.crypto import Identity, ScryptCost
from cloister.enclave import Claims, Evidence
from cloister.enclave.broker import (
    Broker,
    BrokerKeys,
    BrokerServer,
    Client,
    Direct,
    Permission,
    SocketLink,
    Wanted,
    Worker,
    open_book,
)
from cloister.types import Counter

CHEAP = ScryptCost(n=1024, r=8, p=1)
PASSPHRASE = "correct horse"
NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
KEK = "dataset.heart.1"
MANIFEST = "11" * 32
PLAN = "22" * 32
PURPOSE = "heart study"
POLICY = "33" * 32
GOOD = "aa" * 32

_DOUBLE_KEY = b"everybody knows this key: a test double"


@functools.cache
def identity(name: str) -> Identity:
    """Return a test identity; from $CLOISTER_TEST_IDENTITIES in a process that shares those of another."""
    shared = Path(os.environ.get("CLOISTER_TEST_IDENTITIES", ""), f"{name}.json")
    return Identity.load(shared, PASSPHRASE) if shared.is_file() else Identity.generate(name)


class InsecureAttesterDouble:
    """Signs whatever it is given with a key that everybody knows. A test double, and never evidence."""

    hardware = False

    def __init__(self, measurement: str = GOOD) -> None:
        self.measurement = measurement
        self.made: list[Evidence] = []

    def attest(self, report_data: bytes) -> Evidence:
        body = json.dumps({"report_data": report_data.hex(), "measurement": self.measurement}).encode()
        tag = hmac.digest(_DOUBLE_KEY, body, hashlib.sha256)
        self.made.append(Evidence("tpm", tag + body, {"software": b"test double"}))
        return self.made[-1]


class InsecureAppraisalDouble:
    """Believes `InsecureAttesterDouble`. A test double, and never an appraisal."""

    def __init__(self, accepted: str = GOOD) -> None:
        self.accepted = accepted
        self.calls = 0

    def __call__(
        self, evidence: Evidence, at: datetime, expected: bytes | None, /
    ) -> tuple[Claims, list[str]]:
        self.calls += 1
        tag, body = evidence.evidence[:32], evidence.evidence[32:]
        if not hmac.compare_digest(tag, hmac.digest(_DOUBLE_KEY, body, hashlib.sha256)):
            return Claims(kind=evidence.kind, signature=False), ["signature: does not verify"]
        said = json.loads(body)
        fresh = expected is not None and hmac.compare_digest(bytes.fromhex(said["report_data"]), expected)
        claims = Claims(
            kind=evidence.kind,
            signature=True,
            chain=True,
            freshness=fresh,
            hardware_rooted=False,
            measurements={"measurement": said["measurement"]},
        )
        reasons = (
            []
            if said["measurement"] == self.accepted
            else ["measurements: it is none of the accepted images"]
        )
        return claims, [] if not reasons and fresh else reasons


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class Home:
    """A broker's folder, opened and opened again."""

    def __init__(self, folder: Path, counter: Counter | None = None) -> None:
        self.folder = folder
        self.clock = Clock()
        self.appraisal = InsecureAppraisalDouble()
        self.counter = counter
        self.broker = self._open()

    def _open(self) -> Broker:
        me = identity("broker")
        counter = self.counter
        book = open_book(
            self.folder,
            PASSPHRASE,
            me.fingerprint,
            self.clock(),
            counter=None if counter is None else lambda _: counter,
            cost=CHEAP,
        )
        owners = [identity("alice").public, identity("bob").public]
        return Broker(book, me, self.appraisal, policy=POLICY, owners=owners)

    def close(self) -> None:
        self.broker.book.store.close()

    def restart(self) -> None:
        self.close()
        self.broker = self._open()

    def connect(self) -> Direct:
        return Direct(self.broker, self.clock)

    def client(self) -> Client:
        return Client(self.connect(), identity("broker").public)

    def owner(self, name: str = "alice") -> BrokerKeys:
        return BrokerKeys(self.connect, identity("broker").public, owner=identity(name))

    def worker(self, attester: InsecureAttesterDouble | None = None, **changes: str | None) -> BrokerKeys:
        return BrokerKeys(self.connect, identity("broker").public, worker=worker(attester, **changes))

    def entries(self) -> list[dict[str, object]]:
        log = self.broker.book.log
        return [json.loads(log.entry(index)) for index in range(len(log))]


def worker(attester: InsecureAttesterDouble | None = None, **changes: str | None) -> Worker:
    stated = {"manifest": MANIFEST, "plan": PLAN, "purpose": PURPOSE} | changes
    return Worker(attester or InsecureAttesterDouble(), **stated)  # type: ignore[arg-type]


def permission(uses: int = 1, expires: datetime = NOW + timedelta(days=1), **changes: object) -> Permission:
    stated = {"kek_id": KEK, "manifest": MANIFEST, "plan": PLAN, "purpose": PURPOSE} | changes
    return Permission(secrets.token_hex(16), Wanted(**stated), expires, uses)  # type: ignore[arg-type]


def filled(home: Home, uses: int = 1) -> bytes:
    """Make a KEK, allow it to be used, and return a wrapped data key of 32 letters k."""
    owner = home.owner()
    owner.create(KEK)
    owner.allow(permission(uses))
    return owner.wrap(KEK, b"k" * 32)


@contextmanager
def served(home: Home, path: Path, **options: object) -> Iterator[Path]:
    """Serve a broker from a thread."""
    server = BrokerServer(home.broker, path, clock=home.clock, **options)  # type: ignore[arg-type]
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(server.serve(ready.set))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield path
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def over_socket(path: Path, **who: object) -> BrokerKeys:
    return BrokerKeys(lambda: SocketLink(path), identity("broker").public, **who)  # type: ignore[arg-type]
