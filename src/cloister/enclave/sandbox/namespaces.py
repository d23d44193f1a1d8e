"""Namespaces of the worker's own: users, processes, network, IPC, host name, mounts.

Order, in a process that still has one thread:
1. an empty folder for the scratch space is made;
2. new user, PID, network, IPC and UTS namespaces; one user is mapped, without privilege outside;
3. a fork: the child is process 1 of the new PID namespace and goes on; the parent stays as its guardian;
4. the child takes a mount namespace of its own and mounts its scratch space, in memory, on that folder.

The guardian holds nothing: no socket, no data, no code but waiting. It kills the worker when the lifeline's
other end closes (its starter died, or let go), ends as the worker ended, and removes the empty folder. The
worker is killed by the kernel when the guardian dies.

Not done here: the file system stays visible, and calls stay possible, until `confine`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from cloister.enclave.sandbox import kernel
from cloister.errors import PolicyRefused, StorageError

__all__ = ["INSIDE_ID", "NAMESPACES", "SCRATCH_BYTES", "Isolation", "isolate", "isolation", "threads"]

INSIDE_ID: Final = 1000
"""The user and group the worker sees itself as; outside it is who started it, without any privilege."""

SCRATCH_BYTES: Final = 256 * 2**20
"""Size limit of the scratch space, which is memory."""

NAMESPACES: Final = {
    "user namespace": kernel.CLONE_NEWUSER,
    "PID namespace": kernel.CLONE_NEWPID,
    "network namespace": kernel.CLONE_NEWNET,
    "IPC namespace": kernel.CLONE_NEWIPC,
    "UTS namespace": kernel.CLONE_NEWUTS,
    "mount namespace": kernel.CLONE_NEWNS,
}


@dataclass(frozen=True, slots=True)
class Isolation:
    """What `isolate` set up.

    Attributes:
        namespaces: names of the new namespaces, keys of `NAMESPACES`.
        scratch: a private folder in memory, the only place that can be written after `confine`.
    """

    namespaces: tuple[str, ...]
    scratch: Path


_isolated: list[Isolation] = []  # this process's own state: one that is isolated stays so


def threads() -> int:
    """How many threads this process has.

    Raises:
        PolicyRefused: /proc is not there to say so.
    """
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError as error:
        raise PolicyRefused("/proc is not mounted: the sandbox needs it to start") from error


def isolation() -> Isolation | None:
    """What `isolate` set up in this process; None before it."""
    return _isolated[0] if _isolated else None


def isolate(lifeline: int | None = None) -> Isolation:
    """Put this process into namespaces of its own. A second call returns what the first one set up.

    `spawn` does this before the module it runs is imported. The caller goes on as process 1 of a new PID
    namespace, in another process than the one it was started as.

    Args:
        lifeline: a descriptor to read from, whose other end the starter holds; when that closes, the worker
            is killed. None: the worker lives as long as its guardian.

    Raises:
        PolicyRefused: a namespace cannot be had here, or threads run already.
        StorageError: there is no folder for temporary files.
    """
    if _isolated:
        return _isolated[0]
    if sys.platform != "linux" or kernel.machine() is None:
        raise PolicyRefused("the sandbox needs Linux on x86_64 or aarch64")
    if threads() != 1:
        raise PolicyRefused(
            "the sandbox cannot be entered once threads run", fix="Isolate before anything is imported"
        )
    raise_memory_lock()
    try:
        folder = Path(tempfile.mkdtemp(prefix="cloister-worker-"))
    except OSError as error:
        raise StorageError("there is no folder for temporary files", fix="Set TMPDIR") from error
    try:
        enter_user_namespace()
        unshare("PID namespace", "network namespace", "IPC namespace", "UTS namespace")
        _fork_under_guardian(lifeline, folder)
    except BaseException:
        folder.rmdir()
        raise
    unshare("mount namespace")
    own_scratch(folder)
    _isolated.append(Isolation(tuple(NAMESPACES), folder / "scratch"))
    settle(_isolated[0].scratch)
    return _isolated[0]


def raise_memory_lock() -> None:
    """Lift the limit on locked memory as far as this user may; privileges end with the user namespace."""
    import resource

    for limit in (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return


def unshare(*names: str) -> None:
    """Enter the named namespaces, one by one, so that a refusal says which.

    Raises:
        PolicyRefused: the kernel does not give it.
    """
    for name in names:
        try:
            kernel.unshare(NAMESPACES[name])
        except OSError as error:
            raise PolicyRefused(f"no {name} can be had here: {error.strerror}", fix=_ADVICE) from error


_ADVICE: Final = (
    "Allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone,"
    " kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile)"
)


def enter_user_namespace() -> None:
    """Enter a user namespace in which this user is `INSIDE_ID` and nobody else exists.

    Raises:
        PolicyRefused: the kernel does not give one, or does not let this user be mapped.
    """
    user, group = os.geteuid(), os.getegid()
    unshare("user namespace")
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{INSIDE_ID} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{INSIDE_ID} {group} 1")
    except OSError as error:
        raise PolicyRefused(
            f"no user can be mapped into a user namespace: {error.strerror}", fix=_ADVICE
        ) from error


def own_scratch(folder: Path) -> None:
    """Cut the mounts off from everybody else's and mount memory on `folder`.

    Raises:
        PolicyRefused: the kernel, or a security module, does not allow mounts in a user namespace.
    """
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("scratch", folder, "tmpfs", flags, f"mode=0700,size={SCRATCH_BYTES}")
        (folder / "scratch").mkdir(mode=0o700)
        (folder / "root").mkdir(mode=0o755)
    except OSError as error:
        raise PolicyRefused(f"nothing can be mounted here: {error.strerror}", fix=_ADVICE) from error


def settle(scratch: Path) -> None:
    """Let temporary files, the home folder and the working folder be the scratch space."""
    os.environ.update(TMPDIR=str(scratch), HOME=str(scratch), USER="worker", LOGNAME="worker")
    tempfile.tempdir = str(scratch)
    os.chdir(scratch)


def _fork_under_guardian(lifeline: int | None, folder: Path) -> None:
    """Go on in a child; the parent becomes the guardian and never returns."""
    alive_read, alive_write = os.pipe()
    worker = os.fork()
    if worker:
        os.close(alive_read)
        _guard(worker, lifeline, alive_write, folder)
    if lifeline is not None:
        os.close(lifeline)
    os.close(alive_write)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive_read], [], [], 0)[0]:  # the guardian died before the kernel was told to watch it
        os._exit(1)
    os.close(alive_read)


def _guard(worker: int, lifeline: int | None, alive: int, folder: Path) -> NoReturn:
    """Wait for the worker or for the lifeline; end as the worker ended. Runs no code of anybody else."""
    code = 1
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        watched = os.pidfd_open(worker)
        keep = {watched, alive} | ({lifeline} if lifeline is not None else set())
        _close_all_but(keep)
        poll = select.poll()
        for descriptor in keep - {alive}:
            poll.register(descriptor, select.POLLIN | select.POLLHUP)
        if all(descriptor != watched for descriptor, _ in poll.poll()):
            os.kill(worker, signal.SIGKILL)
        _, status = os.waitpid(worker, 0)
        with contextlib.suppress(OSError):
            folder.rmdir()
        if os.WIFSIGNALED(status):
            _die_of(os.WTERMSIG(status))
        code = os.waitstatus_to_exitcode(status)
    finally:
        os._exit(code)


def _close_all_but(keep: set[int]) -> None:
    start = 0
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, 2**20)


def _die_of(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
