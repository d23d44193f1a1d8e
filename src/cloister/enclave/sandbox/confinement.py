"""The walls around plaintext, put up after imports and before the first byte of data.

Order, in a process that `isolate` was called in and that has one thread:
1. the filter of system calls is compiled, while the files that needs are in sight;
2. a root of the worker's own takes the machine's place: only what is named here exists (`root.py`);
3. memory is locked where allowed; privileges, capabilities, core files, readers are given up (`limits.py`);
4. Landlock: whatever the mounts say, nothing else is read or written, nothing is run (`landlock.py`);
5. seccomp: an allow-list of system calls (`seccomp.py`);
6. the walls are tried from inside; one that does not hold is a refusal.

Every wall is required. What a machine may lack without a refusal is what `Confinement` reports as False:
locked memory, secret memory, a /proc of its own (then there is none). Not covered: what the data decide about
timing and memory access, the kernel's own faults, and what the worker says over the channel it was given.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.enclave.sandbox import landlock, limits, seccomp, secretmem
from cloister.enclave.sandbox.namespaces import isolation, threads
from cloister.enclave.sandbox.root import DEVICES, PROC, enter_root, runtime_paths
from cloister.errors import PolicyRefused

__all__ = ["Confinement", "confine"]


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds around this process. Walls that are always there are named; the rest is true or false.

    Attributes:
        namespaces: names of the namespaces of its own.
        landlock_abi: the Landlock ABI that is enforced.
        seccomp: system calls are filtered, for every thread.
        no_new_privileges: no program could gain rights, if one could be run.
        dumpable: False: no core file, no tracer, /proc/PID shut.
        memory_locked: no page of it reaches swap; False where the limit on locked memory forbids it.
        secret_memory: memfd_secret is there for keys (`SecretBytes`).
        own_proc: /proc shows this PID namespace; False: there is no /proc at all.
        scratch: the folder that can be written, in memory.
    """

    namespaces: tuple[str, ...]
    landlock_abi: int
    seccomp: bool
    no_new_privileges: bool
    dumpable: bool
    memory_locked: bool
    secret_memory: bool
    own_proc: bool
    scratch: Path

    @property
    def by_name(self) -> dict[str, bool | None]:
        """The walls by name, for people: whether each stands."""
        stand: dict[str, bool | None] = dict.fromkeys(self.namespaces, True)
        return stand | {
            "file system of its own": True,
            "Landlock": self.landlock_abi > 0,
            "seccomp": self.seccomp,
            "no new privileges": self.no_new_privileges,
            "not dumpable": not self.dumpable,
            "memory locked": self.memory_locked,
            "secret memory": self.secret_memory,
        }


def confine(
    read: Sequence[Path] = (), write: Sequence[Path] = (), *, handed: int | None = None
) -> Confinement:
    """Put up every wall around this process, for good.

    Args:
        read: files and folders it may read, beside the interpreter's own libraries.
        write: files and folders it may write, beside its scratch space.
        handed: a descriptor over which its starter may hand it open sockets; None: over none.

    Raises:
        PolicyRefused: `isolate` was not called, other threads run, or a wall is missing on this machine.
        InputError: a path does not exist.
    """
    inside = isolation()
    if inside is None:
        raise PolicyRefused("a process is confined only after isolate()", fix="Start it with spawn()")
    if (count := threads()) != 1:
        raise PolicyRefused(
            f"{count} threads run: Landlock would hold one of them only",
            fix="Confine before threads start; keep OPENBLAS_NUM_THREADS=1 as spawn() has it",
        )
    rules = seccomp.prepare(handed)
    landlock.abi()
    libraries = runtime_paths()
    writable = (inside.scratch, *write)
    own_proc = enter_root(inside.scratch.parent / "root", libraries=libraries, read=read, write=writable)
    os.chdir(inside.scratch)
    locked = limits.lock_memory()
    limits.give_up()
    readable = [*libraries, *read, *(PROC if own_proc else ())]
    enforced = landlock.restrict(readable, [*writable, *(path for path in DEVICES if path.exists())])
    try:
        rules.load()
    except OSError as error:
        raise PolicyRefused(f"system calls cannot be filtered here: {error.strerror}") from error
    _try_the_walls()
    return Confinement(
        namespaces=inside.namespaces,
        landlock_abi=enforced,
        seccomp=True,
        no_new_privileges=True,
        dumpable=False,
        memory_locked=locked,
        secret_memory=secretmem.available(),
        own_proc=own_proc,
        scratch=inside.scratch,
    )


def _try_the_walls() -> None:
    """Do from inside what must fail."""
    try:
        socket.socket().close()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise PolicyRefused(f"the filter of system calls answers wrongly: {error.strerror}") from error
    else:
        raise PolicyRefused("a socket could be made after the filter of system calls was put up")
    for path in ("/", "/dev"):
        try:
            list(Path(path).iterdir())
        except OSError:
            continue
        raise PolicyRefused("a folder could be listed after Landlock was put up", where=path)
