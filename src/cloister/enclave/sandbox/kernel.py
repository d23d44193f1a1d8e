"""The Linux calls that Python 3.11 has no name for, through libc, each with its errno checked.

Nothing here decides anything: a call either does what it says or raises OSError. Numbers are those of x86_64
and aarch64 (Linux `asm/unistd`); calls added since 5.1 have one number everywhere.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

__all__ = [
    "capset_none",
    "landlock_abi",
    "landlock_add_path",
    "landlock_create",
    "landlock_restrict",
    "machine",
    "memfd_secret",
    "mlockall",
    "mount",
    "pivot_here",
    "prctl",
    "restrict_mount",
    "unshare",
]

# linux/sched.h
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

# linux/mount.h
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MNT_DETACH: Final = 0x2

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# linux/mman.h
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

_CAPABILITY_VERSION_3: Final = 0x2008_0522
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_MOUNT_SETATTR: Final = 442
_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT: Final = 446
_MEMFD_SECRET: Final = 447
_BY_MACHINE: Final = {
    "x86_64": {"pivot_root": 155, "capset": 126},
    "aarch64": {"pivot_root": 41, "capset": 91},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7
_libc.unshare.argtypes = [ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mlockall.argtypes = [ctypes.c_int]


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(what: str, number: int, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    return _checked(int(_libc.syscall(number, *padded)), what)


def machine() -> str | None:
    """The processor family where its system call numbers are known here ("x86_64", "aarch64"), else None."""
    name = platform.machine()
    return name if name in _BY_MACHINE else None


def unshare(flags: int) -> None:
    """Move this process (its next child, for CLONE_NEWPID) into new namespaces: unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str | Path, target: str | Path, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode())
    _checked(result, "mount")


def restrict_mount(target: str | Path, attributes: int, *, recursive: bool) -> None:
    """Add MOUNT_ATTR_* to a mount, and to all below it where `recursive`: mount_setattr(2), Linux 5.12."""
    path = ctypes.create_string_buffer(os.fsencode(target))
    attr = _MountAttr(attr_set=attributes)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attr)
    _syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        ctypes.addressof(path),
        flags,
        ctypes.addressof(attr),
        size,
    )


def pivot_here(root: Path) -> None:
    """Make `root`, a mount, the root of this mount namespace, and let go of the old one: pivot_root(2)."""
    os.chdir(root)
    dot = ctypes.create_string_buffer(b".")
    number = _BY_MACHINE[platform.machine()]["pivot_root"]
    _syscall("pivot_root", number, ctypes.addressof(dot), ctypes.addressof(dot))
    _checked(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument; returns its result."""
    return _checked(_libc.prctl(option, value, 0, 0, 0), "prctl")


def capset_none() -> None:
    """Give up every effective, permitted and inheritable capability of this thread: capset(2)."""
    header = _CapHeader(version=_CAPABILITY_VERSION_3, pid=0)
    nothing = (ctypes.c_uint32 * 6)()
    number = _BY_MACHINE[platform.machine()]["capset"]
    _syscall("capset", number, ctypes.addressof(header), ctypes.addressof(nothing))


def mlockall() -> None:
    """Keep every page this process touches, now and later, out of swap: mlockall(2), on fault."""
    _checked(_libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), "mlockall")


def landlock_abi() -> int:
    """The running kernel's Landlock ABI, 1 or more; OSError where it has none or it is switched off."""
    return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, 0, 0, _CREATE_RULESET_VERSION)


def landlock_create(filesystem: int, network: int, scoped: int, *, abi: int) -> int:
    """A file descriptor of a rule set that handles these rights; fields unknown to the ABI are left out."""
    attr = _RulesetAttr(filesystem, network, scoped)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, ctypes.addressof(attr), size, 0)


def landlock_add_path(ruleset: int, parent: int, access: int) -> None:
    """Allow `access` on what the descriptor `parent` (O_PATH) names and on everything beneath it."""
    rule = _PathBeneath(access, parent)
    _syscall("landlock_add_rule", _LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.addressof(rule), 0)


def landlock_restrict(ruleset: int) -> None:
    """Put this thread, and every thread it starts, under the rule set: landlock_restrict_self(2)."""
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)


def memfd_secret() -> int:
    """A descriptor of memory that the kernel itself has no mapping of: memfd_secret(2), closed on exec."""
    return _syscall("memfd_secret", _MEMFD_SECRET, os.O_CLOEXEC)
