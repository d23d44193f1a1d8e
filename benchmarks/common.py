"""What every benchmark shares: the conditions it ran under, and one JSON object on stdout.

Order of a benchmark: parse arguments, measure, `emit`. A figure that was skipped is null, with its reason in
`reasons`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["arguments", "conditions", "data_folder", "emit", "median_seconds", "peer"]

_PACKAGES = ("cloister", "numpy", "cryptography", "pyarrow", "msgspec", "scikit-learn", "safetensors")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def conditions() -> dict[str, Any]:
    """Return what a reader needs to judge a timing: machine, versions, load, thread settings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "load_average": _load(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "openblas_num_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
    }


def emit(name: str, result: Mapping[str, Any]) -> None:
    """Print one JSON object: the benchmark's name, its result, the conditions."""
    print(json.dumps({"benchmark": name, **result, "conditions": conditions()}, indent=2, allow_nan=False))


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks take: `--quick` and `--data`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; figures are rougher")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of public data; default $CLOISTER_TEST_DATA"
    )
    return parser


def data_folder(given: Path | None) -> Path | None:
    """Return the folder of public data that was asked for, or that $CLOISTER_TEST_DATA names; else None."""
    if given is not None:
        return given
    named = os.environ.get("CLOISTER_TEST_DATA")
    return Path(named) if named else None


def median_seconds(action: Callable[[], object], *, repeats: int, warmup: int = 1) -> float:
    """Return the median wall time of `action` in seconds of `repeats` runs after `warmup` unmeasured ones."""
    for _ in range(warmup):
        action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peer(name: str, script: str, *options: object) -> tuple[Any, str | None]:
    """Run a script of `benchmarks/peers` with the interpreter of the peer it measures.

    Returns:
        What it printed as JSON and None; or None and the reason why there is no figure.
    """
    root = Path(__file__).resolve().parent.parent
    python = root / ".peers" / name / "bin" / "python"
    if not python.exists():
        return None, "the peer is not installed; run `make bench-setup`"
    command = [str(python), str(root / "benchmarks" / "peers" / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return None, f"the peer failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return json.loads(done.stdout), None
