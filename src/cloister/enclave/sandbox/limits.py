"""What a process gives up by itself: privileges, capabilities, being looked into, core files, swap."""

from __future__ import annotations

import contextlib
import resource

from cloister.enclave.sandbox import kernel
from cloister.errors import PolicyRefused

__all__ = ["give_up", "lock_memory", "shut_readers"]

_MOST_CAPABILITIES = 64


def give_up() -> None:
    """No new privileges, no capability, no core file, no reader.

    PR_SET_DUMPABLE 0 shuts /proc/PID and ptrace to everybody of the same user.

    Raises:
        PolicyRefused: the kernel refuses one of them.
    """
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for capability in range(_MOST_CAPABILITIES):
            with contextlib.suppress(OSError):  # EINVAL: this kernel knows fewer
                kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
        kernel.capset_none()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise PolicyRefused(f"the process cannot give up its rights: {error.strerror}") from error
    if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) != 1 or kernel.prctl(kernel.PR_GET_DUMPABLE) != 0:
        raise PolicyRefused("the process gave up its rights, and the kernel does not say so")


def shut_readers() -> bool:
    """Let no core file of this process be written and nobody of the same user look into it, as far as this
    machine can: for a process that holds keys and lives outside the walls. Return whether it could."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        return kernel.prctl(kernel.PR_GET_DUMPABLE) == 0
    return False


def lock_memory() -> bool:
    """Keep memory out of swap; False where this user may not lock as much as it likes.

    Under a limit nothing is locked: with one, any later allocation beyond it would fail.
    """
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    try:
        kernel.mlockall()
    except OSError:
        return False
    return True
