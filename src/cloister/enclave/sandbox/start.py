"""What `spawn` starts: namespaces first, then the module that was asked for, as `__main__`.

    python -I -m cloister.enclave.sandbox.start CHANNEL LIFELINE FURTHER MODULE [ARGUMENT...]

CHANNEL, LIFELINE and FURTHER (any number, with commas between) are descriptors that were inherited; the
module finds the channel at 3, the further ones from 5 on, and none but them and the standard three. A refusal
is one sentence on standard error and exit code 3.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import sys

from cloister.enclave.sandbox.namespaces import isolate
from cloister.errors import CloisterError

CHANNEL = 3
_LIFELINE = 4
_ASIDE = 64


def main(arguments: list[str]) -> None:
    """Arrange the descriptors, isolate, and run the module."""
    module = arguments[3]
    given = [*map(int, arguments[:2]), *(int(each) for each in arguments[2].split(",") if each)]
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, _ASIDE) for each in given]
    for place, descriptor in enumerate(moved, CHANNEL):
        os.dup2(descriptor, place, inheritable=False)
    os.closerange(CHANNEL + len(given), 2**20)
    try:
        isolate(_LIFELINE)
        sys.argv = [module, *arguments[4:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except CloisterError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the starter reads it as last words
        sys.stderr.flush()
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1:])
