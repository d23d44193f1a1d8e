"""Escapes from the sandbox, each tried from inside and refused; controls show that each would work without it."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.sandbox.inside import inside, outside, start

X86 = platform.machine() == "x86_64"
NUMBERS = {
    "ptrace": 101 if X86 else 117,
    "execve": 59 if X86 else 221,
    "mount": 165 if X86 else 40,
    "unshare": 272 if X86 else 97,
    "process_vm_readv": 310 if X86 else 270,
    "bpf": 321 if X86 else 280,
    "io_uring_setup": 425,
}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, Path]:
    """An owner's folders: a dataset that the worker may read, and a keystore that it may not."""
    dataset, keystore = tmp_path / "datasets" / "loans", tmp_path / "keys"
    dataset.mkdir(parents=True)
    keystore.mkdir()
    (dataset / "part-0.parquet").write_bytes(b"ciphertext")
    (keystore / "identity.json").write_bytes(b"a secret")
    return {"dataset": dataset, "keystore": keystore, "key": keystore / "identity.json", "home": tmp_path}


FILES = """
key, dataset, home = {key!r}, {dataset!r}, {home!r}
part = dataset + "/part-0.parquet"
attempt("read the keystore", lambda: open(key).read())
attempt("list the keystore", lambda: os.listdir(os.path.dirname(key)))
attempt("look for the keystore", lambda: os.stat(key))
attempt("read it by way of ..", lambda: open(dataset + "/../../keys/identity.json").read())
attempt("read it by way of /proc/self/root", lambda: open("/proc/self/root" + key).read())
attempt("read it by way of /proc/self/cwd", lambda: open("/proc/self/cwd/" + "../" * 20 + key).read())
def by_link():
    link = os.path.join(os.environ.get("TMPDIR", home), "link")
    os.symlink(key, link)
    return open(link).read()
attempt("read it by way of a symbolic link", by_link)
attempt("write outside the scratch space", lambda: open(home + "/loot", "w").write("rows"))
attempt("write to /tmp", lambda: open("/tmp/cloister-loot-" + str(os.getpid()), "w").write("rows"))
attempt("write to /dev/shm", lambda: open("/dev/shm/cloister-loot-" + str(os.getpid()), "w").write("rows"))
attempt("add to the dataset", lambda: open(dataset + "/note", "w").write("rows"))
attempt("append to the dataset", lambda: open(part, "a").write("rows"))
attempt("truncate the dataset", lambda: os.close(os.open(part, os.O_RDONLY | os.O_TRUNC)))
attempt("rename in the dataset", lambda: os.rename(part, part + "2"))
attempt("change a mode", lambda: os.chmod(dataset, 0o755))
attempt("change a time", lambda: os.utime(dataset))
attempt("make an attribute", lambda: os.setxattr(dataset, "user.rows", b"rows"))
attempt("list the root", lambda: os.listdir("/"))
attempt("list /tmp", lambda: os.listdir("/tmp"))
attempt("read /etc/passwd", lambda: open("/etc/passwd").read())
attempt("change the package", lambda: open(__import__("cloister").__file__, "a").close())
attempt("change the interpreter", lambda: open(os.path.realpath(os.__file__), "a").close())
for name in {loot!r}:
    if os.path.exists(name):
        os.remove(name)
"""


def _files(home: dict[str, Path]) -> str:
    names = {name: str(path) for name, path in home.items()}
    loot = [f"/{folder}/cloister-loot-" for folder in ("tmp", "dev/shm")]
    return (
        FILES.format(**names, loot=[])
        + f"for n in {loot}:\n    attempt('tidy', lambda: os.remove(n + str(os.getpid())))\n"
    )


def test_nothing_is_read_or_written_but_what_was_allowed(home: dict[str, Path]) -> None:
    control = outside(_files(home)).answers
    del control["tidy"], control["rename in the dataset"]
    worked = {name for name, answer in control.items() if answer == "done"}
    assert set(control) - worked <= {
        "make an attribute",
        "write to /dev/shm",
        "change the interpreter",
        "change the package",
    }, control
    (home["dataset"] / "part-0.parquet2").rename(home["dataset"] / "part-0.parquet")
    for name in ("loot", "link"):
        (home["home"] / name).unlink(missing_ok=True)
    (home["dataset"] / "note").unlink()
    before = (home["dataset"] / "part-0.parquet").read_bytes()

    tried = inside(_files(home), read=[home["dataset"]])

    assert tried.returncode == 0, tried.words
    assert "done" not in tried.answers.values(), tried.answers
    assert (home["dataset"] / "part-0.parquet").read_bytes() == before
    assert sorted(p.name for p in home["home"].iterdir()) == ["datasets", "keys"]


WITHOUT = {
    "mounts": "import cloister.enclave.sandbox.confinement as c\nc.enter_root = lambda *a, **k: True\n",
    "Landlock": "import cloister.enclave.sandbox.landlock as l\nl.restrict = lambda *a: 7\n",
}
QUIET = "import cloister.enclave.sandbox.confinement as c\nc._try_the_walls = lambda: None\n"
READ = "attempt('read', lambda: open({key!r}).read())\nattempt('write', lambda: open({home!r} + '/loot', 'w').close())\n"


@pytest.mark.parametrize("without", ["mounts", "Landlock"])
def test_mounts_and_landlock_each_hold_alone(home: dict[str, Path], without: str) -> None:
    code = READ.format(key=str(home["key"]), home=str(home["home"]))
    tried = inside(code, read=[home["dataset"]], before=WITHOUT[without] + QUIET).answers
    assert set(tried) == {"read", "write"}
    assert "done" not in tried.values()


def test_without_both_of_them_the_keystore_would_be_read(home: dict[str, Path]) -> None:
    code = READ.format(key=str(home["key"]), home=str(home["home"]))
    assert inside(code, before="".join(WITHOUT.values()) + QUIET).answers == {"read": "done", "write": "done"}


def test_a_wall_that_does_not_hold_is_noticed() -> None:
    tried = inside("say('went on', True)", before=WITHOUT["Landlock"])
    assert tried.returncode == 1
    assert "PolicyRefused: a folder could be listed" in tried.words
    assert not tried.said


SOCKETS = """
import socket
attempt("an internet socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close())
attempt("a datagram socket", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close())
attempt("a netlink socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close())
attempt("a pair", lambda: [s.close() for s in socket.socketpair()])
def unix():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect({path!r})
attempt("the broker's socket", unix)
attempt("a name", lambda: socket.getaddrinfo("localhost", 80))
"""


def test_no_socket_is_made_and_none_is_reached(tmp_path: Path) -> None:
    path = str(tmp_path / "broker")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        code = SOCKETS.format(path=path)
        assert set(outside(code).answers.values()) == {"done"}
        tried = inside(code, read=[tmp_path])
        assert set(tried.answers.values()) <= {"EPERM", "gaierror"}, tried.answers
        server.setblocking(False)
        server.accept()[0].close()  # the control's
        with pytest.raises(BlockingIOError):
            server.accept()


def test_there_is_no_network_even_if_sockets_were_allowed(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = f"""
        import socket
        attempt("a connection", lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 5).close())
        attempt("an interface", lambda: [n for _, n in socket.if_nameindex() if n != "lo"][0])
        """
        assert outside(code).answers["a connection"] == "done"
        assert inside(code, confined=False).answers == {
            "a connection": "ENETUNREACH",
            "an interface": "IndexError",
        }


CHANNEL = """
import array, socket
channel = socket.socket(fileno=3)
attempt("pass a descriptor", lambda: channel.sendmsg([b"x"], [(1, 1, array.array("i", [0]))]))
attempt("send it elsewhere", lambda: channel.sendto(b"x", "/tmp/elsewhere"))
attempt("use it", lambda: channel.sendall(b"x"))
"""


def test_the_channel_carries_bytes_and_nothing_else() -> None:
    tried = inside(CHANNEL).answers
    assert tried == {"pass a descriptor": "EPERM", "send it elsewhere": "EPERM", "use it": "done"}


PROCESSES = """
import resource, signal, subprocess, threading
parent = {parent}
attempt("signal the site", lambda: os.kill(parent, 0))
attempt("read the site's environment", lambda: open(f"/proc/{{parent}}/environ").read())
attempt("read the site's memory map", lambda: open(f"/proc/{{parent}}/maps").read())
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("run a program", lambda: subprocess.run([sys.executable, "-c", ""]))
attempt("limits of the site", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE))
"""


def test_other_processes_are_out_of_reach() -> None:
    code = PROCESSES.format(parent=os.getpid())
    assert set(outside(code).answers.values()) == {"done"}
    tried = inside(code).answers
    assert "done" not in tried.values(), tried
    assert tried["signal the site"] == tried["fork"] == tried["run a program"] == "EPERM"
    alone = inside(code, confined=False).answers  # the PID namespace alone
    assert alone["signal the site"] == "ESRCH"


def test_what_is_written_for_the_site_is_a_plain_file(tmp_path: Path) -> None:
    code = f"""
    folder = {str(tmp_path)!r}
    def make(name, mode, flags=os.O_CREAT | os.O_WRONLY):
        os.close(os.open(folder + name, flags, mode))
    attempt("plain", lambda: make("/plain", 0o644))
    attempt("set-user-ID", lambda: make("/tool", 0o4755))
    attempt("set-group-ID", lambda: make("/tool", 0o2755))
    attempt("set-user-ID without a name", lambda: make("", 0o4755, os.O_TMPFILE | os.O_WRONLY))
    attempt("change its mode", lambda: os.chmod(folder + "/plain", 0o4755))
    attempt("symbolic link", lambda: os.symlink("/etc/passwd", folder + "/link"))
    attempt("link", lambda: os.link(folder + "/plain", folder + "/other"))
    attempt("pipe", lambda: os.mkfifo(folder + "/pipe"))
    attempt("device", lambda: os.mknod(folder + "/device", 0o20644, os.makedev(1, 3)))
    """
    control = outside(code).answers
    assert {name for name, answer in control.items() if answer != "done"} <= {"device"}
    for path in tmp_path.iterdir():
        path.unlink()
    tried = inside(code, write=[tmp_path]).answers
    assert [name for name, answer in tried.items() if answer == "done"] == ["plain"]
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


LOOK = """
from cloister.enclave.sandbox import kernel
kernel.capset_none()  # root looks as everybody else does
attempt("memory", lambda: open("/proc/{pid}/mem", "rb").close())
attempt("variables", lambda: open("/proc/{pid}/environ", "rb").read())
attempt("descriptors", lambda: os.readlink("/proc/{pid}/fd/1"))
attempt("trace", lambda: syscall({ptrace}, 16, {pid}))
"""


def test_nobody_of_the_same_user_looks_into_the_worker() -> None:
    with start("say('up', True)\nos.read(3, 1)") as child:
        while "SAID" not in child.last_words():
            assert child.returncode is None
            time.sleep(0.01)
        worker = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0]
        for pid in (int(worker), child.pid):
            seen = outside(LOOK.format(pid=pid, ptrace=NUMBERS["ptrace"])).answers
            assert len(seen) == 4
            assert "done" not in seen.values(), seen


def test_an_ordinary_process_is_looked_into_by_its_user() -> None:
    code = "from cloister.enclave.sandbox import kernel; kernel.capset_none(); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = outside(LOOK.format(pid=process.pid, ptrace=NUMBERS["ptrace"])).answers
        process.kill()
    assert seen["variables"] == seen["descriptors"] == "done"  # memory too, where Yama lets siblings trace


RIGHTS = """
import resource
PR_SET_DUMPABLE, PR_SET_PTRACER, PR_SET_PDEATHSIG, PR_SET_SECUREBITS = 4, 0x59616D61, 1, 28
def prctl(option, value=0):
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
say("dumpable", prctl(3))
say("no new privileges", prctl(39))
say("core", resource.getrlimit(resource.RLIMIT_CORE))
attempt("become dumpable", lambda: prctl(PR_SET_DUMPABLE, 1))
attempt("name a tracer", lambda: prctl(PR_SET_PTRACER, -1))
attempt("outlive the site", lambda: prctl(PR_SET_PDEATHSIG, 0))
attempt("write core files", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))
attempt("become root", lambda: os.setuid(0))
attempt("read its own memory file", lambda: open("/proc/self/mem", "r+b"))
attempt("put characters into a terminal", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
attempt("run code from the scratch space", lambda: __import__("mmap").mmap(
    os.open("code", os.O_CREAT | os.O_RDWR), 0, prot=5) if open("code", "wb").write(bytes(4096)) else None)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
say("status", {name: status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp")})
"""


def test_rights_were_given_up_and_do_not_come_back() -> None:
    tried = inside(RIGHTS).answers
    none = "0" * 16
    status = tried.pop("status")
    assert status.pop("Seccomp") == "2"
    assert set(status.values()) == {none}, status
    assert (tried.pop("dumpable"), tried.pop("no new privileges"), tried.pop("core")) == (0, 1, [0, 0])
    assert len(tried) == 8
    assert "done" not in tried.values(), tried


def test_threads_that_are_started_later_are_behind_the_same_walls(home: dict[str, Path]) -> None:
    code = f"""
    import socket, threading
    def attack():
        attempt("read", lambda: open({str(home["key"])!r}).read())
        attempt("socket", lambda: socket.socket())
        attempt("library", lambda: open(os.__file__).read())
    thread = threading.Thread(target=attack)
    thread.start(); thread.join()
    """
    tried = inside(code).answers
    assert tried == {"read": "ENOENT", "socket": "EPERM", "library": "done"}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_what_only_an_attack_needs_ends_the_process(name: str) -> None:
    tried = inside(
        f"say('before', True)\nattempt('call', lambda: syscall({NUMBERS[name]}))\nsay('after', True)"
    )
    assert tried.returncode == -signal.SIGSYS, tried.words
    assert tried.answers == {"before": True}


def test_the_same_calls_end_no_process_outside() -> None:
    calls = {name: number for name, number in NUMBERS.items() if name != "ptrace"}
    code = f"for name, number in {calls!r}.items():\n    attempt(name, lambda: syscall(number, -1))\n"
    code += "attempt('ptrace', lambda: syscall(NUMBER))\n".replace("NUMBER", str(NUMBERS["ptrace"]))
    control = outside(code)
    assert control.returncode == 0
    assert set(control.answers) == set(NUMBERS)
    assert control.answers["ptrace"] == "done"


MACHINE_CODE = """
import mmap
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(bytes.fromhex({code!r}))
call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
say("before", True)
say("answer", call())
"""
OTHER_CALLS = {
    # mov eax, 20 (getpid of i386); int 0x80; ret
    "32-bit calls": "b814000000cd80c3",
    # mov eax, 0x40000027 (getpid of x32); syscall; ret
    "x32 calls": "b8270000400f05c3",
}


@pytest.mark.skipif(not X86, reason="calls of another architecture exist on x86_64")
@pytest.mark.parametrize("kind", sorted(OTHER_CALLS))
def test_calls_of_another_architecture_end_the_process(kind: str) -> None:
    code = MACHINE_CODE.format(code=OTHER_CALLS[kind])
    assert "answer" in outside(code).answers
    tried = inside(code)
    assert tried.returncode == -signal.SIGSYS, tried.words
    assert tried.answers == {"before": True}


def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    lib: Any = pytest.importorskip("pyseccomp")
    found = {name: lib.resolve_syscall(lib.Arch.NATIVE, name) for name in names}
    return {name: number for name, number in found.items() if number >= 0}


def test_every_call_that_is_on_no_list_is_refused() -> None:
    from cloister.enclave.sandbox import seccomp

    some = _numbers(("clone", "tgkill", "prlimit64", "sendto", "ioctl", "prctl", "open", "openat", "creat"))
    listed = {*_numbers(seccomp.ALLOWED).values(), *_numbers(seccomp.KILLED).values(), *some.values()}
    if X86:
        listed |= {
            335,
            336,
        }  # uretprobe, uprobe: passed by the kernel before any filter, and answered by SIGILL
    refused = _numbers(seccomp.REFUSED)
    code = f"""
    wrong = []
    for number in range(600):
        if number not in {listed!r}:
            try:
                syscall(number, -1, -1, -1, -1, -1, -1)
            except OSError as error:
                if error.errno == (errno.EPERM if number in {sorted(refused.values())!r} else errno.ENOSYS):
                    continue
            wrong.append(number)
    say("wrong", wrong)
    """
    assert inside(code).answers == {"wrong": []}


FILTER_ALONE = """
import signal
from cloister.enclave.sandbox import seccomp
spared = []
for number in {numbers!r}:
    child = os.fork()
    if child == 0:
        seccomp.prepare().load()
        _libc.syscall(number, -1, -1, -1, -1, -1, -1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGSYS:
        spared.append(number)
say("spared", spared)
"""


def test_every_call_on_the_list_of_attacks_ends_the_process() -> None:
    from cloister.enclave.sandbox import seccomp

    numbers = _numbers(seccomp.KILLED)
    assert len(numbers) > 50
    assert outside(FILTER_ALONE.format(numbers=sorted(numbers.values()))).answers == {"spared": []}


CORE = """
import resource, signal
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
{before}
os.abort()
"""


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("this machine writes no core file at all: the hard limit is 0")

    def dumped(before: str) -> bool:
        code = "import os\n" + CORE.format(before=before)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == -signal.SIGABRT
        return os.WCOREDUMP(status)

    give_up = "from cloister.enclave.sandbox.limits import give_up; give_up()\n"
    assert not dumped(give_up)
    only_dumpable = "from cloister.enclave.sandbox import kernel; kernel.prctl(kernel.PR_SET_DUMPABLE, 0)\n"
    assert not dumped(only_dumpable)
    if not dumped(""):
        pytest.skip("refused, but this machine would write no core file anyway")
