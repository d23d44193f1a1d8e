from __future__ import annotations

from pathlib import Path

import pytest
from tests.enclave.sandbox.inside import Outcome, inside

from cloister.enclave.sandbox import confine
from cloister.errors import PolicyRefused


def test_it_says_what_holds() -> None:
    done = inside("""
    say("namespaces", confinement.namespaces)
    say("walls", confinement.seccomp, confinement.no_new_privileges, confinement.dumpable)
    say("landlock", confinement.landlock_abi >= 1)
    say("optional", [type(v).__name__ for v in (
        confinement.memory_locked, confinement.secret_memory, confinement.own_proc)])
    """)
    said = {name: values for name, *values in done.said}
    assert said["walls"] == [True, True, False]
    assert said["landlock"] == [True]
    assert said["namespaces"] == [
        [f"{kind} namespace" for kind in ("user", "PID", "network", "IPC", "UTS", "mount")]
    ]
    assert said["optional"] == [["bool", "bool", "bool"]]


def test_a_process_that_was_not_isolated_cannot_be_confined() -> None:
    with pytest.raises(PolicyRefused, match="only after isolate"):
        confine()


@pytest.mark.parametrize("given", ["read", "write"])
@pytest.mark.parametrize("path", ["/", "/no/such/folder"])
def test_a_path_that_is_not_there_or_is_everything_is_refused(given: str, path: str) -> None:
    done = inside("say('went on', True)", **{given: [Path(path)]})
    assert done.returncode == 1
    assert "InputError" in done.words
    assert not done.said


def test_a_folder_to_write_and_a_file_to_read(tmp_path: Path) -> None:
    results, file = tmp_path / "results", tmp_path / "model.py"
    results.mkdir()
    file.write_text("weights")
    code = f"""
    attempt("read", lambda: open({str(file)!r}).read())
    attempt("write", lambda: open({str(results)!r} + "/out", "w").write("done"))
    attempt("replace", lambda: os.replace({str(results)!r} + "/out", {str(results)!r} + "/result"))
    attempt("write the file", lambda: open({str(file)!r}, "w").close())
    attempt("beside it", lambda: open({str(tmp_path)!r} + "/other", "w").close())
    """
    answers = inside(code, read=[file], write=[results]).answers
    assert {name for name, answer in answers.items() if answer == "done"} == {"read", "write", "replace"}
    assert (results / "result").read_text() == "done"
    assert file.read_text() == "weights"


def test_a_path_with_symbolic_links_is_found_where_it_always_was(tmp_path: Path) -> None:
    (tmp_path / "versions" / "2").mkdir(parents=True)
    (tmp_path / "versions" / "2" / "part").write_text("rows")
    (tmp_path / "current").symlink_to("versions/2")
    (tmp_path / "absolute").symlink_to(tmp_path / "current")
    path = tmp_path / "absolute"
    done = inside(f"say('read', open({str(path / 'part')!r}).read())", read=[path])
    assert done.answers == {"read": "rows"}


def _refused(before: str) -> Outcome:
    done = inside("say('went on', True)", before=before)
    assert done.returncode == 1
    assert "PolicyRefused" in done.words
    assert not done.said
    return done


def test_threads_that_run_are_a_refusal() -> None:
    done = _refused("""
    import threading
    stop = threading.Event()
    threading.Thread(target=stop.wait, daemon=True).start()
    """)
    assert "2 threads run" in done.words


def test_a_missing_filter_of_system_calls_is_a_refusal() -> None:
    assert "Install cloister[enclave]" in _refused("sys.modules['pyseccomp'] = None").words


ANSWER = """
from cloister.enclave.sandbox import kernel
def refuse(*arguments, **named):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
kernel.{call} = refuse
"""


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("landlock_abi", "ENOSYS", "this kernel has no Landlock"),
        ("landlock_abi", "EOPNOTSUPP", "this kernel has no Landlock"),
        ("landlock_restrict", "EPERM", "Landlock cannot be put up"),
        ("mount", "EACCES", "no file system of the worker's own"),
        ("restrict_mount", "ENOSYS", "no file system of the worker's own"),
        ("pivot_here", "EINVAL", "no file system of the worker's own"),
        ("capset_none", "EPERM", "cannot give up its rights"),
    ],
)
def test_a_wall_that_the_kernel_refuses_is_a_refusal(call: str, error: str, words: str) -> None:
    assert words in _refused(ANSWER.format(call=call, error=error)).words


def test_without_a_proc_of_its_own_there_is_none() -> None:
    before = """
    from cloister.enclave.sandbox import root
    root._mount_proc = lambda root: (root / "proc").mkdir() or False
    """
    code = """
    import numpy as np
    say("own", confinement.own_proc)
    attempt("look", lambda: os.stat("/proc/self"))
    attempt("compute", lambda: np.ones((50, 50)) @ np.ones((50, 50)))
    """
    assert inside(code, before=before).answers == {"own": False, "look": "ENOENT", "compute": "done"}
