"""System calls a worker may make: an allow-list; what is not on it is refused or ends the process.

- allowed: memory, threads, time, waiting, random numbers, files (Landlock and the mounts say which), and
  reading and writing what is open already. Threads may be started, processes not.
- EPERM: what honest libraries try and do without: sockets, forks, priorities, modes and owners of files.
- the process is killed at once: what only an attack needs: running a program, tracing, other processes'
  memory, mounts, namespaces, io_uring, bpf, kernel keys, modules; and calls of another architecture.
- ENOSYS: everything else, as on an older kernel, so that libc takes its older way (clone3 to clone).

A call that is allowed only with some arguments (clone for threads, tgkill to oneself, ioctl to ask whether
something is a terminal, open without making a file set-user-ID) is refused with all others. recvmsg, by which
descriptors can be handed over, is refused too, but for the one socket that `prepare` may be told: who holds
its other end may give the worker open sockets, and the worker can still open none itself.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from cloister.errors import PolicyRefused

__all__ = ["ALLOWED", "KILLED", "REFUSED", "prepare"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED: Final = _names(
    """
    brk mmap munmap mremap mprotect madvise msync mincore mlock mlock2 memfd_secret membarrier mbind
    get_mempolicy exit exit_group futex futex_waitv set_robust_list get_robust_list set_tid_address rseq
    restart_syscall arch_prctl gettid getpid getppid getpgrp getpgid getsid getuid geteuid getgid
    getegid getresuid getresgid getgroups capget uname sysinfo getrusage times getcpu umask sched_yield
    sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max
    sched_get_priority_min getpriority getrlimit rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigsuspend rt_sigtimedwait sigaltstack alarm pause setitimer getitimer clock_gettime clock_getres
    clock_nanosleep nanosleep gettimeofday time timer_create timer_settime timer_gettime timer_delete
    timerfd_create timerfd_settime timerfd_gettime getrandom read readv pread64 preadv preadv2 write
    writev pwrite64 pwritev pwritev2 lseek close close_range dup dup2 dup3 fcntl pipe pipe2 eventfd
    eventfd2 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 recvfrom shutdown getsockopt getsockname getpeername access faccessat faccessat2 stat
    lstat fstat newfstatat statx statfs fstatfs getcwd chdir fchdir readlink readlinkat getdents64 fsync
    fdatasync sync_file_range ftruncate truncate fallocate fadvise64 readahead flock mkdir mkdirat rmdir
    unlink unlinkat rename renameat renameat2 copy_file_range sendfile
    """
)

REFUSED: Final = _names(
    """
    socket socketpair connect bind listen accept accept4 sendmsg sendmmsg recvmsg recvmmsg setsockopt
    fork vfork wait4 waitid kill tkill rt_sigqueueinfo rt_tgsigqueueinfo chmod fchmod fchmodat chown
    fchown lchown fchownat link linkat mknod mknodat utime utimes utimensat futimesat setxattr lsetxattr
    fsetxattr removexattr lremovexattr fremovexattr getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr setpriority nice sched_setparam sched_setscheduler sched_setattr sched_getattr ioprio_set
    ioprio_get setrlimit setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups
    setsid setpgid set_mempolicy mlockall shmget shmat shmctl shmdt semget semop semctl msgget msgsnd
    msgrcv msgctl mq_open inotify_init inotify_init1 inotify_add_watch fanotify_init
    landlock_create_ruleset landlock_add_rule landlock_restrict_self syslog acct vhangup memfd_create
    munlock munlockall symlink symlinkat
    """
)

KILLED: Final = _names(
    """
    execve execveat ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
    pidfd_open pidfd_getfd pidfd_send_signal unshare setns mount umount2 pivot_root chroot mount_setattr
    move_mount open_tree fsopen fsconfig fsmount fspick io_uring_setup io_uring_enter io_uring_register
    bpf perf_event_open userfaultfd seccomp capset add_key request_key keyctl open_by_handle_at
    name_to_handle_at init_module finit_module delete_module kexec_load kexec_file_load reboot swapon
    swapoff quotactl quotactl_fd sethostname setdomainname settimeofday clock_settime clock_adjtime
    adjtimex iopl ioperm modify_ldt personality uselib vmsplice splice tee
    """
)

# linux/sched.h, asm-generic/ioctls.h, linux/prctl.h
_CLONE_THREAD: Final = 0x0001_0000
_CLONE_NEW: Final = 0x7E02_0000 | 0x80  # every namespace, the time namespace too
_IOCTLS: Final = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
_SET_ID: Final = 0o6000
_MAKES_A_FILE: Final = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
_PRCTLS: Final = (2, 3, 15, 16, 21, 23, 27, 30, 39, 0x53564D41)  # questions; PR_SET_NAME; PR_SET_VMA


def prepare(handed: int | None = None) -> Any:
    """A filter ready to be loaded: `.load()` puts it up for every thread.

    Args:
        handed: the descriptor over which open sockets may be handed to this process; None: over none.

    Raises:
        PolicyRefused: pyseccomp or libseccomp is missing, or the kernel does not know seccomp filters.
    """
    try:
        import pyseccomp
    except ImportError as error:
        raise PolicyRefused(
            "pyseccomp is not installed: system calls cannot be filtered", fix="Install cloister[enclave]"
        ) from error
    except RuntimeError as error:
        raise PolicyRefused(
            "libseccomp is not installed: system calls cannot be filtered",
            fix="Install libseccomp2, for example by `cloister enclave setup`",
        ) from error
    try:
        return _rules(pyseccomp, handed)
    except OSError as error:
        raise PolicyRefused(f"system calls cannot be filtered here: {error.strerror}") from error


def _rules(lib: Any, handed: int | None) -> Any:
    rules = lib.SyscallFilter(lib.ERRNO(errno.ENOSYS))
    rules.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)
    rules.set_attr(lib.Attr.CTL_NNP, 1)
    rules.set_attr(lib.Attr.CTL_TSYNC, 1)
    for action, names in (
        (lib.ALLOW, ALLOWED),
        (lib.ERRNO(errno.EPERM), REFUSED),
        (lib.KILL_PROCESS, KILLED),
    ):
        for name in names:
            if name != "recvmsg" or handed is None:
                _add(lib, rules, action, name)
    equal, masked, other = lib.EQ, lib.MASKED_EQ, lib.NE
    flags = lib.Arg(0, masked, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)
    _add(lib, rules, lib.ALLOW, "clone", flags)
    _add(lib, rules, lib.ERRNO(errno.EPERM), "clone", lib.Arg(0, masked, _CLONE_THREAD, 0))
    _add(lib, rules, lib.ALLOW, "tgkill", lib.Arg(0, equal, os.getpid()))
    _add(lib, rules, lib.ERRNO(errno.EPERM), "tgkill", lib.Arg(0, other, os.getpid()))
    _add(lib, rules, lib.ALLOW, "prlimit64", lib.Arg(0, equal, 0))
    _add(lib, rules, lib.ERRNO(errno.EPERM), "prlimit64", lib.Arg(0, other, 0))
    _add(lib, rules, lib.ALLOW, "sendto", lib.Arg(4, equal, 0))  # to whom the socket belongs, and nobody else
    _add(lib, rules, lib.ERRNO(errno.EPERM), "sendto", lib.Arg(4, other, 0))
    if handed is not None:
        _add(lib, rules, lib.ALLOW, "recvmsg", lib.Arg(0, equal, handed))
        _add(lib, rules, lib.ERRNO(errno.EPERM), "recvmsg", lib.Arg(0, other, handed))
    for name, last in (("creat", 1), ("open", 2), ("openat", 3)):
        _add(lib, rules, lib.ALLOW, name, lib.Arg(last, masked, _SET_ID, 0))
        if name != "creat":  # what is not made has no mode, and libc leaves anything there
            _add(lib, rules, lib.ALLOW, name, lib.Arg(last - 1, masked, _MAKES_A_FILE, 0))
    for request in _IOCTLS:
        _add(lib, rules, lib.ALLOW, "ioctl", lib.Arg(1, equal, request))
    for option in _PRCTLS:
        _add(lib, rules, lib.ALLOW, "prctl", lib.Arg(0, equal, option))
    return rules


def _add(lib: Any, rules: Any, action: int, name: str, *arguments: Any) -> None:
    """Add a rule; a call that this architecture or this libseccomp does not know stays with ENOSYS."""
    number = lib.resolve_syscall(lib.Arch.NATIVE, name)
    if number >= 0:
        rules.add_rule(action, number, *arguments)
