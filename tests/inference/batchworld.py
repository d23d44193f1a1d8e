"""A vault whose datasets `tests.inference.models`' artefacts can read, and workers in threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from tests.inference.artifacts import make_schema
from tests.runtime.workers.twins import Twin

from cloister.crypto import Identity, PublicIdentity, ScryptCost
from cloister.inference.walledmessages import PROTOCOL, Ready, Task
from cloister.inference.walledprocess import serve
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, recv_clear, send_clear
from cloister.runtime.workers.messages import Meet, Prepare, encode
from cloister.types import KeyService
from cloister.vault import Manifest, Vault

OWNER, READER, OTHER = (Identity.generate(name) for name in ("owner", "reader", "other"))
PURPOSE = "heart disease research"
CHEAP = ScryptCost(n=2**10)


def table(rows: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    fluid = random.uniform(0.0, 2.0, rows)
    return pa.table(
        {
            "age": random.integers(18, 100, rows, endpoint=True),
            "pain": pa.array(["none", "typical", "atypical"]).take(pa.array(random.integers(0, 3, rows))),
            "fluid": pa.array(fluid, mask=fluid > 1.9),
            "patient": [
                f"canary-{hashlib.sha256(f'{seed} {row}'.encode()).hexdigest()[:12]}" for row in range(rows)
            ],
            "y": random.integers(0, 2, rows).astype(bool),
        }
    )


def make_vault(root: Path, keys: KeyService | None = None, owner: Identity = OWNER) -> Vault:
    return Vault.unlock(root, owner, "secret", cost=CHEAP) if keys is None else Vault(root, owner, keys)


def add(
    vault: Vault, rows: pa.Table, name: str = "patients", purposes: tuple[str, ...] = (PURPOSE,)
) -> Manifest:
    return vault.add_table(rows, name=name, schema=make_schema("boolean"), purposes=purposes)


def twin(scratch: Path) -> Callable[[], Twin]:
    """Return what starts a worker in a thread, without walls."""
    return lambda: Twin(lambda sock: serve(sock, lambda read: scratch))


def scripted(says: Callable[[Channel, Task], Any]) -> tuple[Callable[[], Twin], list[Twin]]:
    """Return what starts a worker that is honest until it has its task; then it says what a test has it say."""
    twins: list[Twin] = []

    def run(sock: Any) -> None:
        meet = msgspec.msgpack.decode(recv_clear(sock, 1 << 16, None), type=Meet)
        identity, caller = Identity.generate("worker"), PublicIdentity.from_json(meet.site)
        send_clear(sock, identity.public.to_json())
        channel = Channel(Link(identity, caller, PROTOCOL, initiator=False), sock)
        msgspec.msgpack.decode(channel.receive(), type=Prepare)
        channel.send(encode(Ready()))
        answer = says(channel, msgspec.msgpack.decode(channel.receive(1 << 30), type=Task))
        if answer is not None:
            channel.send(answer if isinstance(answer, bytes) else encode(answer))
            channel.receive()

    def start() -> Twin:
        twins.append(Twin(run))
        return twins[-1]

    return start, twins
