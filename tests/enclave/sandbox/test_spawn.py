from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.enclave.sandbox.inside import inside, need_walls, start

from cloister.enclave.sandbox import spawn
from cloister.enclave.sandbox.spawn import LAST_WORDS_BYTES

ECHO = """
import socket
channel = socket.socket(fileno=3)
while data := channel.recv(65536):
    channel.sendall(data.upper())
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it came true before a generous deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def worker_of(guardian: int) -> int:
    children = Path(f"/proc/{guardian}/task/{guardian}/children")
    assert until(lambda: bool(children.read_text().split()))
    return int(children.read_text().split()[0])


def test_the_channel_carries_bytes_both_ways_and_ends_with_the_worker() -> None:
    with start(ECHO) as child:
        child.socket.settimeout(30)
        child.socket.sendall(b"rows stay here")
        assert child.socket.recv(100) == b"ROWS STAY HERE"
        assert child.returncode is None
        child.socket.shutdown(1)
        assert child.wait(30) == 0
        assert child.socket.recv(1) == b""


def test_the_worker_inherits_a_channel_a_lifeless_input_and_few_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", "/run/secret")
    monkeypatch.setenv("PYTHONPATH", "/tmp")
    readable, writable = os.pipe()
    os.set_inheritable(readable, True)
    os.set_inheritable(writable, True)
    try:
        code = """
        say("open", sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1])
        say("input", sys.stdin.read())
        say("variables", sorted(os.environ))
        say("words", sys.argv[0])
        say("user", os.getuid(), os.getgid())
        say("isolated", sys.flags.isolated)
        """
        done = inside(code, environment={"OMP_NUM_THREADS": "2", "OF_OURS": "1"})
    finally:
        os.close(readable)
        os.close(writable)
    said = {name: values for name, *values in done.said}
    assert said["open"] == [[0, 1, 2, 3]]
    assert said["input"] == [""]
    assert {"OF_OURS", "OMP_NUM_THREADS", "TMPDIR"} <= set(said["variables"][0])
    assert not {"CLOISTER_PASSPHRASE_FILE", "PYTHONPATH", "CLOISTER_TEST_DATA"} & set(said["variables"][0])
    assert said["user"] == [1000, 1000]
    assert said["isolated"] == [1]


def test_what_the_worker_prints_is_kept_up_to_a_limit_and_never_blocks_it() -> None:
    done = inside("for _ in range(2000): print('x' * 1000)\nsys.stderr.write('the end')\nsys.stderr.flush()")
    assert done.returncode == 0
    assert len(done.words.encode()) <= LAST_WORDS_BYTES
    assert "the end" in done.words


@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("os._exit(7)", 7),
        ("sys.stdout.flush(); raise RuntimeError", 1),
        ("os.abort()", -signal.SIGSEGV),  # process 1 of a namespace ignores SIGABRT, so libc goes on to crash
        ("ctypes.string_at(0)", -signal.SIGSEGV),
    ],
)
def test_how_the_worker_ended_is_told(code: str, returncode: int) -> None:
    assert inside(code).returncode == returncode


def test_a_module_that_does_not_exist_is_an_end_with_words() -> None:
    need_walls()
    with spawn("cloister.no_such_module") as child:
        assert child.wait(30) == 1
        assert "no_such_module" in child.last_words()


@pytest.mark.parametrize("way", ["close", "kill", "guardian", "worker"])
def test_however_it_ends_nothing_of_it_stays(way: str) -> None:
    child = start(ECHO.replace("while", "say('scratch', str(inside.scratch.parent))\nwhile"))
    assert until(lambda: "SAID" in child.last_words())
    scratch = Path(json.loads(child.last_words().splitlines()[0].removeprefix("SAID "))[1])
    worker = worker_of(child.pid)
    assert scratch.is_dir()
    assert not list(scratch.iterdir())  # what is in it is seen inside only
    if way == "close":
        child.close()
    elif way == "kill":
        child.kill()
    else:
        os.kill(child.pid if way == "guardian" else worker, signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL
    assert until(lambda: gone(worker))
    if way == "guardian":
        scratch.rmdir()  # an empty folder is what may stay
    assert not scratch.exists()
    child.close()


def test_the_worker_dies_with_its_starter() -> None:
    need_walls()
    code = """
import sys
from cloister.enclave.sandbox import spawn
child = spawn("timeit", arguments=["-n1", "-r1", "while True: pass"])
print(child.pid, flush=True)
sys.stdin.read()
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        guardian = int(starter.stdout.readline())
        worker = worker_of(guardian)
        starter.kill()
    assert until(lambda: gone(guardian))
    assert until(lambda: gone(worker))


def test_the_worker_outlives_the_thread_that_started_it() -> None:
    children = []
    thread = threading.Thread(target=lambda: children.append(start(ECHO)))
    thread.start()
    thread.join()
    with children[0] as child:
        child.socket.settimeout(30)
        child.socket.sendall(b"still here")
        assert child.socket.recv(100) == b"STILL HERE"


def test_a_worker_knows_when_its_starter_has_nothing_more_to_say() -> None:
    with start(ECHO) as child:
        child.socket.close()
        assert child.wait(30) == 0


def test_further_sockets_are_found_from_five_on() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    code = """
    import socket
    say("open", [n for n in range(100) if os.path.exists(f"/proc/self/fd/{n}")])
    for number in (5, 6):
        socket.socket(fileno=number).sendall(str(number).encode())
    """
    with start(code, extra=[theirs for _, theirs in pairs]) as child:
        for _, theirs in pairs:
            theirs.close()
        for number, (ours, _) in enumerate(pairs, 5):
            ours.settimeout(30)
            assert ours.recv(8) == str(number).encode()
            assert ours.recv(8) == b""  # nobody else holds the other end: neither guardian nor starter
            ours.close()
        assert child.wait(30) == 0
    assert 'SAID ["open", [0, 1, 2, 3, 5, 6]]' in child.last_words()
