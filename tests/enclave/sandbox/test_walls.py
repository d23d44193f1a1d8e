"""What a machine lacks is said in words. Poorer machines are made by taking calls away from a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.enclave.sandbox.inside import need_walls

from cloister.enclave.sandbox import available, require
from cloister.enclave.sandbox.walls import OPTIONAL, REQUIRED
from cloister.errors import PolicyRefused

POORER = """
import errno, json, pyseccomp as lib
from cloister.enclave.sandbox import available, require, spawn, walls
from cloister.errors import CloisterError
rules = lib.SyscallFilter(lib.ALLOW)
for name, number, arguments in {refused!r}:
    rules.add_rule(lib.ERRNO(getattr(errno, number)), name, *(lib.Arg(0, lib.MASKED_EQ, a, a) for a in arguments))
rules.load()
found = available()
try:
    walls.available = lambda: found
    require()
    answer = None
except CloisterError as error:
    answer = [type(error).__name__, str(error)]
with spawn("timeit", arguments=["-n1", "-r1", "from cloister.enclave.sandbox import confine; confine(); print('IN')"]) as child:
    ended = child.wait(60)
print(json.dumps([found, answer, ended, child.last_words()]))
"""


def _poorer(*refused: tuple[str, str, list[int]]) -> tuple[dict[str, str | None], list[str], int, str]:
    need_walls()
    done = subprocess.run(
        [sys.executable, "-c", POORER.format(refused=refused)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"OPENBLAS_NUM_THREADS": "1"},
    )
    found, answer, ended, words = json.loads(done.stdout)
    return found, answer, ended, words


def test_every_wall_is_named() -> None:
    found = available()
    assert list(found) == [*REQUIRED, *OPTIONAL]
    assert all(why is None or why.endswith(".") for why in found.values())


MISSING = [
    (("unshare", "ENOSPC", [0x1000_0000]), "user namespace"),
    (("unshare", "EPERM", [0x2000_0000]), "PID namespace"),
    (("unshare", "EPERM", [0x4000_0000]), "network namespace"),
    (("unshare", "EPERM", [0x2_0000]), "mount namespace"),
    (("mount", "EACCES", []), "mounts"),
    (("pivot_root", "EPERM", []), "mounts"),
    (("mount_setattr", "ENOSYS", []), "mounts"),
    (("landlock_create_ruleset", "EOPNOTSUPP", []), "Landlock"),
]


def _says_so_and_runs_nothing(refused: tuple[str, str, list[int]], wall: str) -> None:
    found, answer, ended, words = _poorer(refused)
    assert found[wall] is not None
    assert answer[0] == "PolicyRefused"
    assert "is missing" in answer[1]
    assert ended != 0
    assert "IN" not in words.splitlines()


def test_a_container_without_namespaces_says_so_and_runs_nothing() -> None:
    _says_so_and_runs_nothing(("unshare", "EPERM", []), "user namespace")


def test_a_kernel_without_landlock_says_so_and_runs_nothing() -> None:
    _says_so_and_runs_nothing(("landlock_create_ruleset", "ENOSYS", []), "Landlock")


@pytest.mark.slow
@pytest.mark.parametrize(("refused", "wall"), MISSING)
def test_a_machine_without_any_other_wall_says_so(refused: tuple[str, str, list[int]], wall: str) -> None:
    _says_so_and_runs_nothing(refused, wall)


def test_what_is_optional_is_reported_and_no_reason_to_refuse() -> None:
    found, answer, ended, words = _poorer(("memfd_secret", "ENOSYS", []), ("mlockall", "EPERM", []))
    assert found["secret memory"] is not None
    assert found["locked memory"] is not None
    assert answer is None
    assert (ended, words.splitlines()[0]) == (0, "IN")


def test_a_trial_that_cannot_be_made_is_a_missing_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert all(why is not None for why in available().values())
    with pytest.raises(PolicyRefused, match="could not be tried"):
        require()


def test_a_process_that_holds_keys_can_shut_its_readers_out() -> None:
    code = (
        "from cloister.enclave.sandbox.limits import shut_readers; import resource;"
        " print(shut_readers(), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["True", "(0, 0)\n"]
