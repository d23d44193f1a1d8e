"""Memory of a hub that adds up adapters: the peak of its own process above idle, over the adapter's 4 bytes a
parameter.

50 M float32 parameters, two rounds, from the start of the machine until the finished study lies on the disk.
The hub runs alone in a fresh process, as `HubService` sets it up: journal and what is set aside in files,
links, secure sum, model. Its sites run in this process: real links, set-ups, masks and uploads; they train
nothing, and share one model, which is all the same to the hub. Datagrams go through a pair of sockets. One
site, with a model and a journal of its own, is measured in the same way in a process of its own; what trains
is not in it, but what it gives back is.

Idle is the process with everything imported and nothing built. The peak is the kernel's (`VmHWM`), reset
then; pages of mapped files count while they are in use. FedAvg without averaged models: FedAdam adds two
vectors of the model's size where hub_view = "sum".

    python -m benchmarks.lora_memory [--quick] [--sites 3 30] [--bits 8 16 32] [--parameters N]
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.common import arguments, emit
from cloister.crypto import Identity, PublicIdentity, ScryptCost
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    HubEntry,
    ModelSection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.runtime import Hub, HubEnd, Site, SiteEnd, ends, hubjournal
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.hubjournal import FileJournal, open_hub_log
from cloister.runtime.journal import SiteJournal
from cloister.runtime.journal.volatile import volatile_folder
from cloister.runtime.store import save_study
from cloister.vault import LocalKeystore, Schema, Vault, load_schema

PARAMETERS = 50_000_000
_PURPOSE = "benchmark"
_CHEAP = ScryptCost(n=2**14)
_NAME_BYTES = 16
_PEAK = b"peak".ljust(_NAME_BYTES)
AWAY = "site0"
"""The site that is measured by itself."""
_PASSPHRASE = "only in this benchmark"  # noqa: S105  # it guards nothing
_SCHEMA = b"""
[columns.x]
type = "number"
bounds = [0.0, 1.0]
[columns.y]
type = "category"
role = "label"
categories = ["no", "yes"]
"""


def schema() -> Schema:
    """Return what rows look like; nobody reads any."""
    return load_schema(_SCHEMA)


def facts_of(parameters: int) -> ModelFacts:
    """Return the facts of an adapter that starts at zero."""
    return ModelFacts(
        size=parameters,
        inputs=1,
        loss="logistic",
        classes=0,
        weights=b"\xff" * (parameters // 8) + bytes([0xFF00 >> parameters % 8 & 0xFF] * (parameters % 8 > 0)),
        start=b"",
        fixed="",
        microbatch=0,
        error=0.0,
        single=True,
    )


@dataclass(frozen=True)
class Case:
    """One measurement."""

    sites: int
    bits: Literal[8, 16, 32]
    hub_view: Literal["sum", "none"]
    parameters: int = PARAMETERS
    rounds: int = 2


class _Shared:
    """One model of all sites: the first that applies a round moves it, the others only count.

    No site looks at the model while it lacks a round, so each of them sees what it would see in its own.
    """

    def __init__(self, model: GlobalModel) -> None:
        self._model = model
        self.rounds = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply(self, *arguments: Any) -> None:
        if self._model.rounds == self.rounds:
            self._model.apply(*arguments)
        self.rounds += 1


class _Trained:
    """A worker that has been told what training gives."""

    def __init__(self, facts: ModelFacts, trained: np.ndarray[Any, Any] | None) -> None:
        self.shape = self.bounded = facts
        self._trained = trained

    @property
    def initial(self) -> Any:
        """A vector of zeros, which takes no memory before it is written to."""
        return self.shape.initial

    def train(self, params: Any, window: Any = None) -> Any:
        return self._trained

    def close(self) -> None:
        """Nothing is held."""


class _Trains(_Trained):
    """A worker that gives back a new vector each time, as one that trains does."""

    def train(self, params: Any, window: Any = None) -> Any:
        trained = params.copy()
        trained += np.float32(0.001)
        return trained


class _Site(Site):
    """A site whose model is everybody's."""

    def share(self, model: GlobalModel) -> _Site:
        self._model = _Shared(model)  # type: ignore[assignment]  # it answers as one
        return self


def _memory(field: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def run_hub(connection: Connection, folder: str, plan_json: bytes, parameters: int) -> None:
    """Be the hub until the study lies on the disk; send the peak above idle in bytes, and idle."""
    idle = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    hubjournal.COMPACT_BYTES = 1  # type: ignore[misc]  # a checkpoint after every round: more than a long study needs
    ends.STALL_SECONDS = math.inf  # one process computes for all sites, one after another
    place, clock = Path(folder), time.monotonic
    plan = msgspec.json.decode(plan_json, type=Plan)
    identity = Identity.load(place / "hub.json", _PASSPHRASE)
    public = {each.name: Identity.read_public(place / f"{each.name}.json") for each in plan.sites}
    log = open_hub_log(place / "journals", plan.digest, identity)
    hub = Hub(plan, identity, public, schema(), facts=facts_of(parameters), journal=FileJournal(log))
    end = HubEnd(
        hub, identity, public, plan.digest, silence_seconds=1e6, largest=hub.largest, aside=log.folder
    )
    end.start(clock())
    while not (hub.finished and end.idle) and hub.stopped is None:
        for receiver, datagram in end.poll(clock()):
            connection.send_bytes(receiver.encode().ljust(_NAME_BYTES) + datagram)
        if connection.poll(0.02):
            end.receive(connection.recv_bytes(), clock())
        end.tick(clock())
    if hub.stopped is not None:
        raise RuntimeError(hub.stopped)
    if hub.model is not None:
        save_study(place / "studies", hub.result(), identity)
    connection.send_bytes(_PEAK + msgspec.json.encode((_memory("VmHWM") - idle, idle)))


def run_site(connection: Connection, folder: str, plan_json: bytes, parameters: int, manifest: bytes) -> None:
    """Be one site until it has ended; send its peak above idle in bytes, and idle."""
    idle, clock = _memory("VmRSS"), time.monotonic
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    place, plan = Path(folder), msgspec.json.decode(plan_json, type=Plan)
    identity = Identity.load(place / f"{AWAY}.json", _PASSPHRASE)
    public = [Identity.read_public(place / f"{name}.json") for name in ("hub", *(s.name for s in plan.sites))]
    facts = facts_of(parameters)
    worker: Any = _Trains(facts, None)
    journal = SiteJournal(place / "journal", volatile_folder(), identity, plan.digest)
    options: dict[str, Any] = {"trusted": {each.fingerprint: each for each in public}, "manifest": manifest}
    site = Site(plan, identity, public[0], rows=1, worker=worker, journal=journal, **options)
    end = SiteEnd(site, identity, public[0], plan.digest)
    end.open(clock())
    told = False
    with contextlib.suppress(EOFError, OSError):  # it stays until nobody needs an answer of it
        while True:
            for datagram in end.poll(clock()):
                connection.send_bytes(datagram)
            if site.finished and not told:
                journal.forget()
                connection.send_bytes(_PEAK + msgspec.json.encode((_memory("VmHWM") - idle, idle)))
                told = True
            if connection.poll(0.02):
                end.take(connection.recv_bytes(), clock())


def _world(folder: Path, case: Case) -> tuple[Plan, list[tuple[Identity, bytes]], PublicIdentity]:
    """Write identities; return the plan, and each site with its manifest."""
    hub, table = Identity.generate("hub"), pa.table({"x": [0.5], "y": ["no"]})
    hub.save(folder / "hub.json", _PASSPHRASE, cost=_CHEAP)
    sites = []
    for number in range(case.sites):
        identity = Identity.generate(f"site{number}")
        identity.save(folder / f"{identity.name}.json", _PASSPHRASE, cost=_CHEAP)
        keys = LocalKeystore.initialise(folder / identity.name / "keys.json", "x", cost=_CHEAP)
        vault = Vault(folder / identity.name, identity, keys)
        vault.add_table(table, name="rows", schema=schema(), purposes=[_PURPOSE])
        sites.append((identity, vault.open("rows", purpose=_PURPOSE).envelope))
    facts, own = facts_of(case.parameters), schema()
    plan = Plan(
        study=StudySection(name="memory", purpose=_PURPOSE, minimum_sites=3, deadline_seconds=3600.0),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(
            SiteEntry(name=identity.name, identity=identity.fingerprint, dataset="rows")
            for identity, _ in sites
        ),
        data=DataSection(schema=own.digest().hex(), features=own.features, label="y"),
        model=ModelSection(kind="logistic", initial=facts.pin),
        training=TrainingSection(rounds=case.rounds, batch=1, local_steps=1, learning_rate=0.1),
        aggregation=AggregationSection(bits=case.bits, hub_view=case.hub_view, value_range=0.01),
    )
    return plan, sites, hub.public


def peaks_of(case: Case) -> dict[str, dict[str, float]]:
    """Return, of the hub and of one site, the peak above idle over the adapter's bytes, and both in MB."""
    with tempfile.TemporaryDirectory() as place:
        plan, sites, hub = _world(Path(place), case)
        given = (place, msgspec.json.encode(plan), case.parameters)
        with _process(run_hub, *given) as at_hub, _process(run_site, *given, sites[0][1]) as away:
            peaks = _carry(at_hub, away, plan, sites, hub, case)
    adapter = 4 * case.parameters
    return {
        who: {
            "over_adapter": round(peak / adapter, 3),
            "peak_mb": round(peak / 1e6, 1),
            "adapter_mb": round(adapter / 1e6, 1),
            "idle_mb": round(idle / 1e6, 1),
        }
        for who, (peak, idle) in peaks.items()
    }


@contextlib.contextmanager
def _process(target: Callable[..., None], *given: Any) -> Iterator[Connection]:
    """Run a function in a fresh process; give this end of the pipe to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *given), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:  # what it had to say was said
        process.kill()
        process.join()


def _carry(
    at_hub: Connection,
    away: Connection,
    plan: Plan,
    sites: Sequence[tuple[Identity, bytes]],
    hub: PublicIdentity,
    case: Case,
) -> dict[str, tuple[int, int]]:
    """Be all sites but one until hub and site have said what they needed."""
    facts = facts_of(case.parameters)
    model = GlobalModel.of(plan, facts.initial, facts, spend=True)
    worker: Any = _Trained(facts, np.full(case.parameters, 0.001, np.float32))
    trusted = {identity.fingerprint: identity.public for identity, _ in sites}
    links = {}
    for identity, manifest in sites[1:]:
        options: dict[str, Any] = {"trusted": trusted, "manifest": manifest, "rows": 1, "worker": worker}
        machine = _Site(plan, identity, hub, **options).share(model)
        links[identity.name] = SiteEnd(machine, identity, hub, plan.digest)
    came: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
    for who, connection in (("hub", at_hub), ("site", away)):
        threading.Thread(target=_read, args=(who, connection, came), daemon=True).start()
    for end in links.values():
        end.open(time.monotonic())
    turn, peaks = list(links), {}
    while len(peaks) < 2:
        for name in turn:
            for datagram in links[name].poll(time.monotonic()):
                at_hub.send_bytes(datagram)
        try:
            who, data = came.get(timeout=0.02)
        except queue.Empty:
            turn = list(links)
            continue
        turn = []
        if data is None:
            if who not in peaks:
                raise RuntimeError(f"the process of the {who} ended")
        elif data.startswith(_PEAK):
            peaks[who] = msgspec.json.decode(data[_NAME_BYTES:], type=tuple[int, int])
        elif who == "site":
            if "hub" not in peaks:
                at_hub.send_bytes(data)
        elif (name := data[:_NAME_BYTES].rstrip().decode()) == AWAY:
            away.send_bytes(data[_NAME_BYTES:])
        else:
            links[name].take(memoryview(data)[_NAME_BYTES:], time.monotonic())
            turn = [name]
    return peaks


def _read(who: str, here: Connection, came: queue.SimpleQueue[tuple[str, bytes | None]]) -> None:
    """Take whatever comes, so that nobody waits for this process."""
    try:
        while True:
            came.put((who, here.recv_bytes()))
    except (EOFError, OSError):
        came.put((who, None))


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Return what `benchmarks.lora` reports: at 8 bits, hub_view = "sum", with 3 and with 30 sites."""
    counts = (3,) if quick else (3, 30)
    peaks = {str(count): peaks_of(Case(count, 8, "sum")) for count in counts}
    found = {count: each["hub"]["over_adapter"] for count, each in peaks.items()}
    return {"hub_peak_over_adapter": {"3": None, "30": None} | found}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 30])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 16, 32], choices=[8, 16, 32])
    parser.add_argument("--view", nargs="+", default=["sum", "none"], choices=["sum", "none"])
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    given = parser.parse_args()
    first = 1 if given.quick else None
    cases = [
        Case(count, bits, view, given.parameters)
        for count in given.sites[:first]
        for bits in given.bits[:first]
        for view in given.view[:first]
    ]
    found = {f"{case.sites} sites, {case.bits} bits, {case.hub_view}": peaks_of(case) for case in cases}
    emit("lora_memory", {"parameters": given.parameters, "peaks": found})


if __name__ == "__main__":
    main()
