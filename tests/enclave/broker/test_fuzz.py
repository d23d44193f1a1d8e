"""Mutated messages, at the broker and at its clients: an answer or one of our errors, and never more than was due."""

from __future__ import annotations

import contextlib

import pytest
from tests.enclave.broker.world import KEK, Home, filled, identity, permission, worker
from tests.enclave.fuzz import fuzz_seconds, mutations

from cloister.enclave.broker import BrokerKeys
from cloister.enclave.broker.messages import Refused, Released, decode_reply
from cloister.errors import CloisterError


class _Meddling:
    """A connection whose messages, or answers, are replaced from the n-th on."""

    def __init__(self, home: Home, change: dict[tuple[str, int], bytes]) -> None:
        self._inner, self._change, self._count = home.connect(), change, 0
        self.seen: dict[tuple[str, int], bytes] = {}

    def exchange(self, message: bytes, /) -> bytes:
        number, self._count = self._count, self._count + 1
        self.seen["request", number] = message
        answer = self._inner.exchange(self._change.get(("request", number), message))
        self.seen["answer", number] = answer
        decode_reply(answer)  # whatever came, the broker's answer is one
        return self._change.get(("answer", number), answer)

    def alive(self) -> bool:
        return True

    def close(self) -> None: ...


def _talk(home: Home, wrapped: bytes, change: dict[tuple[str, int], bytes]) -> dict[tuple[str, int], bytes]:
    """Attest, open a key, open it again under the grant; then give three orders."""
    broker, seen = identity("broker").public, {}
    links = [_Meddling(home, {}), _Meddling(home, change)]
    party = worker()
    with contextlib.suppress(CloisterError):
        keys = BrokerKeys(lambda: links[1], broker, worker=party)
        assert keys.unwrap(KEK, wrapped) == b"k" * 32
        keys._known.clear()
        assert keys.unwrap(KEK, wrapped) == b"k" * 32
    seen = dict(links[1].seen)
    with contextlib.suppress(CloisterError):
        owner = BrokerKeys(lambda: links[0], broker, owner=identity("alice"))
        owner.inventory()
    return seen


def _orders(home: Home, change: dict[tuple[str, int], bytes]) -> dict[tuple[str, int], bytes]:
    link = _Meddling(home, change)
    owner = BrokerKeys(lambda: link, identity("broker").public, owner=identity("alice"))
    with contextlib.suppress(CloisterError):
        owner.inventory()
        owner.allow(permission())
        owner.wrap(KEK, b"w" * 32)
    return dict(link.seen)


def _fuzz(home: Home, amount: float | int, seed: int) -> None:
    wrapped = filled(home, uses=1_000_000)
    share = amount // 9 if isinstance(amount, int) else amount / 9
    for place in [(kind, number) for kind in ("request", "answer") for number in range(4)]:
        seen = _talk(home, wrapped, {})
        assert len(seen) == 8
        for bad in mutations(seen[place], share, seed):
            _talk(home, wrapped, {place: bad})
    keks = home.owner().inventory().keks
    for bad in mutations(_orders(home, {})["request", 2], share, seed):
        _orders(home, {("request", 2): bad})
    assert home.owner().inventory().keks == keks
    home.restart()  # store and log agree, whatever came


def test_mutated_messages(home: Home) -> None:
    _fuzz(home, 270, seed=5)


@pytest.mark.slow
def test_mutated_messages_for_longer(home: Home) -> None:
    _fuzz(home, fuzz_seconds(), seed=6)


def test_a_mutated_release_releases_nothing_else(home: Home) -> None:
    """Whatever is changed in a genuine request with genuine evidence: refused, or the same key for the same worker."""
    wrapped = filled(home, uses=1000)
    for seed in range(150):
        link = _Meddling(home, {})
        kept = link.exchange

        def change(message: bytes, /, seed: int = seed, kept: object = kept) -> bytes:
            bad = next(mutations(message, 1, seed)) if len(message) > 2000 else message
            return kept(bad)  # type: ignore[operator,no-any-return]

        link.exchange = change  # type: ignore[method-assign]
        keys = BrokerKeys(lambda link=link: link, identity("broker").public, worker=worker())  # type: ignore[misc]
        try:
            assert keys.unwrap(KEK, wrapped) == b"k" * 32
        except CloisterError:
            answer = decode_reply(link.seen["answer", 2])
            assert isinstance(answer, Refused | Released)
