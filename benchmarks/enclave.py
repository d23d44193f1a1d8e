"""What trusted execution costs: verification of every kind of evidence, a quote, a key, a worker, its walls.

    python -m benchmarks.enclave [--quick]

    verify_ms        appraising a genuine sample, by kind: medians; null where the samples are not there
    quote_ms         a quote of all registers by a software TPM (swtpm), its key and connection open
    key_release_ms   a data key from a broker over its Unix socket, from connecting to the opened key: nonce,
                     quote, appraisal, durable count, log, HPKE
    worker_start_s   from starting a sandboxed worker to its walls standing, beyond importing the same modules
                     in a bare interpreter
    worker_over_plain  time of a site's training inside a sandboxed worker over the same in this process,
                     medians of alternating runs

The software TPM is not hardware-protected; a hardware TPM takes some hundred milliseconds for a quote, and a
confidential guest's report a few.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import arguments, emit
from benchmarks.enclave_samples import positives
from cloister.crypto import Identity, ScryptCost, sha256
from cloister.enclave.appraise import appraise, appraiser
from cloister.enclave.policy import EnclavePolicy, Reference

CHEAP = ScryptCost(n=2**10)
SOFT = {"kinds": ("tpm",), "allow_software_tee": True, "allow_self_reported": True}


def median_ms(act: Callable[[], object], runs: int) -> float:
    """Return the median time of `act`, in milliseconds."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(times), 3)


def verify_ms(runs: int) -> tuple[dict[str, float] | None, str | None]:
    """Return medians by sample, or None and why."""
    folder = os.environ.get("CLOISTER_TEST_EVIDENCE")
    if not folder:
        return None, "$CLOISTER_TEST_EVIDENCE names no folder of evidence samples"
    found = {}
    for sample in positives(Path(folder)):
        found[sample.name] = median_ms(
            lambda sample=sample: appraise(sample.evidence, at=sample.at, expected=sample.asked),  # type: ignore[misc]
            runs,
        )
    return found, None


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


@contextlib.contextmanager
def broker_of(folder: Path, owner: Identity, keeper: Identity, policy: EnclavePolicy) -> Iterator[Path]:
    """Serve a broker on a Unix socket; yield the socket."""
    import asyncio

    from cloister.enclave.broker import Broker, BrokerServer, open_book

    book = open_book(folder / "broker", "benchmark", keeper.fingerprint, now(), cost=CHEAP)
    broker = Broker(book, keeper, appraiser(policy), policy=policy.digest, owners=[owner.public])
    path, ready, ending = folder / "broker.sock", threading.Event(), threading.Event()

    async def serve() -> None:
        server = asyncio.create_task(BrokerServer(broker, path).serve(ready.set))
        while not ending.is_set():
            await asyncio.sleep(0.02)
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield path
    finally:
        ending.set()
        thread.join(10)
        book.store.close()


def quote_and_release(folder: Path, runs: int) -> tuple[float, float]:
    """Return quote_ms and key_release_ms."""
    from cloister.enclave.attester import TpmAttester, find_attester, measure
    from cloister.enclave.broker import BrokerKeys, Permission, SocketLink, Wanted, Worker

    measured = measure()
    package = next(each.digest for each in measured if each.name == "package")
    policy = EnclavePolicy(**SOFT, measurements=(Reference("this", {"start:package": package}),))
    attester = find_attester(folder / "tpm", software_allowed=True, measured=measured)
    assert isinstance(attester, TpmAttester)
    owner, keeper = Identity.generate("owner"), Identity.generate("broker")
    kek, manifest = "dataset.rows.1", sha256(b"a manifest").hex()
    with contextlib.closing(attester), broker_of(folder, owner, keeper, policy) as path:
        quote = median_ms(lambda: attester.tpm.quote(os.urandom(32)), 20 * runs)
        keys = BrokerKeys(lambda: SocketLink(path), keeper.public, owner=owner)
        keys.create(kek)
        wrapped = keys.wrap(kek, os.urandom(32))
        wanted = Wanted(kek, manifest, None, "benchmark")
        until = now().replace(microsecond=0) + timedelta(hours=1)
        keys.allow(Permission(os.urandom(16).hex(), wanted, until, uses=10_000))
        keys.close()

        def release() -> None:
            worker = Worker(attester, manifest=manifest, plan=None, purpose="benchmark")
            fresh = BrokerKeys(lambda: SocketLink(path), keeper.public, worker=worker)
            fresh.unwrap(kek, wrapped)
            fresh.close()

        return quote, median_ms(release, 5 * runs)


def worker_start_s(runs: int) -> float:
    """Return what walls and channel add to starting a worker, beyond its imports, in seconds."""
    from cloister.crypto import Identity
    from cloister.runtime.workers.launch import sandbox
    from cloister.runtime.workers.session import Session

    identity = Identity.generate("site")
    script = "import cloister.enclave.sandbox, cloister.runtime.workers.serve"
    bare = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

    def imports() -> None:
        subprocess.run([sys.executable, "-I", "-c", script], check=True, env=bare)

    def worker() -> None:
        Session(sandbox(), identity, bytes(32)).close()

    imports(), worker()
    return round((median_ms(worker, runs) - median_ms(imports, runs)) / 1e3, 3)


def worker_over_plain(folder: Path, runs: int, rows: int) -> tuple[float, dict[str, Any]]:
    """Return the ratio, and the two medians in seconds."""
    from cloister.learning import (
        DataSection,
        HubEntry,
        ModelSection,
        Plan,
        SiteEntry,
        StudySection,
        TrainingSection,
        pin_initial,
    )
    from cloister.runtime.worker import LocalWorker
    from cloister.runtime.workers.launch import sandbox
    from cloister.runtime.workers.proxy import SandboxedWorker
    from cloister.vault import Vault, load_schema

    columns = "".join(f'[columns.x{n:02d}]\ntype = "number"\nbounds = [-4.0, 4.0]\n' for n in range(30))
    schema = load_schema(f'{columns}[columns.y]\ntype = "boolean"\nrole = "label"\n'.encode())
    random = np.random.default_rng(1)
    X = random.normal(size=(rows, 30)).clip(-4, 4)
    table = pa.table({f"x{n:02d}": X[:, n] for n in range(30)} | {"y": X[:, 0] + X[:, 1] > 0})
    owner, hub = Identity.generate("site"), Identity.generate("hub")
    vault = Vault.unlock(folder / "vault", owner, "benchmark", cost=CHEAP)
    vault.add_table(table, name="rows", schema=schema, purposes=["benchmark"])
    others = [Identity.generate(name) for name in ("b", "c")]
    plan = pin_initial(
        Plan(
            study=StudySection(name="walls", purpose="benchmark"),
            hub=HubEntry(name="hub", identity=hub.fingerprint),
            sites=tuple(
                SiteEntry(name=each.name, identity=each.fingerprint, dataset="rows")
                for each in (owner, *others)
            ),
            data=DataSection(schema=schema.digest().hex(), features=schema.features, label="y"),
            model=ModelSection(kind="mlp", hidden=(64,), classes=2),
            training=TrainingSection(rounds=1, batch=64, local_steps=10_000, learning_rate=0.1),
        ),
        schema,
    )
    with vault.open("rows", purpose="benchmark") as dataset:
        plain = LocalWorker(plan, schema, dataset.table)
        walled = SandboxedWorker(plan, owner, sandbox(), vault.hand_over("rows", purpose="benchmark"))
        start = plain.initial
        plain.train(start), walled.train(start)  # opens the rows
        times: dict[str, list[float]] = {"plain_s": [], "walled_s": []}
        for _ in range(runs):
            for name, worker in (("plain_s", plain), ("walled_s", walled)):
                begun = time.perf_counter()
                worker.train(start)
                times[name].append(time.perf_counter() - begun)
        walled.close()
    medians = {name: round(statistics.median(each), 4) for name, each in times.items()}
    return round(medians["walled_s"] / medians["plain_s"], 3), medians


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    runs = 5 if options.quick else 15
    reasons: dict[str, str] = {}
    figures: dict[str, Any] = {}
    figures["verify_ms"], why = verify_ms(4 * runs)
    if why:
        reasons["verify_ms"] = why
    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as name:
        folder = Path(name)
        try:
            (folder / "tpm").mkdir(mode=0o700)
            figures["quote_ms"], figures["key_release_ms"] = quote_and_release(folder, runs)
        except Exception as error:  # noqa: BLE001  # a figure that cannot be measured is null, with its reason
            figures |= {"quote_ms": None, "key_release_ms": None}
            reasons["quote_ms"] = str(error)
        try:
            figures["worker_start_s"] = worker_start_s(runs)
            ratio, medians = worker_over_plain(folder, runs, 20_000)
            figures["worker_over_plain"], figures["training"] = ratio, medians
        except Exception as error:  # noqa: BLE001
            figures |= {"worker_start_s": None, "worker_over_plain": None}
            reasons["worker_start_s"] = str(error)
    emit("enclave", {**figures, "reasons": reasons})


if __name__ == "__main__":
    main()
