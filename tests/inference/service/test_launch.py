"""How a service comes up, and all the ways in which it does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.doubles import AttesterDouble
from tests.enclave.sandbox.inside import need_walls
from tests.inference.artifacts import make_artifact
from tests.inference.service.doubles import UnwalledThread
from tests.inference.service.real import running

from cloister.crypto import Identity
from cloister.enclave.sandbox import spawn
from cloister.errors import InputError, PolicyRefused, ProtocolError
from cloister.inference.service import Client, LanguageModel, Service, TableModel, launch
from cloister.inference.service.boot import decode_said, decode_told, failed
from cloister.learning.sections import ModelSection
from cloister.runtime.workers.channel import recv_clear, send_clear
from cloister.runtime.workers.messages import KeyWanted, encode

ARTIFACT = make_artifact("boolean", ModelSection(kind="logistic"))


def service(start: Any, **options: Any) -> Service:
    return Service(TableModel(ARTIFACT), attester=AttesterDouble(), clients=None, start=start, **options)


def unwalled(tmp_path: Path, **walls: bool) -> Callable[[Sequence[socket.socket]], UnwalledThread]:
    named = {name.replace("_", " "): stands for name, stands in walls.items()}
    return lambda extra: UnwalledThread(extra, tmp_path, named)


@pytest.fixture
def swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "swaps"
    path.write_text("Filename\tType\tSize\n/dev/sda2\tpartition\t8\n")
    monkeypatch.setattr(launch, "SWAPS", path)
    return path


def test_memory_that_may_be_swapped_out_is_a_refusal(swaps: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="prompts could come to lie on a disk") as refused:
        service(unwalled(tmp_path, memory_locked=False)).start()
    assert "swapoff" in refused.value.fix
    assert "LimitMEMLOCK=infinity" in refused.value.fix


def test_a_swap_that_was_accepted_is_loud(swaps: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with service(unwalled(tmp_path, memory_locked=False), allow_swap=True, say=said.append):
        assert said[0].startswith("WARNING")


@pytest.mark.parametrize("locked", [True, False])
def test_locked_memory_or_no_swap_is_fine(swaps: Path, tmp_path: Path, locked: bool) -> None:
    if not locked:
        swaps.write_text("Filename\tType\tSize\n")
    with service(unwalled(tmp_path, memory_locked=locked)) as made:
        assert made.ready is not None
        assert len(made.ready.keys) == 64


def test_where_nobody_can_say_whether_there_is_swap_there_is(swaps: Path, tmp_path: Path) -> None:
    swaps.unlink()
    with pytest.raises(PolicyRefused):
        service(unwalled(tmp_path, memory_locked=False)).start()


def test_a_service_is_started_once_and_used_afterwards(tmp_path: Path) -> None:
    made = service(unwalled(tmp_path, memory_locked=True))
    for use in (lambda: made.app, lambda: made.pid):
        with pytest.raises(InputError, match="not started"):
            use()
    assert made.stats() == {}
    with made:
        with pytest.raises(InputError, match="once"):
            made.start()
        assert made.stats() == {"open": 0}
    made.close()


def test_a_worker_that_ends_at_once_is_told_in_its_last_words() -> None:
    need_walls()
    with pytest.raises(ProtocolError, match="no_such_module"):
        service(lambda extra: spawn("cloister.no_such_module", extra=extra)).start()


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff", b"{}", b"\x00" * 1000],
)
def test_a_worker_that_meets_in_no_way_that_is_known(tmp_path: Path, said: bytes) -> None:
    def work(sock: socket.socket, _pipe: socket.socket) -> None:
        recv_clear(sock, 1 << 20, None)
        send_clear(sock, said)
        sock.settimeout(20)
        sock.recv(1)

    with pytest.raises(ProtocolError):
        service(lambda extra: UnwalledThread(extra, tmp_path, {}, work)).start()


def test_a_worker_gets_no_key_that_it_was_not_told_to_need(tmp_path: Path) -> None:
    from cloister.crypto import PublicIdentity
    from cloister.inference.service.boot import PROTOCOL
    from cloister.runtime.link import Link
    from cloister.runtime.workers.channel import Channel
    from cloister.runtime.workers.messages import Confined

    def work(sock: socket.socket, _pipe: socket.socket) -> None:
        import msgspec

        from cloister.runtime.workers.channel import Gone
        from cloister.runtime.workers.messages import Meet

        meet = msgspec.msgpack.decode(recv_clear(sock, 1 << 20, None), type=Meet)
        identity = Identity.generate("worker")
        send_clear(sock, identity.public.to_json())
        channel = Channel(
            Link(identity, PublicIdentity.from_json(meet.site), PROTOCOL, initiator=False), sock
        )
        channel.receive(1 << 20)
        channel.send(encode(Confined({"memory locked": True})))
        channel.receive(1 << 20)
        channel.send(encode(KeyWanted(0, b"a wrapped key of the vault")))
        try:
            channel.receive()
        except Gone:
            return
        raise AssertionError("a key was lent")

    with pytest.raises(ProtocolError, match="nothing it was told needs"):
        service(lambda extra: UnwalledThread(extra, tmp_path, {}, work)).start()


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x93\xa7Prepare\x90\xa5thing\xc2", b"\xc1"])
def test_messages_that_are_none(data: bytes) -> None:
    for decode in (decode_told, decode_said):
        with pytest.raises(ProtocolError):
            decode(data)


def test_an_error_that_is_not_ours_is_told_by_its_class_alone() -> None:
    said = failed(RuntimeError("a weight of 0.123"))
    assert (said.kind, said.what) == ("RuntimeError", "the model could not be loaded")
    assert repr(said) == "<Failed>"


def test_a_model_of_local_scaling_is_not_served(tmp_path: Path) -> None:
    source = TableModel(make_artifact("boolean", ModelSection(kind="logistic"), scaling="local"))
    made = Service(
        source, attester=AttesterDouble(), clients=None, start=unwalled(tmp_path, memory_locked=True)
    )
    with pytest.raises(InputError, match="local"):
        made.start()


def test_a_folder_that_is_no_model_is_an_error_of_the_worker(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.bin").write_bytes(b"\x80\x04.")
    made = Service(
        LanguageModel(tmp_path / "m"),
        attester=AttesterDouble(),
        clients=None,
        start=unwalled(tmp_path, memory_locked=True),
    )
    with pytest.raises(InputError, match="pickle"):
        made.start()


def test_nothing_of_a_client_is_in_a_repr() -> None:
    with running(TableModel(ARTIFACT), clients=[Client("ward", "a" * 64)]) as here:
        assert "a" * 64 not in repr(here.service._boot)


@pytest.mark.parametrize("name", ["\n", "a" * 129, "m\u00f6del"])
def test_a_name_that_no_key_set_can_have(name: str) -> None:
    with pytest.raises(InputError, match="printable"):
        Service(TableModel(ARTIFACT), attester=AttesterDouble(), clients=None, name=name)


def test_a_worker_for_a_torch_module_has_torch_before_its_walls() -> None:
    code = (
        "import sys; from cloister.inference.service.process import _import; _import('torch'); "
        "print({'torch', 'cloister.inference.torchpredict'} <= sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "True"
