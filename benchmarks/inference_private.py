"""A private service in a process of its own, with evidence of a software TPM, not hardware-protected.

    python -m benchmarks.inference_private language DIR THREADS | table FILE

Prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from cloister.enclave.attester import find_attester, measure
from cloister.inference import load_model
from cloister.inference.service import LanguageModel, Limits, Service, Source, TableModel, serving


def source(arguments: list[str]) -> Source:
    """Return what the arguments ask to serve."""
    if arguments[0] == "language":
        return LanguageModel(Path(arguments[1]))
    return TableModel(load_model(Path(arguments[1])))


def main() -> None:
    """Start and serve."""
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else None
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-benchmark-")))
        attester = find_attester(folder / "tpm", software_allowed=True, measured=measure())
        stack.callback(attester.close)
        service = Service(
            source(sys.argv[1:]),
            attester=attester,
            clients=None,
            name="model",
            limits=Limits(),
            threads=threads,
            allow_swap=True,
        )
        stack.callback(service.close)
        service.start()
        address = stack.enter_context(serving(service))
        print(address.rpartition(":")[2], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
