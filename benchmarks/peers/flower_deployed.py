"""A deployed round of Flower: SuperLink and SuperNodes are processes on loopback, run by the peer's Python.

    .peers/flower/bin/python benchmarks/peers/flower_deployed.py PARAMETERS NODES ROUNDS [LIMIT]

The app is `flower_app`: each node returns the array of float32 plus one, the server averages with Flower's
own FedAvg. No TLS, no secure sum, no accounts: the least that Flower does in a round. In its defaults, which
run here, a node without work asks again after 3 s, and so does a server that waits for replies: a round that
takes 6 s whatever its size has waited for both.

Prints one JSON object; `round_s` is the median over all rounds but the first, from the choice of nodes to the
average. Gives up after LIMIT seconds (240) and ends, by process id, everything that it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

BIN = Path(sys.executable).parent
APP = Path(__file__).resolve().parent / "flower_app"
_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 8.0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        ports = []
        for _ in range(count):
            held = open_sockets.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports.append(held.getsockname()[1])
        return ports


def environment(folder: Path) -> dict[str, str]:
    """Return surroundings in which nothing is reported to anybody and no proxy is asked."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def children() -> list[int]:
    """Return the process ids whose parent is this process; as their reaper it also inherits their orphans."""
    mine = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
                if int(after_name.split()[1]) == os.getpid():
                    mine.append(int(entry.name))
    return mine


def stop(started: list[subprocess.Popen[bytes]]) -> None:
    """End what was started: a polite signal, then the hard one, then whatever they left behind."""
    for process in reversed(started):
        process.terminate()
    until = time.monotonic() + _GRACE
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
    while left := children():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


@contextlib.contextmanager
def processes(folder: Path, nodes: int) -> Iterator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """Start the SuperLink and the SuperNodes; yield the SuperLink's port and all of them; stop them."""
    surroundings = environment(folder)
    link, *ports = free_ports(nodes + 1)
    options = ["--insecure", "--host", "127.0.0.1"]
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [str(BIN / command[0]), *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=surroundings,
                )
            )

    try:
        start(
            "link",
            "flower-superlink",
            *options,
            "--port",
            str(link),
            "--disable-runtime-dependency-installation",
        )
        wait_for_port(link, started)
        for number, port in enumerate(ports):
            where = ["--superlink", f"127.0.0.1:{link}", "--port", str(port)]
            start(f"node{number}", "flower-supernode", *options, *where)
        yield link, started
    finally:
        stop(started)


def alive(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is not None:
            raise RuntimeError(f"one of its processes ended by itself with {process.returncode}")


def wait_for_port(port: int, started: list[subprocess.Popen[bytes]]) -> None:
    while True:  # the alarm ends it
        alive(started)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)


def submit(folder: Path, link: int, settings: dict[str, object]) -> None:
    """Hand the app to the SuperLink, as `flwr run` does."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    where = f'[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (home / "config.toml").write_text(where, encoding="utf-8")
    config = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    done = subprocess.run(
        [str(BIN / "flwr"), "run", str(APP), "bench", "--run-config", config],
        capture_output=True,
        text=True,
        env=environment(folder),
        cwd=folder,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"flwr run refused the app: {(done.stderr or done.stdout).strip()[-400:]}")


def measure(folder: Path, parameters: int, nodes: int, rounds: int) -> dict[str, object]:
    times = folder / "times.json"
    begin = time.monotonic()
    with processes(folder, nodes) as (link, started):
        settings = {"parameters": parameters, "nodes": nodes, "rounds": rounds, "times": str(times)}
        submit(folder, link, settings)
        while not times.exists():
            alive(started)
            time.sleep(0.1)
    found = json.loads(times.read_text(encoding="utf-8"))
    if not found["right"] or found["answered"] != [nodes] * rounds:
        raise RuntimeError(f"the average is wrong or nodes were missing: {found['answered']}")
    seconds = [round(value, 4) for value in found["seconds"]]
    return {
        "version": importlib.metadata.version("flwr"),
        "round_s": round(statistics.median(found["seconds"][1:] or found["seconds"]), 4),
        "rounds_s": seconds,
        "parameters": parameters,
        "nodes": nodes,
        "protection": "none",
        "seconds": round(time.monotonic() - begin, 1),
    }


def give_up(number: int, _frame: FrameType | None) -> None:
    what = "no result within the time limit" if number == signal.SIGALRM else "stopped from outside"
    raise RuntimeError(what)


def tail(folder: Path) -> str:
    """Return the last lines that its processes wrote, for whoever asks why it failed."""
    parts = []
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        parts += [f"--- {log.stem}", *lines]
    return "\n".join(parts)


def main() -> int:
    parameters, nodes, rounds, *rest = (int(text) for text in sys.argv[1:])
    # what its processes leave behind becomes a child of this one, and is ended with the rest
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, give_up)
    signal.alarm(rest[0] if rest else 240)
    with tempfile.TemporaryDirectory(prefix="flower-", ignore_cleanup_errors=True) as name:
        try:
            result = measure(Path(name), parameters, nodes, rounds)
        except (RuntimeError, OSError) as error:
            signal.alarm(0)
            print(tail(Path(name)), file=sys.stderr)
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
