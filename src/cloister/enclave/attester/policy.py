"""Secrets that a TPM gives away only in the state they were sealed to.

The policy is the TPM's own: registers have the stated values (TPM2_PolicyPCR), and, where there is a counter,
it has exactly the stated value (TPM2_PolicyNV, equal). No password opens it, and no software is asked. The
bus between processor and TPM sees neither the secret nor the answer: sessions are salted to the TPM's storage
key and encrypt their first parameter. That key is not compared with a certificate here, so a bus that is
rewritten, not only read, is out of scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from cloister.crypto import constant_time_equal
from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.attester.templates import sealed_template
from cloister.enclave.attester.tpm import Tpm
from cloister.errors import CloisterError, IntegrityError, PolicyRefused

__all__ = ["Condition", "SealedKey", "is_for", "seal_key", "unseal_key"]

_RC_POLICY: Final = 0x126  # TPM_RC_POLICY: a comparison of PolicyNV does not hold
_RC_POLICY_FAIL: Final = 0x9D
_RC_VALUE: Final = 0x84
_RC_INTEGRITY: Final = 0x9F
_RC_SIZE: Final = 0x95
_SECRET: Final = 128  # bytes a TPM seals at most (MAX_SYM_DATA)


class Condition(NamedTuple):
    """The state a secret is sealed to.

    Attributes:
        pcrs: values of registers of the SHA-256 bank, 32 bytes each; at least one.
        counter: a counter, and the value it must have.
    """

    pcrs: Mapping[int, bytes]
    counter: tuple[NvCounter, int] | None


class SealedKey(NamedTuple):
    """A secret only its TPM opens: TPM2B_PUBLIC and TPM2B_PRIVATE."""

    public: bytes
    private: bytes


def seal_key(tpm: Tpm, secret: bytes, condition: Condition) -> SealedKey:
    """Seal a secret, at most 128 bytes, to a state. Raises InputError where the TPM fails."""
    tss, storage = tpm.tss, tpm.key("storage")
    digest = _policy_digest(tpm, condition)
    with tpm.commands("seal") as api, _session(tpm, api, tss.TPM2_SE.HMAC) as session:
        sensitive = tss.TPM2B_SENSITIVE_CREATE(
            tss.TPMS_SENSITIVE_CREATE(data=tss.TPM2B_SENSITIVE_DATA(secret))
        )
        made = api.create(storage, sensitive, sealed_template(tss, digest), session2=session)
        return SealedKey(bytes(made[1].marshal()), bytes(made[0].marshal()))


def unseal_key(tpm: Tpm, key: SealedKey, condition: Condition) -> bytes:
    """Return a sealed secret.

    Raises:
        PolicyRefused: the machine's registers, or the counter, are not in the state it was sealed to.
        IntegrityError: it was altered, or sealed by another TPM.
        InputError: the TPM failed.
    """
    tss, storage = tpm.tss, tpm.key("storage")
    with tpm.commands("open what was sealed", refused=_refusal) as api:
        public, private = _parsed(tss.TPM2B_PUBLIC, key.public), _parsed(tss.TPM2B_PRIVATE, key.private)
        handle = api.load(storage, private, public)
        try:
            with _session(tpm, api, tss.TPM2_SE.POLICY) as session:
                _state(tpm, api, session, condition)
                return bytes(api.unseal(handle, session1=session))
        finally:
            api.flush_context(handle)


def is_for(tpm: Tpm, key: SealedKey, condition: Condition) -> bool:
    """Tell whether this TPM sealed a key to that state, whatever state it is in. Raises IntegrityError."""
    tss, storage = tpm.tss, tpm.key("storage")
    with tpm.commands("load what was sealed", refused=_refusal) as api:
        public, private = _parsed(tss.TPM2B_PUBLIC, key.public), _parsed(tss.TPM2B_PRIVATE, key.private)
        api.flush_context(api.load(storage, private, public))
    return constant_time_equal(bytes(public.publicArea.authPolicy), _policy_digest(tpm, condition))


def _parsed(kind: Any, data: bytes) -> Any:
    parsed, length = kind.unmarshal(data)
    if length != len(data):
        raise IntegrityError("sealed data was altered", fix="Bring back a copy that was not")
    return parsed


def _policy_digest(tpm: Tpm, condition: Condition) -> bytes:
    tss = tpm.tss
    with tpm.commands("state a policy") as api, _session(tpm, api, tss.TPM2_SE.TRIAL) as session:
        _state(tpm, api, session, condition)
        return bytes(api.policy_get_digest(session))


def _state(tpm: Tpm, api: Any, session: Any, condition: Condition) -> None:
    """Tell a session what the policy demands; in one that is no trial the TPM compares at once."""
    tss = tpm.tss
    chosen = sorted(condition.pcrs)
    values = hashlib.sha256(b"".join(condition.pcrs[pcr] for pcr in chosen)).digest()
    api.policy_pcr(session, values, "sha256:" + ",".join(map(str, chosen)))
    if condition.counter is not None:
        counter, value = condition.counter
        with counter.opened("compare a counter", refused=_refusal) as (_, index):
            api.policy_nv(index, index, session, value.to_bytes(8), tss.TPM2_EO.EQ)


@contextmanager
def _session(tpm: Tpm, api: Any, kind: Any) -> Iterator[Any]:
    """Give a session; one that carries a secret is salted to the storage key, and encrypts."""
    tss, none = tpm.tss, tpm.tss.ESYS_TR.NONE
    trial = kind == tss.TPM2_SE.TRIAL
    salt, cipher = (none, None) if trial else (tpm.key("storage"), "aes128cfb")
    session = api.start_auth_session(salt, none, kind, cipher, tss.TPM2_ALG.SHA256)
    try:
        if not trial:
            flags = tss.TPMA_SESSION
            api.trsess_set_attributes(
                session, flags.CONTINUESESSION | flags.DECRYPT * (kind != tss.TPM2_SE.POLICY) | flags.ENCRYPT
            )
        yield session
    finally:
        api.flush_context(session)


def _refusal(code: int) -> CloisterError | None:
    if code in {_RC_POLICY_FAIL, _RC_VALUE}:
        return PolicyRefused(
            "the machine's measurements are not those the data was sealed to",
            fix="What runs here has changed since; seal again from where the data still is",
        )
    if code == _RC_POLICY:
        return PolicyRefused(
            "this is an older copy of sealed data: the TPM's counter has moved on",
            fix="Bring back the newest copy",
        )
    if code in {_RC_INTEGRITY, _RC_SIZE}:
        return IntegrityError("sealed data was altered, or sealed by another TPM")
    return None
