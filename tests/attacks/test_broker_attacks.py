"""What workers, sites, and whoever holds the broker's disk try in order to get a dataset's keys."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.enclave.broker.world import (
    KEK,
    MANIFEST,
    NOW,
    PASSPHRASE,
    PLAN,
    PURPOSE,
    Home,
    InsecureAttesterDouble,
    filled,
    identity,
    over_socket,
    permission,
    served,
    worker,
)

from cloister.crypto import HpkePrivateKey, KemSuite, hpke_open
from cloister.enclave import Claims, Evidence
from cloister.enclave.broker import BrokerKeys, BrokerServer, Client, Grant, Wanted
from cloister.enclave.broker.grant import RELEASE_INFO, wanted_report_data
from cloister.enclave.broker.messages import (
    MAX_MESSAGE,
    Ask,
    Hello,
    More,
    Refused,
    Release,
    Released,
    decode_reply,
    encode,
)
from cloister.enclave.broker.store import Store
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PassphraseError,
    PolicyRefused,
    StorageError,
)

WANTED = Wanted(KEK, MANIFEST, PLAN, PURPOSE)


def used(home: Home) -> int:
    return home.owner().inventory().permissions[0].used


def refused_and_logged(
    home: Home, wrapped: bytes, keys: object, says: str, kind: type[CloisterError] = PolicyRefused
) -> None:
    """Assert that the broker refuses, that its log says so, and that nothing was used up."""
    before, entries = used(home), len(home.entries())
    with pytest.raises(kind, match=says):
        keys.unwrap(KEK, wrapped)  # type: ignore[attr-defined]
    assert used(home) == before
    assert len(home.entries()) == entries + 1
    assert home.entries()[-1]["entry"] == "refused"


class _Request:
    """A release made by hand."""

    def __init__(self, client: Client, wrapped: bytes, wanted: Wanted = WANTED) -> None:
        self.client, self.wrapped, self.wanted = client, (wrapped,), wanted
        self.key = HpkePrivateKey.generate(KemSuite.HYBRID)
        self.public = self.key.public_key.to_bytes()
        self.attester = InsecureAttesterDouble()
        self.nonce = client.challenge()

    def evidence(self, **changes: object) -> Evidence:
        stated = {
            "broker": identity("broker").fingerprint,
            "nonce": self.nonce,
            "worker": self.public,
            "wanted": self.wanted,
        } | changes
        return self.attester.attest(wanted_report_data(**stated))  # type: ignore[arg-type]

    def send(self, evidence: Evidence | bytes, **changes: object) -> Released:
        data = evidence if isinstance(evidence, bytes) else evidence.to_json()
        stated = {"wanted": self.wanted, "wrapped": self.wrapped, "worker": self.public} | changes
        return self.client.released(Release(evidence=data, **stated))  # type: ignore[arg-type]


# -- evidence ---------------------------------------------------------------------------------------------------


def test_a_request_by_hand_works_where_nothing_is_wrong(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    released = request.send(request.evidence())
    opened = hpke_open(request.key, released.sealed, info=RELEASE_INFO, associated_data=released.grant)
    assert msgspec.msgpack.decode(opened) == [b"k" * 32]


def test_a_nonce_is_used_once(home: Home) -> None:
    request = _Request(home.client(), filled(home, uses=5))
    evidence = request.evidence()
    request.send(evidence)
    with pytest.raises(PolicyRefused, match="second time"):
        request.send(evidence)
    assert used(home) == 1
    assert home.entries()[-1]["entry"] == "refused"


def test_a_nonce_is_used_up_by_a_refusal(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    with pytest.raises(PolicyRefused):
        request.send(request.evidence(nonce=bytes(32)))
    with pytest.raises(PolicyRefused, match="second time"):
        request.send(request.evidence())
    assert used(home) == 0


def test_evidence_of_another_connection_is_stale(home: Home) -> None:
    wrapped = filled(home, uses=5)
    first, second = _Request(home.client(), wrapped), _Request(home.client(), wrapped)
    evidence = first.evidence()
    with pytest.raises(PolicyRefused, match="freshness"):
        second.send(evidence, worker=first.public)
    first.send(evidence)


def test_without_a_challenge_there_is_no_release(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    evidence = request.evidence()
    request.client = home.client()
    with pytest.raises(PolicyRefused, match="without a challenge"):
        request.send(evidence)


def test_a_restart_forgets_challenges(home: Home) -> None:
    wrapped = filled(home)
    request = _Request(home.client(), wrapped)
    evidence = request.evidence()
    home.restart()
    request.client = home.client()
    request.client.challenge()
    with pytest.raises(PolicyRefused, match="freshness"):
        request.send(evidence)


@pytest.mark.parametrize("seconds", [60, 3600, -1])
def test_a_challenge_expires(home: Home, seconds: int) -> None:
    request = _Request(home.client(), filled(home))
    home.clock.move(seconds=seconds)
    with pytest.raises(PolicyRefused, match="challenge has expired"):
        request.send(request.evidence())


def test_evidence_for_another_key_releases_nothing(home: Home) -> None:
    """A site that swaps its own key for the worker's."""
    request = _Request(home.client(), filled(home))
    mine = HpkePrivateKey.generate(KemSuite.HYBRID).public_key.to_bytes()
    with pytest.raises(PolicyRefused, match="freshness"):
        request.send(request.evidence(), worker=mine)


@pytest.mark.parametrize(
    "changes",
    [{"purpose": "marketing"}, {"plan": "44" * 32}, {"plan": None}, {"manifest": "55" * 32}],
    ids=["purpose", "plan", "no plan", "manifest"],
)
def test_another_purpose_plan_or_dataset_is_refused(home: Home, changes: dict[str, str | None]) -> None:
    wrapped = filled(home)
    says = "another " + next(iter(changes))
    refused_and_logged(home, wrapped, home.worker(**changes), says)
    assert home.appraisal.calls == 0


def test_evidence_for_one_purpose_serves_no_other_that_is_allowed_too(home: Home) -> None:
    """Both are allowed; the worker attested itself for one, and the site asks for the other."""
    wrapped = filled(home)
    home.owner().allow(permission(purpose="another study"))
    request = _Request(home.client(), wrapped)
    other = Wanted(KEK, MANIFEST, PLAN, "another study")
    with pytest.raises(PolicyRefused, match="freshness"):
        request.send(request.evidence(), wanted=other)


def test_evidence_for_another_broker_is_refused(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    with pytest.raises(PolicyRefused, match="freshness"):
        request.send(request.evidence(broker=identity("eve").fingerprint))


def test_a_key_of_another_dataset_does_not_open(home: Home) -> None:
    wrapped = filled(home)
    owner = home.owner()
    owner.create("dataset.other.1")
    foreign = owner.wrap("dataset.other.1", b"f" * 32)
    refused_and_logged(home, foreign, home.worker(), "do not open", IntegrityError)
    assert home.worker().unwrap(KEK, wrapped) == b"k" * 32


def test_a_refused_measurement(home: Home) -> None:
    wrapped = filled(home)
    refused_and_logged(
        home, wrapped, home.worker(InsecureAttesterDouble("bb" * 32)), "none of the accepted images"
    )
    entry = home.entries()[-1]
    assert entry["appraised"]["measurements"] == {"measurement": "bb" * 32}  # type: ignore[index]
    assert entry["reasons"] == ["measurements: it is none of the accepted images"]


def test_every_altered_byte_of_evidence_is_refused(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    good = request.evidence().evidence
    for position in range(len(good)):
        request.nonce = request.client.challenge()
        evidence = request.evidence().evidence
        bad = bytearray(evidence)
        bad[position] ^= 1
        with pytest.raises(PolicyRefused):
            request.send(Evidence("tpm", bytes(bad)))
    assert used(home) == 0


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 10_000, b'{"type": "cloister/evidence/v1"}'])
def test_what_is_no_evidence(home: Home, data: bytes) -> None:
    request = _Request(home.client(), filled(home))
    with pytest.raises(InputError, match="not evidence"):
        request.send(data)
    assert home.entries()[-1]["entry"] == "refused"


def test_a_key_that_is_none(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    with pytest.raises(CloisterError):
        request.send(request.evidence(worker=bytes(1216)), worker=bytes(1216))
    assert used(home) in (0, 1)  # a key that nobody has opens nothing; it may cost a use


@pytest.mark.parametrize("claim", ["signature", "freshness"])
@pytest.mark.parametrize("value", [None, False])
def test_a_policy_that_forgets_to_ask_does_not_matter(home: Home, claim: str, value: bool | None) -> None:
    """Whatever the policy accepts: unsigned or unbound evidence releases nothing."""
    wrapped = filled(home)
    claims = msgspec.structs.replace(Claims(kind="tpm", signature=True, freshness=True), **{claim: value})
    home.broker.releases._appraise = lambda *_: (claims, [])
    refused_and_logged(home, wrapped, home.worker(), claim)


def test_an_appraisal_that_fails_releases_nothing(home: Home) -> None:
    wrapped = filled(home)

    def broken(*_: object) -> tuple[Claims, list[str]]:
        raise ZeroDivisionError("secret text")

    home.broker.releases._appraise = broken
    refused_and_logged(home, wrapped, home.worker(), "could not be appraised")
    assert "secret text" not in str(home.entries())


# -- permissions ------------------------------------------------------------------------------------------------


def test_without_a_permission_nothing_is_released(home: Home) -> None:
    owner = home.owner()
    owner.create(KEK)
    wrapped = owner.wrap(KEK, b"k" * 32)
    with pytest.raises(PolicyRefused, match="granted nothing"):
        home.worker().unwrap(KEK, wrapped)
    assert home.entries()[-1]["entry"] == "refused"


def test_an_expired_permission(home: Home) -> None:
    wrapped = filled(home)
    home.clock.move(days=1)
    refused_and_logged(home, wrapped, home.worker(), "has expired")


def test_a_session_ends_when_the_permission_expires(home: Home) -> None:
    owner = home.owner()
    owner.create(KEK)
    owner.allow(permission(5, expires=NOW + timedelta(seconds=30)))
    first, second = owner.wrap(KEK, b"1" * 32), owner.wrap(KEK, b"2" * 32)
    keys = home.worker()
    keys.unwrap(KEK, first)
    home.clock.move(seconds=31)
    with pytest.raises(PolicyRefused, match="expired"):
        keys.unwrap(KEK, second)


def test_a_revoked_permission_also_ends_sessions(home: Home) -> None:
    wrapped = filled(home, uses=5)
    owner = home.owner()
    other = owner.wrap(KEK, b"o" * 32)
    keys = home.worker()
    keys.unwrap(KEK, wrapped)
    owner.revoke(owner.inventory().permissions[0].permission.id)
    with pytest.raises(PolicyRefused, match="revoked"):
        keys.unwrap(KEK, other)
    refused_and_logged(home, wrapped, home.worker(), "revoked")


def test_a_destroyed_key_ends_sessions_and_its_permissions(home: Home) -> None:
    wrapped = filled(home, uses=5)
    owner = home.owner()
    other = owner.wrap(KEK, b"o" * 32)
    keys = home.worker()
    keys.unwrap(KEK, wrapped)
    owner.destroy(KEK)
    with pytest.raises(InputError, match="no KEK"):
        keys.unwrap(KEK, other)
    owner.create(KEK)
    with pytest.raises(PolicyRefused, match="revoked"):
        home.worker().unwrap(KEK, owner.wrap(KEK, bytes(32)))


def test_uses_are_spent_across_a_restart(home: Home) -> None:
    wrapped = filled(home, uses=2)
    home.worker().unwrap(KEK, wrapped)
    home.restart()
    home.worker().unwrap(KEK, wrapped)
    refused_and_logged(home, wrapped, home.worker(), "every use")
    home.restart()
    refused_and_logged(home, wrapped, home.worker(), "every use")


_SERVE = """
import asyncio, os, sys
from pathlib import Path
from tests.enclave.broker.world import Home
from cloister.enclave.broker import BrokerServer
home = Home(Path(sys.argv[1]))
if sys.argv[3] == "before the log":
    home.broker.book.log.append = lambda entry: os.kill(os.getpid(), 9)
asyncio.run(BrokerServer(home.broker, Path(sys.argv[2]), clock=home.clock).serve(lambda: print("ready", flush=True)))
"""


def _serve(folder: Path, path: Path, how: str = "") -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(folder), str(path), how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "broker")
    yield made
    made.close()


@pytest.fixture
def shared_identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process have the same test identities."""
    from tests.enclave.broker.world import CHEAP

    folder = tmp_path / "identities"
    for name in ("broker", "alice", "bob"):
        identity(name).save(folder / f"{name}.json", PASSPHRASE, cost=CHEAP)
    monkeypatch.setenv("CLOISTER_TEST_IDENTITIES", str(folder))


def test_a_use_is_spent_though_the_broker_is_killed_right_after(
    tmp_path: Path, shared_identities: None
) -> None:
    folder, path = tmp_path / "broker", tmp_path / "b.sock"
    home = Home(folder)
    wrapped = filled(home, uses=3)
    home.close()
    for _ in range(3):
        process = _serve(folder, path)
        try:
            assert over_socket(path, worker=worker()).unwrap(KEK, wrapped) == b"k" * 32
        finally:
            os.kill(process.pid, signal.SIGKILL)
            _end(process)
    home.broker = home._open()
    refused_and_logged(home, wrapped, home.worker(), "every use")
    home.close()


@pytest.mark.slow
def test_killed_at_any_instant_no_use_is_spent_twice(tmp_path: Path, shared_identities: None) -> None:
    folder, path = tmp_path / "broker", tmp_path / "b.sock"
    home = Home(folder)
    wrapped = filled(home, uses=100_000)
    home.close()
    chance, released, kills = random.Random(3), 0, 12  # noqa: S311 - what is chosen is no secret
    for _ in range(kills):
        process = _serve(folder, path)
        timer = threading.Timer(chance.uniform(0.05, 0.8), process.kill)
        timer.start()
        try:
            while True:
                over_socket(path, worker=worker()).unwrap(KEK, wrapped)
                released += 1
        except StorageError:
            pass
        timer.join()
        _end(process)
    home.broker = home._open()
    assert released > kills
    assert released <= used(home) <= released + kills
    told = [entry for entry in home.entries() if entry["entry"] in ("released", "interrupted")]
    assert len(told) == used(home)
    home.close()


def test_killed_between_count_and_log_the_use_is_spent_and_nothing_was_released(
    tmp_path: Path, shared_identities: None
) -> None:
    folder, path = tmp_path / "broker", tmp_path / "b.sock"
    home = Home(folder)
    wrapped = filled(home, uses=1)
    home.close()
    process = _serve(folder, path, "before the log")
    with pytest.raises(StorageError):
        over_socket(path, worker=worker()).unwrap(KEK, wrapped)
    assert process.wait(10) == -signal.SIGKILL
    _end(process)
    home.broker = home._open()
    assert used(home) == 1
    assert home.entries()[-1]["entry"] == "interrupted"
    refused_and_logged(home, wrapped, home.worker(), "every use")
    home.close()


@pytest.mark.parametrize("part", ["store", "log"])
def test_what_cannot_be_written_is_not_released(
    home: Home, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = filled(home)

    def full(*_: object, **__: object) -> None:
        raise StorageError("no space")

    with monkeypatch.context() as patched:
        if part == "store":
            patched.setattr(home.broker.book.store, "put_permission", full)
        else:
            patched.setattr(home.broker.book.log, "append", full)
        with pytest.raises(StorageError):
            home.worker().unwrap(KEK, wrapped)
    with pytest.raises(StorageError, match="start it again"):
        home.worker().unwrap(KEK, wrapped)
    home.restart()
    assert used(home) == (0 if part == "store" else 1)


def test_a_served_broker_that_cannot_write_tells_the_client_and_stops(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space")

    wrapped = filled(home)
    server = BrokerServer(home.broker, tmp_path / "b.sock", clock=home.clock)
    monkeypatch.setattr(home.broker.book.log, "append", full)

    async def run() -> None:
        ready = asyncio.Event()
        serving = asyncio.ensure_future(server.serve(ready.set))
        await ready.wait()
        keys = over_socket(tmp_path / "b.sock", worker=worker())
        with pytest.raises(StorageError, match="no space"):
            await asyncio.to_thread(keys.unwrap, KEK, wrapped)
        with pytest.raises(StorageError, match="has stopped"):
            await serving

    asyncio.run(run())
    assert not (tmp_path / "b.sock").exists()


def test_a_refusal_that_cannot_be_logged_is_an_error_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = filled(home)

    def full(*_: object) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(home.broker.book.log, "append", full)
    with pytest.raises(StorageError, match="no space"):
        home.worker(purpose="marketing").unwrap(KEK, wrapped)


def test_two_clients_at_once_share_one_use(home: Home, tmp_path: Path) -> None:
    wrapped = filled(home, uses=1)
    won: list[bytes] = []
    lost: list[CloisterError] = []
    start = threading.Barrier(8)

    def run() -> None:
        keys = over_socket(path, worker=worker())
        start.wait()
        try:
            won.append(keys.unwrap(KEK, wrapped))
        except CloisterError as error:
            lost.append(error)
        keys.close()

    with served(home, tmp_path / "b.sock") as path:
        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert won == [b"k" * 32]
    assert [type(error) for error in lost] == [PolicyRefused] * 7
    assert used(home) == 1


def test_two_workers_on_one_connection_have_sessions_of_their_own(home: Home) -> None:
    wrapped = filled(home, uses=2)
    other = home.owner().wrap(KEK, b"o" * 32)
    client = home.client()
    first, second = worker(), worker()
    first.unwrap(client, KEK, (wrapped,))
    second.unwrap(client, KEK, (wrapped,))
    assert first.unwrap(client, KEK, (other,)) == second.unwrap(client, KEK, (other,)) == [b"o" * 32]
    assert used(home) == 2


# -- what is released -------------------------------------------------------------------------------------------


def test_what_is_released_opens_under_no_other_grant(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    released = request.send(request.evidence())
    grant = Grant.from_bytes(released.grant)
    for changed in (
        msgspec.structs.replace(grant, wanted=Wanted(KEK, MANIFEST, PLAN, "marketing")),
        msgspec.structs.replace(grant, wanted=Wanted(KEK, MANIFEST, None, PURPOSE)),
        msgspec.structs.replace(grant, expires=grant.expires + timedelta(days=1)),
        msgspec.structs.replace(grant, use=2, uses=2),
        msgspec.structs.replace(grant, evidence="66" * 32),
    ):
        with pytest.raises(IntegrityError):
            hpke_open(request.key, released.sealed, info=RELEASE_INFO, associated_data=changed.to_bytes())
    stranger = HpkePrivateKey.generate(KemSuite.HYBRID)
    with pytest.raises(IntegrityError):
        hpke_open(stranger, released.sealed, info=RELEASE_INFO, associated_data=released.grant)


class _Between:
    """Carries messages, keeps them, and may change answers."""

    def __init__(self, home: Home, change: Callable[[bytes], bytes] = lambda answer: answer) -> None:
        self._inner = home.connect()
        self._change = change
        self.seen: list[bytes] = []

    def exchange(self, message: bytes, /) -> bytes:
        answer = self._change(self._inner.exchange(message))
        self.seen += [message, answer]
        return answer

    def alive(self) -> bool:
        return True

    def close(self) -> None: ...


def test_whoever_carries_the_messages_sees_no_data_key(home: Home) -> None:
    between = _Between(home)
    owner = BrokerKeys(lambda: between, identity("broker").public, owner=identity("alice"))
    owner.create(KEK)
    owner.allow(permission())
    secret = os.urandom(32)
    wrapped = owner.wrap(KEK, secret)
    second = _Between(home)
    assert (
        BrokerKeys(lambda: second, identity("broker").public, worker=worker()).unwrap(KEK, wrapped) == secret
    )
    assert secret not in b"".join(between.seen + second.seen)


def test_an_answer_to_an_owner_that_was_changed_is_noticed(home: Home) -> None:
    """Else a key would be lost with the dataset that it was to open."""
    armed = False

    def change(answer: bytes) -> bytes:
        return answer[:-70] + bytes([answer[-70] ^ 1]) + answer[-69:] if armed else answer

    owner = BrokerKeys(lambda: _Between(home, change), identity("broker").public, owner=identity("alice"))
    owner.create(KEK)
    armed = True
    with pytest.raises(CloisterError):
        owner.wrap(KEK, b"k" * 32)


def test_an_order_is_not_replayed(home: Home) -> None:
    between = _Between(home)
    owner = BrokerKeys(lambda: between, identity("broker").public, owner=identity("alice"))
    owner.create(KEK)
    act = between.seen[-2]
    owner.destroy(KEK)
    for link in (between._inner, home.connect()):
        if link is not between._inner:
            link.exchange(encode(Hello(bytes(32))))
        answer = decode_reply(link.exchange(act))
        assert isinstance(answer, Refused)
        assert answer.error == "IntegrityError"
    assert home.owner().inventory().keks == ()


def test_an_answer_for_another_request_is_not_taken(home: Home) -> None:
    """A site answers its worker with what was released to the same worker for other keys."""
    wrapped = filled(home)
    other = home.owner().wrap(KEK, b"o" * 32)
    client = home.client()
    party = worker()
    party.unwrap(client, KEK, (wrapped,))
    kept = client.released
    stale = kept(More(party._grant.permission, party._grant.worker, (wrapped,)))  # type: ignore[union-attr]
    client.released = lambda _: stale  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="another request"):
        party.unwrap(client, KEK, (other,))


def test_further_keys_are_for_the_worker_that_was_attested(home: Home) -> None:
    wrapped = filled(home)
    client = home.client()
    party = worker()
    party.unwrap(client, KEK, (wrapped,))
    grant = party._grant
    assert grant is not None
    with pytest.raises(PolicyRefused, match="no grant of this connection"):
        client.released(More(grant.permission, "77" * 32, (wrapped,)))
    with pytest.raises(PolicyRefused, match="no grant of this connection"):
        home.client().released(More(grant.permission, grant.worker, (wrapped,)))
    released = client.released(More(grant.permission, grant.worker, (wrapped,)))
    with pytest.raises(IntegrityError):
        hpke_open(
            HpkePrivateKey.generate(KemSuite.HYBRID),
            released.sealed,
            info=RELEASE_INFO,
            associated_data=released.grant,
        )


# -- the socket -------------------------------------------------------------------------------------------------


def _talk(path: Path, data: bytes, *, frame: bool = True) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(10)
        link.connect(str(path))
        try:
            link.sendall((len(data).to_bytes(4, "big") if frame else b"") + data)
            link.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while piece := link.recv(65536):
                answer += piece
        except OSError:
            pass
        return answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\xc1",
        b"\x91" * 4000,
        encode(Ask()),
        encode({"is": "hello", "nonce": b"short"}),
        encode({"is": "hello", "nonce": bytes(32), "more": 1}),
        encode({"is": "released"}),
        os.urandom(4000),
    ],
    ids=["empty", "zeros", "ones", "never", "deep", "early", "short", "field", "reply", "random"],
)
def test_garbage_is_answered_with_one_refusal_and_no_entry(home: Home, tmp_path: Path, data: bytes) -> None:
    filled(home)
    entries = len(home.entries())
    with served(home, tmp_path / "b.sock") as path:
        answer = decode_reply(_talk(path, data)[4:])
        assert isinstance(answer, Refused)
        owner = over_socket(path, owner=identity("alice"))
        assert len(owner.inventory().keks) == 1
        owner.close()
    assert len(home.entries()) == entries


@pytest.mark.parametrize("length", [4097, MAX_MESSAGE + 1, 2**32 - 1])
def test_an_oversized_frame_is_refused_by_its_length(home: Home, tmp_path: Path, length: int) -> None:
    with served(home, tmp_path / "b.sock") as path:
        answer = decode_reply(_talk(path, length.to_bytes(4, "big") + b"x" * 8, frame=False)[4:])
        assert isinstance(answer, Refused)
        assert "too long" in answer.what


def test_large_frames_are_taken_only_after_a_challenge(home: Home) -> None:
    conversation = home.broker.converse()
    assert conversation.limit == 4096
    conversation.handle(encode(Hello(bytes(32))), NOW)
    assert conversation.limit < 2 << 20
    conversation.handle(encode(Ask()), NOW)
    assert conversation.limit == MAX_MESSAGE


def test_a_client_that_stops_in_a_frame_holds_nobody_up(home: Home, tmp_path: Path) -> None:
    with (
        served(home, tmp_path / "b.sock", frame_seconds=0.2) as path,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow,
    ):
        slow.settimeout(10)
        slow.connect(str(path))
        slow.sendall(b"\x00\x00\x01\x00half")
        owner = over_socket(path, owner=identity("alice"))
        owner.create(KEK)
        owner.close()
        assert slow.recv(100) == b""


def test_too_many_connections_are_closed_and_the_first_go_on(home: Home, tmp_path: Path) -> None:
    with served(home, tmp_path / "b.sock") as path:
        owner = over_socket(path, owner=identity("alice"))
        owner.create(KEK)
        crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(80)]
        for each in crowd:
            each.connect(str(path))
            each.settimeout(10)
        assert crowd[-1].recv(10) == b""
        owner.create("second")
        for each in crowd:
            each.close()
        owner.close()


def test_another_user_of_the_machine_cannot_keep_the_others_out(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.enclave.broker import server

    user = [os.geteuid() + 1]
    monkeypatch.setattr(server, "_user_of", lambda _: user[0])
    with served(home, tmp_path / "b.sock", shared=True) as path:
        crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(70)]
        for each in crowd:
            each.connect(str(path))
            each.settimeout(10)
        assert crowd[-1].recv(10) == b""  # all of them were seen to
        for user[0] in (os.geteuid(), os.geteuid() + 2):
            owner = over_socket(path, owner=identity("alice"))
            owner.inventory()
            owner.close()
        for each in crowd:
            each.close()


def test_other_users_do_not_reach_the_socket(home: Home, tmp_path: Path) -> None:
    with served(home, tmp_path / "b.sock") as path:
        assert path.stat().st_mode & 0o777 == 0o600
    with served(home, tmp_path / "b.sock", shared=True) as path:
        assert path.stat().st_mode & 0o777 == 0o666


def test_a_socket_that_is_served_is_not_taken_over(home: Home, tmp_path: Path) -> None:
    from cloister.enclave.broker.server import _listen

    with (
        served(home, tmp_path / "b.sock") as path,
        pytest.raises(StorageError, match="another process serves"),
    ):
        _listen(path, shared=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        _listen(tmp_path / "file", shared=False)
    assert (tmp_path / "file").read_text() == "mine"


# -- the disk ---------------------------------------------------------------------------------------------------


def _copied(home: Home, target: Path) -> Path:
    """Copy the closed broker's folder."""
    home.close()
    shutil.copytree(home.folder, target)
    home.broker = home._open()
    return target


def _put_back(home: Home, copy: Path, names: str) -> None:
    home.close()
    for old in home.folder.glob(names):
        old.unlink()
    for kept in copy.glob(names):
        shutil.copy(kept, home.folder)


def test_an_older_store_is_noticed_by_the_log(home: Home, tmp_path: Path) -> None:
    wrapped = filled(home)
    copy = _copied(home, tmp_path / "copy")
    home.worker().unwrap(KEK, wrapped)
    _put_back(home, copy, "broker.db*")
    with pytest.raises(IntegrityError, match="older copy was put back"):
        home._open()


def test_an_older_log_is_noticed_by_the_store(home: Home, tmp_path: Path) -> None:
    wrapped = filled(home, uses=3)
    copy = _copied(home, tmp_path / "copy")
    for _ in range(2):
        home.worker().unwrap(KEK, wrapped)
    _put_back(home, copy, "broker.log")
    with pytest.raises(IntegrityError, match="log is older"):
        home._open()


def test_a_log_that_was_rewritten_is_noticed(home: Home) -> None:
    from cloister.log import Log

    wrapped = filled(home)
    home.worker().unwrap(KEK, wrapped)
    home.worker(purpose="marketing")
    entries, path = home.entries(), home.broker.book.log.path
    home.close()
    path.unlink()
    forged = Log(path, identity("broker").fingerprint)
    for entry in entries:
        forged.append(str(entry | {"at": "2020-01-01T00:00:00Z"}).encode())
    with pytest.raises(IntegrityError, match="rewritten"):
        home._open()


def test_a_log_or_a_store_that_is_gone_is_noticed(home: Home, tmp_path: Path) -> None:
    filled(home)
    copy = _copied(home, tmp_path / "copy")
    home.close()
    (home.folder / "broker.log").unlink()
    with pytest.raises(IntegrityError, match="lost its log"):
        home._open()
    _put_back(home, copy, "broker.log")
    for each in home.folder.glob("broker.db*"):
        each.unlink()
    with pytest.raises(IntegrityError, match="lost its store"):
        home._open()


class _NotAHardwareCounter:
    """Stands for a TPM's counter. A test double."""

    def __init__(self) -> None:
        self.value = 0

    def read(self) -> int:
        return self.value

    def increment(self) -> int:
        self.value = (self.value or 40) + 1
        return self.value


def test_older_copies_of_both_are_noticed_by_a_counter(tmp_path: Path) -> None:
    counter = _NotAHardwareCounter()
    home = Home(tmp_path / "broker", counter)
    wrapped = filled(home)
    copy = _copied(home, tmp_path / "copy")
    home.worker().unwrap(KEK, wrapped)
    home.restart()
    _put_back(home, copy, "broker.*")
    with pytest.raises(IntegrityError, match="counter has gone on"):
        home._open()
    home.counter = None
    with pytest.raises(IntegrityError, match="--tpm"):
        home._open()
    home.counter = _NotAHardwareCounter()
    with pytest.raises(IntegrityError, match="another TPM"):
        home._open()


def test_a_copy_from_before_the_counter_is_noticed(tmp_path: Path) -> None:
    home = Home(tmp_path / "broker")
    wrapped = filled(home)
    copy = _copied(home, tmp_path / "copy")
    home.close()
    home.counter = _NotAHardwareCounter()
    home.broker = home._open()
    assert home.entries()[-1]["entry"] == "anchored"
    home.worker().unwrap(KEK, wrapped)
    home.restart()
    _put_back(home, copy, "broker.*")
    with pytest.raises(IntegrityError, match="before its counter"):
        home._open()


def test_a_crash_between_store_and_counter_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = _NotAHardwareCounter()
    home = Home(tmp_path / "broker", counter)
    wrapped = filled(home)

    def gone() -> int:
        raise StorageError("the TPM does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(counter, "increment", gone)
        with pytest.raises(StorageError):
            home.worker().unwrap(KEK, wrapped)
    home.restart()
    assert home.entries()[-1]["entry"] == "interrupted"
    refused_and_logged(home, wrapped, home.worker(), "every use")
    home.close()


_EDITS = {
    "fewer uses": "UPDATE rows SET content = replace(content, '\"used\":1', '\"used\":0') WHERE kind = 'permission'",
    "more allowed": "UPDATE rows SET content = replace(content, '\"uses\":1', '\"uses\":9') WHERE kind = 'permission'",
    "no permission": "DELETE FROM rows WHERE kind = 'permission'",
    "no key": "DELETE FROM rows WHERE kind = 'kek'",
    "renamed key": "UPDATE rows SET id = 'dataset.other.1' WHERE kind = 'kek'",
    "other kind": "UPDATE rows SET kind = 'permission' WHERE kind = 'kek'",
    "number": "UPDATE rows SET content = 5 WHERE kind = 'kek'",
    "null mac": "UPDATE meta SET mac = 7",
    "sequence": "UPDATE meta SET content = replace(content, '\"sequence\":', '\"sequence\":1')",
    "no meta": "DELETE FROM meta",
    "no header": "DELETE FROM header",
    "no table": "DROP TABLE rows",
    "version": "PRAGMA user_version = 9",
}


@pytest.mark.parametrize("edit", list(_EDITS.values()), ids=list(_EDITS))
def test_an_edited_store_does_not_open(home: Home, edit: str) -> None:
    wrapped = filled(home)
    home.worker().unwrap(KEK, wrapped)
    home.close()
    sql = sqlite3.connect(home.folder / "broker.db")
    sql.execute(edit)
    sql.commit()
    sql.close()
    with pytest.raises(IntegrityError, match="not as it was left"):
        home._open()


def test_one_row_of_an_older_copy_is_noticed(home: Home, tmp_path: Path) -> None:
    wrapped = filled(home)
    copy = _copied(home, tmp_path / "copy")
    home.worker().unwrap(KEK, wrapped)
    home.close()
    sql = sqlite3.connect(home.folder / "broker.db")
    sql.execute("ATTACH ? AS old", (str(copy / "broker.db"),))
    sql.execute("DELETE FROM rows WHERE kind = 'permission'")
    sql.execute("INSERT INTO rows SELECT * FROM old.rows WHERE kind = 'permission'")
    sql.commit()
    sql.close()
    with pytest.raises(IntegrityError):
        home._open()


def test_altered_bytes_of_the_store_never_release_more(home: Home) -> None:
    """Flip bytes all over the file: it does not open, or it opens and says the same."""
    wrapped = filled(home)
    home.worker().unwrap(KEK, wrapped)
    home.close()
    path = home.folder / "broker.db"
    good = path.read_bytes()
    for position in range(0, len(good), 97):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bytes(bad))
        try:
            store = Store.open(home.folder, PASSPHRASE)
        except (IntegrityError, PassphraseError, StorageError, InputError):
            continue
        assert [held.used for held in store.permissions.values()] == [1]
        store.close()
        for side in home.folder.glob("broker.db-*"):
            side.unlink()
    path.write_bytes(good)


def test_another_passphrase_does_not_open(home: Home) -> None:
    filled(home)
    home.close()
    with pytest.raises(PassphraseError) as caught:
        Store.open(home.folder, "correct horsf")
    assert "horsf" not in str(caught.value)


def test_a_store_is_open_once(home: Home) -> None:
    with pytest.raises(StorageError, match="another process"):
        Store.open(home.folder, PASSPHRASE)


def test_a_file_that_is_replaced_while_open_ends_the_broker(home: Home, tmp_path: Path) -> None:
    wrapped = filled(home)
    shutil.copy(home.folder / "broker.db", tmp_path / "other.db")
    (tmp_path / "other.db").replace(home.folder / "broker.db")
    with pytest.raises(IntegrityError, match="replaced"):
        home.worker().unwrap(KEK, wrapped)
    with pytest.raises(StorageError, match="start it again"):
        home.worker().unwrap(KEK, wrapped)


# -- secrets ----------------------------------------------------------------------------------------------------


def test_no_secret_is_on_the_disk_in_the_log_or_shown(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    owner = home.owner()
    owner.create(KEK)
    owner.allow(permission(2))
    secret = os.urandom(32)
    wrapped = owner.wrap(KEK, secret)
    keys = home.worker()
    keys.unwrap(KEK, wrapped)
    store = home.broker.book.store
    kek = store.open_kek(store.keks[KEK])
    shown = "".join(
        repr(each) + str(each)
        for each in (
            store,
            store.keks,
            home.broker,
            home.broker.orders,
            home.broker.releases,
            keys,
            owner,
            keys._worker,
            home.broker.book,
        )
    )
    disk = b"".join(path.read_bytes() for path in home.folder.iterdir())
    for each in (kek, secret, store._kek_key, store._mac_key, PASSPHRASE.encode()):
        assert each not in disk
        assert each.hex() not in shown
        assert repr(each)[2:-1] not in shown
    assert not caplog.records


def test_errors_hold_no_bytes_of_a_message(home: Home) -> None:
    conversation = home.broker.converse()
    answer = decode_reply(conversation.handle(encode({"is": "hello", "nonce": b"canary-canary"}), NOW))
    assert isinstance(answer, Refused)
    assert "canary" not in answer.what + answer.where + answer.fix


def test_a_destroyed_key_is_gone_from_the_file(home: Home) -> None:
    owner = home.owner()
    owner.create(KEK)
    sealed = home.broker.book.store.keks[KEK].sealed
    encoded = msgspec.json.encode(sealed)[1:-1]
    assert any(encoded in path.read_bytes() for path in home.folder.iterdir())
    owner.destroy(KEK)
    assert not any(encoded in path.read_bytes() for path in home.folder.iterdir())


def test_the_log_is_the_answers_witness(home: Home) -> None:
    """Every answer carries a signed head that holds its entry, and heads continue one another."""
    from cloister.crypto import keyring
    from cloister.log import leaf_hash, open_head, verify_consistency, verify_inclusion

    wrapped = filled(home, uses=2)
    log = home.broker.book.log
    heads = []
    for _ in range(2):
        request = _Request(home.client(), wrapped)
        released = request.send(request.evidence())
        head = open_head(released.head, keyring([identity("broker").public]))
        proof = log.inclusion_proof(released.index, head.size)
        verify_inclusion(leaf_hash(log.entry(released.index)), released.index, head.size, proof, head.root)
        heads.append(head)
    old, new = heads
    verify_consistency(old.size, new.size, log.consistency_proof(old.size, new.size), old.root, new.root)


def test_a_log_that_does_not_hold_the_release_is_not_believed(home: Home) -> None:
    request = _Request(home.client(), filled(home))
    kept = request.client._ask

    def lie(message: object, kind: object) -> object:
        answer = kept(message, kind)  # type: ignore[type-var]
        return msgspec.structs.replace(answer, index=99) if isinstance(answer, Released) else answer

    request.client._ask = lie  # type: ignore[method-assign,assignment]
    with pytest.raises(IntegrityError, match="does not hold"):
        request.send(request.evidence())
