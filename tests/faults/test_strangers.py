"""Who does not belong to a study, does not any more, or repeats what was said in another, changes nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.faults.replay import replayed, undisturbed
from tests.faults.stage import Stage, figure, model_of, staged

from cloister.crypto import Identity
from cloister.runtime import SiteEnd
from cloister.runtime.invite import make_knock
from cloister.runtime.nats import NatsTransport, TlsFiles

pytestmark = pytest.mark.slow
ROUNDS = 60


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Four sites, and a fifth with a place on the network that takes no part by itself."""
    with staged(tmp_path_factory.mktemp("strangers"), 5) as opened:
        opened.start(*opened.sites[:4], pace=0.05, record=True)
        yield opened


def add_study(stage: Stage, number: int, rounds: int = ROUNDS, **study: Any) -> None:
    """Write a study of the first four sites."""
    stage.homes.add_study(
        number,
        sites=stage.sites[:4],
        training={"rounds": rounds},
        study={"name": f"study-{number}", "spare_rounds": 60, **study},
    )


def check(stage: Stage, number: int, sites: list[str], *, everybody: bool) -> dict[str, Any]:
    end = stage.outcome(number, 120.0)
    assert end["stopped"] is None, stage.story()
    for model in stage.models(number, sites):
        np.testing.assert_array_equal(model, model_of(end))
    stage.processes["hub"].join(20)
    np.testing.assert_array_equal(model_of(end), replayed(stage.homes, number, stage.defaults.seed))
    if everybody:
        np.testing.assert_array_equal(model_of(end), undisturbed(stage.homes, number, stage.defaults.seed))
    return end


async def say_while_it_runs(stage: Stage, number: int, name: str, datagrams: list[tuple[str, bytes]]) -> int:
    """Send these as the party `name`, whose certificate the server knows, until the study has ended."""
    files = TlsFiles.in_folder(stage.homes.root / "server" / "parties" / name, "local")
    transport = await NatsTransport.connect(list(stage.server.urls), files, name)
    sent = 0
    try:
        while not stage.said("hub", "end", study=f"study-{number}"):
            for receiver, datagram in datagrams:
                await transport.send(receiver, datagram)
                sent += 1
                await asyncio.sleep(0.003)  # attacks the meaning; that a flood takes time is known
    finally:
        await transport.close()
    return sent


def garbage() -> list[bytes]:
    """Return datagrams of every shape that a parser may meet."""
    maps = [b"\x80", b"\x81\xa4type\xa5knock", b"\x8f" + os.urandom(64), b"\x85" * 2000]
    arrays = [
        b"\x90",
        b"\x93\x01\x02\x03",
        b"\x9c" + os.urandom(512),
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
    ]
    return [b"", b"\x00", os.urandom(1), os.urandom(100), os.urandom(1 << 16), *maps, *arrays]


def test_garbage(stage: Stage) -> None:
    add_study(stage, 0, deadline_seconds=30.0)  # nobody is to be left out on a busy machine
    stage.start("hub", study=0)
    stage.wait(lambda: stage.rounds() >= 3)
    sent = asyncio.run(say_while_it_runs(stage, 0, "site4", [("hub", each) for each in garbage()]))
    check(stage, 0, stage.sites[:4], everybody=True)
    refused = len(stage.said("hub", "refused"))
    assert refused > sent // 2
    figure(f"garbage: {sent} datagrams, {refused} reported as refused")


def test_an_unknown_identity_and_one_that_is_in_no_study(stage: Stage) -> None:
    add_study(stage, 1, deadline_seconds=30.0)
    plan, public = stage.homes.plan(1), stage.homes.public()
    stage.start("hub", study=1)
    stage.wait(lambda: stage.said("hub", "up", plan=1))
    strangers = [Identity.generate("site4"), stage.homes.identity("site4"), Identity.generate("site0")]
    datagrams = []
    for stranger in strangers:
        datagrams.append(("hub", make_knock(stranger, "hub", os.urandom(16))))
        end = _Opens(stranger, public["hub"], plan.digest)
        datagrams += [("hub", each) for each in end.hello()]
    asyncio.run(say_while_it_runs(stage, 1, "site4", datagrams))
    end = check(stage, 1, stage.sites[:4], everybody=True)
    assert all("site4" not in survivors for _, _, _, survivors in end["rounds"])


class _Opens:
    """What a stranger begins a session with."""

    def __init__(self, identity: Identity, hub: Any, study: bytes) -> None:
        machine = SimpleNamespace(reattest_seconds=None)  # nothing gets to it
        self._end = SiteEnd(machine, identity, hub, study)  # type: ignore[arg-type]

    def hello(self) -> list[bytes]:
        self._end.open(time.monotonic())
        return [bytes(each) for each in self._end.poll(time.monotonic())]


def test_a_replay_of_an_older_study_and_of_the_running_one(stage: Stage) -> None:
    """Everything that sites were sent before is sent to them again, by one who may speak to nobody but the
    hub; and what the hub was sent is sent to the hub."""
    add_study(stage, 2, deadline_seconds=30.0)
    stage.start("hub", study=2, record=True)
    check(stage, 2, stage.sites[:4], everybody=True)
    old = recorded(stage.homes.root, "hub")
    assert len(old) > 200
    add_study(stage, 3)
    stage.start("hub", study=3, record=True)
    stage.wait(lambda: len(recorded(stage.homes.root, "hub")) > len(old) + 50)
    fresh = recorded(stage.homes.root, "hub")[len(old) :]
    replay = [("hub", each) for each in [*old[:150], *fresh]]
    asyncio.run(say_while_it_runs(stage, 3, "site4", replay))
    check(stage, 3, stage.sites[:4], everybody=False)
    for name in stage.sites[:4]:
        ended = stage.said(name, "end", study="study-3")
        assert len(ended) == 1


def recorded(root: Path, name: str) -> list[bytes]:
    lines = (root / "private" / f"arrived-at-{name}").read_text().split("\n")[:-1]
    return [bytes.fromhex(line) for line in lines]


def test_a_site_that_the_hub_trusts_no_more_is_out_at_once(stage: Stage) -> None:
    add_study(stage, 4, rounds=80)
    stage.start("hub", study=4)
    before = stage.rounds()
    stage.wait(lambda: stage.rounds() >= before + 10)
    stage.homes.distrust("site3", by=["hub"])
    asked = time.monotonic()
    others = ["site0", "site1", "site2"]
    end = check(stage, 4, others, everybody=False)
    counted = ["site3" in survivors for _, _, _, survivors in end["rounds"]]
    assert counted[0]
    assert not counted[-1]
    first = counted.index(False)
    assert not any(counted[first:])
    gone = [each for each in stage.said("hub", "lost") if "site3" in each["detail"]]
    figure(
        f"untrusted: shut out {gone[0]['at'] - asked:.2f} s later; {sum(counted)} rounds with it, "
        f"{len(counted) - sum(counted)} without"
    )
    assert not stage.said("site3", "end", study="study-4")
