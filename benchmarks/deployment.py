"""A deployed round: a hub and its sites as processes of their own, over NATS with TLS on both sides.

    python -m benchmarks.deployment [--quick] [--no-peer]

    round_s_1m, _10m                    seconds from one sum to the next with three sites, by parameters
    round_s_100                         the same of a private step of 100 parameters at four sites, debited
    flower_over_ours                    the same round of 1 M float32 of Flower, without any protection
    hub_view_none_over_sum              1 M parameters, four sites: hub may not see the sum, over it may
    hub_vectors_above_idle_100_sites    what the hub's memory peaks at during rounds of 100 sites, above what
                                        it holds when set-up is done, in masked updates of one site

A round is everything between two sums: outcome to the sites, "training" (a constant is added, as the peer's
nodes do), encoding, masks, upload, unmasking, the sum, the journals. What it is compared with runs on the
same machine, one after the other. Sites of the 100 share a few processes; the hub's process is its own.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.common import arguments, emit, peer
from benchmarks.deployment_network import serve
from benchmarks.deployment_world import Case, World

MANY = 100
SITES = (3, 10, 30, 100)
FEW = 10  # sites that have a process each
PROCESSES = 2  # that the sites share, where there are more
_LIMIT = 540.0  # seconds for a case
_GRACE = 10.0
_VOLATILE = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # a fresh folder in it


class FailedError(Exception):
    """A case has no figure, and why."""


@dataclass
class Told:
    """What the processes of a case said."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    idle: dict[str, int] | None = None
    end: dict[str, Any] | None = None
    right: bool | None = None
    refused: int = 0
    last: str = ""

    def take(self, line: dict[str, Any]) -> None:
        """Take a line of the hub."""
        self.last = json.dumps(line)[:300]
        match line["event"]:
            case "round":
                self.rounds.append(line)
            case "setup":
                self.idle = {"resident": line["resident"], "peak": line["peak"]}
            case "end":
                self.end = line
            case "checked":
                self.right = line["right"]
            case "Refused" | "Burnt" | "Stalled":
                self.refused += 1


class Party:
    """A started process and the lines that it says."""

    def __init__(
        self, lines: queue.Queue[tuple[Party, str | None]], log: IO[bytes], volatile: Path, *command: str
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.deployment_party", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).resolve().parent.parent,
            env=os.environ | {"XDG_RUNTIME_DIR": str(volatile)},
        )
        self._lines = lines
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put((self, line.decode("utf-8", "replace")))
        self._lines.put((self, None))

    def stop(self) -> None:
        """End it: its standard input ends, then by its process id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reading.join(_GRACE)
        self.process.stdout.close()


def run(case: Case) -> Told:
    """Run a study of separate processes; return what its hub said. Raises FailedError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deployment-")))
        # where sites keep what must not survive the machine; it goes with the run, however that ends
        volatile = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deployment-", dir=_VOLATILE)))
        world = World.prepare(folder, case)
        sites = [site.name for site in world.plan.sites]
        urls = ",".join(stack.enter_context(serve(world, "hub", sites)))
        log = stack.enter_context((folder / "log").open("wb"))
        lines: queue.Queue[tuple[Party, str | None]] = queue.Queue()

        def start(*command: str) -> Party:
            party = Party(lines, log, volatile, *command)
            stack.callback(party.stop)
            return party

        hub = start("hub", str(folder), urls)
        count = len(sites) if len(sites) <= FEW else PROCESSES
        for number in range(count):
            start("sites", str(folder), urls, *sites[number::count])
        try:
            return _listen(lines, hub, case)
        except FailedError as error:
            written = (folder / "log").read_text(encoding="utf-8", errors="replace").strip()
            raise FailedError(f"{error}; {written[-600:]}") from None


def _listen(lines: queue.Queue[tuple[Party, str | None]], hub: Party, case: Case) -> Told:
    told, until = Told(), time.monotonic() + _LIMIT
    while True:
        try:
            party, line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise FailedError(f"not over after {_LIMIT:.0f} s; the hub said last: {told.last}") from None
        if party is hub and line is not None:
            told.take(json.loads(line))
        elif party is hub:
            return _checked(told, case)
        elif line is None and party.process.wait(_GRACE) and told.end is None:
            raise FailedError(f"a process of sites ended with {party.process.returncode}")


def _checked(told: Told, case: Case) -> Told:
    if told.end is None or told.end["stopped"] is not None or told.right is False:
        raise FailedError(f"the study did not end as it should; the hub said last: {told.last}")
    if len(told.rounds) != case.rounds or any(each["survivors"] != case.sites for each in told.rounds):
        raise FailedError(f"rounds or sites were missing: {[each['survivors'] for each in told.rounds]}")
    return told


def periods(told: Told) -> list[float]:
    """Return the seconds between one finished round and the next; the first round is not among them."""
    times = [each["at"] for each in told.rounds]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def timed(case: Case) -> dict[str, Any]:
    """Return a case's median round, its spread, and how much of it the hub spent from start to sum."""
    told = run(case)
    seconds = sorted(periods(told))
    return {
        "round_s": round(statistics.median(seconds), 5),
        "fastest_s": round(seconds[0], 5),
        "slowest_s": round(seconds[-1], 5),
        "start_to_sum_s": round(statistics.median(each["seconds"] for each in told.rounds[1:]), 5),
        "rounds": len(seconds),
        "parameters": case.parameters,
        "sites": case.sites,
        "hub_view": case.hub_view,
        "refused_or_burnt": told.refused,
    }


def hub_memory(case: Case) -> dict[str, Any]:
    """Return the hub's memory above idle, in vectors as one site uploads them."""
    told = run(case)
    assert told.end is not None
    if told.idle is None:
        raise FailedError("the hub did not say that set-up was done")
    above = told.end["peak"] - told.idle["resident"]
    return {
        "vectors_above_idle": round(above / case.vector_bytes, 2),
        "above_idle_bytes": above,
        "idle_bytes": told.idle["resident"],
        "peak_bytes": told.end["peak"],
        "vector_bytes": case.vector_bytes,
        "float64_vectors_above_idle": round(above / (8 * case.parameters), 2),
        "round_s": round(statistics.median(periods(told)), 3),
        "parameters": case.parameters,
        "sites": case.sites,
    }


def attempt(name: str, measure: Any, case: Case, reasons: dict[str, str | None]) -> dict[str, Any] | None:
    """Measure, or say in `reasons` why there is no figure."""
    try:
        found: dict[str, Any] = measure(case)
    except (FailedError, ImportError, OSError) as error:
        reasons[name] = str(error)
        return None
    reasons[name] = None
    return found


def over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else round(one / other, 3)


def flower(rounds: int) -> tuple[dict[str, Any] | None, str | None]:
    """Return the peer's round, or why there is none."""
    return peer("flower", "flower_deployed.py", 1_000_000, 3, rounds, 240)


def _rounds(quick: bool, few: int, many: int) -> int:
    return 1 + (few if quick else many)  # the first is not timed


def main() -> None:
    parser = arguments("seconds of a deployed round")
    parser.add_argument("--no-peer", action="store_true", help="do not run Flower")
    parsed = parser.parse_args()
    quick: bool = parsed.quick
    reasons: dict[str, str | None] = {}
    views: Sequence[Literal["sum", "none"]] = ("sum", "none")
    million = attempt("1m", timed, Case(1_000_000, _rounds(quick, 8, 40)), reasons)
    four = {
        view: attempt(f"1m_4_{view}", timed, Case(1_000_000, _rounds(quick, 6, 30), 4, view), reasons)
        for view in views
    }
    ten = attempt("10m", timed, Case(10_000_000, _rounds(quick, 3, 12)), reasons)
    hundred = attempt("100", timed, Case(100, _rounds(quick, 100, 500), sites=4, private=True), reasons)
    memory = attempt("memory", hub_memory, Case(100_000, 3 if quick else 6, sites=MANY), reasons)
    large = None if quick else attempt("memory_1m", hub_memory, Case(1_000_000, 4, sites=MANY), reasons)
    curve = (
        {} if quick else {n: attempt(f"{n}_sites", timed, Case(100_000, 6, sites=n), reasons) for n in SITES}
    )
    found, reasons["flower"] = (None, "not asked for") if parsed.no_peer else flower(4 if quick else 13)
    seconds = {
        name: None if case is None else case["round_s"]
        for name, case in {"1m": million, **four, "10m": ten, "100": hundred}.items()
    }
    emit(
        "deployment",
        {
            "round_s_1m": seconds["1m"],
            "flower_over_ours": over(None if found is None else found["round_s"], seconds["1m"]),
            "round_s_10m": seconds["10m"],
            "round_s_100": seconds["100"],
            "hub_view_none_over_sum": over(seconds["none"], seconds["sum"]),
            "hub_vectors_above_idle_100_sites": None if memory is None else memory["vectors_above_idle"],
            "cases": {"1m": million, "1m_4_sites": four, "10m": ten, "100": hundred},
            "memory": memory,
            "memory_1m": large,
            "round_s_100k_by_sites": {
                n: None if each is None else each["round_s"] for n, each in curve.items()
            },
            "flower": found,
            "protection": {"ours": "TLS, signed and sealed messages, secure sum", "flower": "none"},
            "reasons": reasons,
        },
    )


if __name__ == "__main__":
    main()
