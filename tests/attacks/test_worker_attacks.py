"""A user's own code, run in the worker that sees the rows, goes for everything it could reach outside."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.runtime.parties import PURPOSE, parties, plan_for, schema
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import Identity
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.learning import Plan, PrivacySection
from cloister.learning.start import with_pin
from cloister.runtime import Party, Study
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.models import known_model
from cloister.runtime.workers.proxy import SandboxedWorker

pytest.importorskip("torch", reason="needs the extra torch")

HUB = Identity.generate("hub")
MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
"""

TRIES = """
import os, socket, subprocess, ctypes

def tried(what, attempt):
    try:
        attempt()
    except BaseException as error:
        return what + ":refused"
    return what + ":DONE"

def written(path):
    with open(path, "w") as file:
        file.write("x")

def signalled():
    os.kill(PARENT, 0)

def opened(path):
    with open(path, "rb") as file:
        file.read()

outcome = ",".join([
    tried("inet", lambda: socket.create_connection(("127.0.0.1", 1))),
    tried("socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    tried("unix", lambda: socket.socket(socket.AF_UNIX)),
    tried("pair", lambda: socket.socketpair()),
    tried("keystore", lambda: opened(KEYSTORE)),
    tried("identity", lambda: opened(HOME + "/identity.json")),
    tried("other rows", lambda: os.listdir(OTHER)),
    tried("home", lambda: written(HOME + "/mark")),
    tried("dataset", lambda: written(DATASET + "/mark")),
    tried("tmp", lambda: written("/tmp/cloister-mark")),
    tried("shm", lambda: written("/dev/shm/cloister-mark")),
    tried("run", lambda: subprocess.run(["/bin/true"])),
    tried("fork", lambda: os.fork()),
    tried("parent", lambda: opened(f"/proc/{PARENT}/environ")),
    tried("signal", lambda: signalled()),
    tried("etc", lambda: opened("/etc/passwd")),
])
raise RuntimeError(outcome)
"""


@pytest.fixture(autouse=True)
def walls() -> None:
    needs_walls()


@pytest.fixture
def members(tmp_path: Path) -> list[Party]:
    return parties(tmp_path, [40, 25, 30])


def torch_plan(members: list[Party], code: Path, **changes: Any) -> Plan:
    training = {"batch": 16, "local_steps": 2, "rounds": 2, "learning_rate": 0.1}
    plan = plan_for(HUB, members, training=training, **changes)
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    model = msgspec.structs.replace(
        plan.model, kind="torch", classes=2, code=digest, factory="build", initial=""
    )
    return msgspec.structs.replace(plan, model=model)


def pinned(members: list[Party], code: Path) -> Plan:
    plan = torch_plan(members, code)
    return with_pin(plan, known_model(plan, schema(), user_code=code).pin)


def test_what_code_tries_when_it_is_imported_is_refused(members: list[Party], tmp_path: Path) -> None:
    vault = tmp_path / "site0"
    (vault / "identity.json").write_text("secret")
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    facts = {
        "PARENT": os.getpid(),
        "HOME": str(vault),
        "KEYSTORE": str(vault / "keystore.json"),
        "OTHER": str(tmp_path / "site1"),
        "DATASET": str(handed.folder),
    }
    code = tmp_path / "model.py"
    code.write_text("\n".join(f"{name} = {value!r}" for name, value in facts.items()) + TRIES)
    assert (vault / "keystore.json").exists()
    plan = torch_plan(members, code)
    with pytest.raises(CloisterError) as error:
        SandboxedWorker(plan, members[0].identity, sandbox(), handed, user_code=code)
    said = str(error.value)
    assert said.count(":refused") == 16, said
    assert "DONE" not in said
    for mark in (vault / "mark", handed.folder / "mark", Path("/tmp/cloister-mark")):
        assert not mark.exists()


@pytest.mark.slow
def test_code_runs_in_the_worker_and_never_in_the_site(members: list[Party], tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text(MODEL + f"\nimport os\nassert os.getpid() != {os.getpid()}, 'it runs in the site'\n")
    plan = pinned(members, code)
    before = set(sys.modules)  # other tests of this process have run such code in it
    study = Study(plan, HUB, members, user_code=code, sandboxed=True)
    result = study.run()
    assert result.model.shape == (22,)
    assert not [name for name in set(sys.modules) - before if name.startswith("cloister_user_code_")]


def test_code_that_nobody_allowed_is_not_even_sent(members: list[Party], tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text(MODEL)
    plan = torch_plan(members, code)
    with pytest.raises(PolicyRefused, match="allow-user-code"):
        known_model(plan, schema())
    code.write_text(MODEL + "\n# other\n")
    with pytest.raises(CloisterError, match="SHA-256"):
        known_model(plan, schema(), user_code=code)


def test_rows_do_not_leave_in_an_error(members: list[Party], tmp_path: Path) -> None:
    """The module behaves until it sees rows that no probe would show it; then it shouts them."""
    code = tmp_path / "model.py"
    code.write_text(
        """
import sys
from torch import nn

class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        if armed():
            print("ROW", x, file=sys.stderr, flush=True)
            from cloister.errors import PlanError
            raise PlanError(f"ROW {x.tolist()}", where=str(x.tolist()), fix=str(x.tolist()))
        return self.inner(x)

def armed():
    import gc
    from cloister.runtime.worker import LocalWorker
    return any(type(each) is LocalWorker and getattr(each, "_opened", None) is not None for each in gc.get_objects())

def build():
    return Loud()
"""
    )
    plan = pinned(members, code)
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    worker = SandboxedWorker(plan, members[0].identity, sandbox(), handed, user_code=code)
    with pytest.raises(CloisterError) as error:
        worker.train(worker.initial)
    assert "ROW" not in str(error.value)
    assert "[" not in str(error.value)
    assert "its words could hold values" in str(error.value)
    worker.close()


HIJACK = """
import gc
from cloister.runtime.workers.channel import Channel
from cloister.runtime.workers.messages import KeyWanted, decode_question, encode

channel = next(each for each in gc.get_objects() if type(each) is Channel)
"""


def test_code_cannot_have_keys_before_there_is_work(members: list[Party], tmp_path: Path) -> None:
    """It speaks as the worker, whose channel it finds in memory; the site gives nothing out yet."""
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    code = tmp_path / "model.py"
    code.write_text(
        MODEL
        + HIJACK
        + "\nchannel.send(encode(KeyWanted(0, b'x' * 60)))\nkey = decode_question(channel.receive())\n"
    )
    with pytest.raises(ProtocolError, match="nothing it was asked needs"):
        SandboxedWorker(torch_plan(members, code), members[0].identity, sandbox(), handed, user_code=code)


@pytest.mark.parametrize(
    "deed",
    [
        "channel._socket.send(b'\\xff' * 4096)",
        "channel._socket.setblocking(True); channel._socket.sendall((1 << 19).to_bytes(4, 'big') + bytes(1 << 19))",
        "channel.send(bytes(1 << 24)); channel.flush()",
        "[channel.send(b'x') for _ in range(64)]; channel.flush()",
        "import os; os._exit(0)",
        "import ctypes; ctypes.CDLL(None).syscall(101, 0, 0, 0, 0)",
    ],
    ids=["garbage", "a datagram of zeros", "something huge", "chatter", "exit", "ptrace"],
)
def test_code_that_breaks_the_protocol_ends_its_worker(
    members: list[Party], tmp_path: Path, deed: str
) -> None:
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    code = tmp_path / "model.py"
    code.write_text(MODEL + HIJACK + "\n" + deed + "\n")
    with pytest.raises(CloisterError) as error:
        SandboxedWorker(torch_plan(members, code), members[0].identity, sandbox(), handed, user_code=code)
    assert "Traceback" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_code_cannot_state_another_start_than_the_plan_pins(members: list[Party], tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text(MODEL)
    plan = pinned(members, code)
    code.write_text(MODEL.replace("4", "5"))
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    other = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, code=digest))
    with pytest.raises(CloisterError, match="another initial model"):
        SandboxedWorker(
            other,
            members[0].identity,
            sandbox(),
            members[0].vault.hand_over("train", purpose=PURPOSE),
            user_code=code,
        )


@pytest.mark.slow
def test_a_private_torch_study_behind_walls(members: list[Party], tmp_path: Path) -> None:
    from tests.runtime.budgets import Noting

    code = tmp_path / "model.py"
    code.write_text(MODEL)
    plan = torch_plan(members, code, data={"public_rows": False})
    plan = msgspec.structs.replace(
        plan,
        training=msgspec.structs.replace(plan.training, local_steps=1, batch=48),
        privacy=PrivacySection(noise_multiplier=1.0, delta=1e-4, clip=1.0, rate=0.5),
    )
    plan = with_pin(plan, known_model(plan, schema(), user_code=code).pin)
    study = Study(plan, HUB, members, user_code=code, sandboxed=True)
    for name, site in study.sites.items():
        site._budget = site._closing = Noting(members[int(name[-1])].identity)
    assert study.run().model.shape == (22,)
