"""Where the process begins: Ctrl-C is a sentence and exit code 130, however early or late it comes.

1. The commands are imported here, under a guard: that takes most of the time of a short command.
2. Once a command has ended, or was interrupted, SIGINT is ignored: there is nothing left to interrupt, and a
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
        from cloister.cli.main import run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(INTERRUPTED_SENTENCE, file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
