from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister import log as room
from cloister.crypto import Identity, keyring, sign_envelope
from cloister.errors import IntegrityError, StorageError, VerificationError
from cloister.log import HEAD_TYPE, Cosigner, Log, open_head, sign_head


@pytest.fixture(scope="module")
def keeper() -> Identity:
    return Identity.generate("hub")


@pytest.fixture(scope="module")
def witness() -> Identity:
    return Identity.generate("witness")


@pytest.fixture
def log(tmp_path: Path, keeper: Identity) -> Log:
    made = Log(tmp_path / "log", keeper.fingerprint)
    for number in range(5):
        made.append(b"%d" % number)
    return made


@pytest.fixture
def cosigner(tmp_path: Path, witness: Identity) -> Cosigner:
    return Cosigner(tmp_path / "heads", witness)


def fork(tmp_path: Path, keeper: Identity, size: int) -> Log:
    made = Log(tmp_path / "fork", keeper.fingerprint)
    for number in range(size):
        made.append(b"other %d" % number)
    return made


def test_heads_are_cosigned_as_the_log_grows(
    log: Log, cosigner: Cosigner, keeper: Identity, witness: Identity
) -> None:
    trusted = keyring([keeper.public])
    assert cosigner.last(log.log_id) is None
    both = cosigner.cosign(sign_head(log.head(), keeper), trusted)
    assert open_head(both, keyring([keeper.public, witness.public]), required=2) == log.head()
    assert cosigner.last(log.log_id) == log.head()
    assert cosigner.cosign(sign_head(log.head(), keeper), trusted) == both
    log.append(b"five")
    cosigner.cosign(sign_head(log.head(), keeper), trusted, log.consistency_proof(5))
    assert cosigner.last(log.log_id) == log.head()


def test_a_fork_is_not_cosigned(log: Log, cosigner: Cosigner, keeper: Identity, tmp_path: Path) -> None:
    trusted = keyring([keeper.public])
    cosigner.cosign(sign_head(log.head(), keeper), trusted)
    other = fork(tmp_path, keeper, 8)
    for head, proof in (
        (other.head(5), ()),
        (other.head(8), other.consistency_proof(5)),
        (other.head(8), ()),
    ):
        with pytest.raises(VerificationError):
            cosigner.cosign(sign_head(head, keeper), trusted, proof)
    assert cosigner.last(log.log_id) == log.head()


def test_an_entry_taken_back_is_not_cosigned(log: Log, cosigner: Cosigner, keeper: Identity) -> None:
    trusted = keyring([keeper.public])
    cosigner.cosign(sign_head(log.head(), keeper), trusted)
    with pytest.raises(VerificationError, match="shorter"):
        cosigner.cosign(sign_head(log.head(4), keeper), trusted, log.consistency_proof(4))


def test_memory_survives_a_restart(log: Log, tmp_path: Path, keeper: Identity, witness: Identity) -> None:
    trusted = keyring([keeper.public])
    Cosigner(tmp_path / "heads", witness).cosign(sign_head(log.head(), keeper), trusted)
    again = Cosigner(tmp_path / "heads", witness)
    assert again.last(log.log_id) == log.head()
    with pytest.raises(VerificationError):
        again.cosign(sign_head(fork(tmp_path, keeper, 5).head(), keeper), trusted)


def test_a_head_that_cannot_be_remembered_is_not_signed(
    log: Log, tmp_path: Path, keeper: Identity, witness: Identity
) -> None:
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(StorageError):
        Cosigner(tmp_path / "blocked", witness).cosign(
            sign_head(log.head(), keeper), keyring([keeper.public])
        )


def test_only_the_keepers_heads_are_cosigned(
    log: Log, cosigner: Cosigner, keeper: Identity, witness: Identity
) -> None:
    with pytest.raises(IntegrityError, match="0 of 1"):
        cosigner.cosign(sign_head(log.head(), witness), keyring([keeper.public]))
    assert cosigner.last(log.log_id) is None


def test_logs_are_remembered_apart(
    log: Log, cosigner: Cosigner, keeper: Identity, witness: Identity, tmp_path: Path
) -> None:
    cosigner.cosign(sign_head(log.head(), keeper), keyring([keeper.public]))
    second = Log(tmp_path / "second", witness.fingerprint)
    cosigner.cosign(sign_head(second.head(), witness), keyring([witness.public]))
    assert cosigner.last(witness.fingerprint) == second.head()
    assert cosigner.last(log.log_id) == log.head()


def test_a_keeper_signs_for_its_own_log_alone(
    log: Log, cosigner: Cosigner, keeper: Identity, witness: Identity, tmp_path: Path
) -> None:
    """Else one keeper could put its head in the place of another's, who would then get no cosigner."""
    forged = fork(tmp_path, keeper, 3).head()
    for known in (keyring([witness.public]), keyring([witness.public, keeper.public])):
        with pytest.raises(VerificationError, match="another log"):
            cosigner.cosign(sign_head(forged, witness), known)
    assert cosigner.last(log.log_id) is None
    cosigner.cosign(sign_head(log.head(), keeper), keyring([keeper.public]))


@pytest.mark.parametrize("spelling", [lambda p: p[:-1] + b',"size":5}', lambda p: b" " + p])
def test_a_head_has_one_spelling(spelling: Callable[[bytes], bytes], log: Log, keeper: Identity) -> None:
    envelope = sign_envelope(HEAD_TYPE, spelling(log.head().to_bytes()), [keeper])
    with pytest.raises(IntegrityError, match="tree head"):
        open_head(envelope, keyring([keeper.public]))


def test_memory_put_under_another_log_is_found(
    log: Log, cosigner: Cosigner, keeper: Identity, tmp_path: Path
) -> None:
    cosigner.cosign(sign_head(log.head(), keeper), keyring([keeper.public]))
    [path] = (tmp_path / "heads").glob("*.json")
    path.rename(cosigner._path("another log"))
    with pytest.raises(IntegrityError, match="another log"):
        cosigner.last("another log")


@pytest.mark.parametrize("payload", [b"{}", b"nonsense", b'{"log_id":"x","size":-1,"root":""}'])
def test_what_is_no_head_is_refused(payload: bytes, keeper: Identity) -> None:
    with pytest.raises(IntegrityError, match="tree head"):
        open_head(sign_envelope(HEAD_TYPE, payload, [keeper]), keyring([keeper.public]))


def test_exports_are_exact() -> None:
    names = {
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and not isinstance(value, type(room))
    }
    assert names == set(room.__all__)
