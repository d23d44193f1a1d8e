"""A network in memory for tests of the secure sum: real machines, and hooks where an attacker would stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

import numpy as np

from cloister.crypto import Identity
from cloister.secagg import EpochContext, Params, Roster, RoundSum, SecureSumHub, SecureSumSite

PLAN = bytes(range(32))
MODEL = np.linspace(-1.0, 1.0, 7)


@cache
def identity(number: int) -> Identity:
    return Identity.generate(f"site-{number}")


def context(
    n: int,
    *,
    bits: int = 32,
    view: Literal["sum", "none"] = "sum",
    attempts: int = 2,
    epoch: int = 1,
    plan: bytes = PLAN,
    members: Sequence[int] | None = None,
    params: Params | None = None,
) -> EpochContext:
    roster = Roster(tuple(identity(i).public for i in (members or range(n))))
    return EpochContext(
        plan_digest=plan,
        roster=roster,
        epoch=epoch,
        attempts=attempts,
        params=params or Params.derive(n, allow_two=n == 2),
        bits=bits,
        hub_view=view,
    )


def vectors(n: int, bits: int, size: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 2**bits, size, dtype=f"u{bits // 8}") for _ in range(n)]


def ring_sum(parts: Iterable[np.ndarray], bits: int) -> list[int]:
    """Add with Python's integers: the independent derivation."""
    rows = [part.tolist() for part in parts]
    return [sum(column) % 2**bits for column in zip(*rows, strict=True)]


class Network:
    """A hub and its sites after set-up, unless `set_up=False`."""

    def __init__(self, ctx: EpochContext, *, set_up: bool = True) -> None:
        self.context = ctx
        self.names = ctx.roster.names
        numbers = [int(name.removeprefix("site-")) for name in self.names]
        self.sites = {
            name: SecureSumSite(ctx, identity(number))
            for name, number in zip(self.names, numbers, strict=True)
        }
        self.hub = SecureSumHub(ctx)
        if set_up:
            self.finish_setup(self.deal(self.announce()))

    def announce(self) -> list[bytes]:
        relayed = None
        for name, site in self.sites.items():
            relayed = self.hub.on_announcement(name, site.announce())
        assert relayed is not None
        return relayed

    def deal(self, announcements: list[bytes]) -> dict[str, bytes]:
        bundles = None
        for name, site in self.sites.items():
            bundles = self.hub.on_deal(name, site.deal(announcements))
        assert bundles is not None
        return bundles

    def finish_setup(self, bundles: Mapping[str, bytes]) -> None:
        for name, site in self.sites.items():
            site.finish_setup(bundles[name])

    def upload(self, attempt: int, data: Mapping[str, np.ndarray], model: np.ndarray | bytes = MODEL) -> None:
        self.hub.begin(attempt)
        for name, vector in data.items():
            self.hub.on_upload(name, self.sites[name].upload(attempt, vector, model))

    def answer(self, requests: Mapping[str, bytes], alive: Iterable[str]) -> dict[str, bytes] | None:
        """Every live site answers; return further requests of the hub."""
        further = None
        for name in alive:
            further = self.hub.on_answer(name, self.sites[name].answer(requests[name])) or further
        return further

    def run(
        self, attempt: int, data: Mapping[str, np.ndarray], *, model: np.ndarray | bytes = MODEL
    ) -> RoundSum:
        """An attempt in which those in `data` upload and all answer."""
        self.upload(attempt, data, model)
        requests: dict[str, bytes] | None = self.hub.close()
        while requests:
            requests = self.answer(requests, self.names)
        result = self.hub.result()
        assert result is not None
        return result

    def opened(self, result: RoundSum, model: np.ndarray | bytes = MODEL) -> np.ndarray:
        sums = [
            site.open_sum(result.attempt, result.survivors, result.total, model)
            for site in self.sites.values()
        ]
        assert all(np.array_equal(sums[0], other) for other in sums)
        return sums[0]
