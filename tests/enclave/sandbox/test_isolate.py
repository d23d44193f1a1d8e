from __future__ import annotations

from pathlib import Path

from tests.enclave.sandbox.inside import inside


def test_every_namespace_is_another_than_the_starters() -> None:
    kinds = ("user", "pid", "net", "ipc", "uts", "mnt")
    ours = {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds}
    code = f"for kind in {kinds!r}: say(kind, os.readlink('/proc/self/ns/' + kind))"
    theirs = inside(code, confined=False).answers
    assert set(theirs) == set(ours)
    assert not set(theirs.values()) & set(ours.values())


def test_a_second_call_returns_what_the_first_set_up() -> None:
    done = inside("say('same', isolate() is inside)\nsay('pid', os.getpid())", confined=False)
    assert done.answers == {"same": True, "pid": 1}


def test_the_scratch_space_is_memory_of_its_own_and_bounded() -> None:
    code = """
    import tempfile
    say("working folder", os.getcwd() == str(inside.scratch) == tempfile.gettempdir() == os.environ["HOME"])
    mount = [line.split() for line in open("/proc/self/mountinfo") if str(inside.scratch) in line.split()[4]]
    say("kind", [line[line.index("-") + 1] for line in mount])
    def fill():
        with open("much", "wb") as file:
            for _ in range(300):
                file.write(bytes(2**20))
    attempt("more than it holds", fill)
    """
    assert inside(code).answers == {"working folder": True, "kind": ["tmpfs"], "more than it holds": "ENOSPC"}


def test_threads_that_run_already_are_a_refusal() -> None:
    code = """
    import threading
    from cloister.enclave.sandbox import namespaces
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    namespaces._isolated.clear()
    try:
        isolate()
    except Exception as error:
        say(type(error).__name__, str(error))
    stop.set()
    """
    answers = inside(code, confined=False).answers
    assert "once threads run" in answers["PolicyRefused"]
