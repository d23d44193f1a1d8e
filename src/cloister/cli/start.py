"""Where the process begins: Ctrl-C and SIGTERM are a sentence and exit code 130, however early or late.

1. The commands are imported here, under a guard: that takes most of the time of a short command.
2. SIGTERM, which schedulers and service managers send, is taken for Ctrl-C, so that a study gives back what
   it had reserved of a budget, and half-written files are removed.
3. Once a command has ended, or was interrupted, both are ignored: there is nothing left to interrupt, and a
   second Ctrl-C would print a traceback over the sentence that answers the first.
"""

from __future__ import annotations

import signal
import sys
from typing import Final, NoReturn

__all__ = ["INTERRUPTED", "INTERRUPTED_SENTENCE", "main"]

INTERRUPTED: Final = 130
INTERRUPTED_SENTENCE: Final = "Interrupted; nothing was left half-written."


def main() -> NoReturn:
    """Run the process's command line and exit."""
    try:
        signal.signal(signal.SIGTERM, _as_ctrl_c)
        from cloister.cli.main import run

        code = run()
        _end()
    except KeyboardInterrupt:
        _end()
        print(INTERRUPTED_SENTENCE, file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def _as_ctrl_c(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)  # and not KeyboardInterrupt: asyncio has a handler of its own


def _end() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
