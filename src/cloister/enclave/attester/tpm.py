"""A TPM 2.0, as the attester uses it: quotes, registers, keys, credential activation.

The connection, the attestation key and, once read, the registers stay open and loaded: a quote is then one
command. Register values that come with a quote are those that were signed: their digest is compared with the
quote's, and they are read again where they moved in between.

One object may be used by several threads; a forked child must open its own. Nothing here checks that a TPM is
hardware: `software` says what the TPM says of itself, and a verifier asks its maker's certificate instead.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from cloister.enclave.attester.pytss import load, refusal_code, tpm_errors
from cloister.enclave.attester.templates import EK_KINDS, ak_template, endorsement, storage_template
from cloister.errors import InputError

__all__ = ["ALL_PCRS", "DEVICE", "Quoted", "Tpm"]

DEVICE: Final = Path("/dev/tpmrm0")
"""The kernel's resource-managed TPM."""
ALL_PCRS: Final = tuple(range(24))
_PER_READ: Final = 8  # values of one TPM2_PCR_Read
_ATTEMPTS: Final = 5
_RC_HANDLE: Final = 0x8B  # TPM_RC_HANDLE: nothing has that handle
_MAKER: Final = 0x105  # TPM_PT_MANUFACTURER
_VENDOR: Final = (0x106, 0x107, 0x108, 0x109)  # TPM_PT_VENDOR_STRING_1 to _4


class Quoted(NamedTuple):
    """A quote.

    Attributes:
        quote: TPMS_ATTEST, the bytes that were signed.
        signature: TPMT_SIGNATURE.
        pcrs: the values that were signed, 32 bytes each, of the SHA-256 bank, by register.
    """

    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]


class Tpm:
    """One TPM that somebody opened; close it, or use it in a with-statement.

    Args:
        tcti: the way to it: "device:/dev/tpmrm0", or an object of `tpm2_pytss`.
        where: which TPM this is, for messages.

    Raises:
        InputError: no TPM answers there.
    """

    def __init__(self, tcti: Any, *, where: str) -> None:
        self.where: Final = where
        self._tss = load()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._handles: dict[str, Any] = {}
        self._publics: dict[str, Any] = {}
        self._known: dict[int, bytes] = {}
        with tpm_errors("answer", where):
            self._api: Any = self._tss.ESAPI(tcti)

    @classmethod
    def device(cls, path: Path = DEVICE) -> Tpm:
        """Open the machine's own TPM. Raises InputError where it cannot be had."""
        if not os.access(path, os.R_OK | os.W_OK):
            raise InputError(
                "there is no TPM, or this user may not use it",
                where=str(path),
                fix="Add the user to the group `tss`, or use a software TPM for trials",
            )
        return cls(f"device:{path}", where=str(path))

    @contextmanager
    def commands(self, doing: str, **known: Any) -> Iterator[Any]:
        """Hold the TPM for a sequence of commands; give the ESAPI context. For the attester's own modules.

        Args:
            doing: what for, as in `pytss.tpm_errors`.
            known: `refused` of `pytss.tpm_errors`.

        Raises:
            InputError: it failed, is closed, or belongs to a parent process.
        """
        if os.getpid() != self._process:
            raise InputError(
                "a TPM that a parent process opened cannot be used", where=self.where, fix="Open it anew"
            )
        with self._lock, tpm_errors(doing, self.where, **known):
            if self._api is None:
                raise InputError("the TPM was closed", where=self.where, fix="Open it anew")
            yield self._api

    @property
    def tss(self) -> Any:
        """The package `tpm2_pytss`."""
        return self._tss

    @property
    def software(self) -> bool:
        """Whether the TPM says that it is a program. One that says it is not may be one all the same."""
        maker, *vendor = (self._property(number) for number in (_MAKER, *_VENDOR))
        text = b"".join(part.to_bytes(4) for part in vendor)
        return maker == int.from_bytes(b"IBM\0") and text.startswith(b"SW")

    def _property(self, number: int) -> int:
        with self.commands("say what it is") as api:
            _, data = api.get_capability(self._tss.TPM2_CAP.TPM_PROPERTIES, number, 1)
            return next((int(each.value) for each in data.data.tpmProperties if each.property == number), 0)

    def pcrs(self, selection: Sequence[int] = ALL_PCRS) -> dict[int, bytes]:
        """Return registers of the SHA-256 bank, 32 bytes each."""
        values: dict[int, bytes] = {}
        with self.commands("read its registers") as api:
            for begin in range(0, len(selection), _PER_READ):
                part = sorted(selection[begin : begin + _PER_READ])
                _, _, found = api.pcr_read(_selected(part))
                values.update(zip(part, map(bytes, found), strict=True))
        return dict(sorted(values.items()))

    def extend(self, pcr: int, value: bytes) -> None:
        """Extend a register of the SHA-256 bank with 32 bytes: it becomes SHA-256(before || value)."""
        with self.commands("extend a register") as api:
            digest = self._tss.TPMT_HA(
                hashAlg=self._tss.TPM2_ALG.SHA256, digest=self._tss.TPMU_HA(sha256=value)
            )
            api.pcr_extend(self._tss.ESYS_TR(pcr), self._tss.TPML_DIGEST_VALUES(digests=[digest], count=1))

    def quote(self, qualifying: bytes, pcrs: Sequence[int] = ALL_PCRS) -> Quoted:
        """Quote registers.

        Args:
            qualifying: at most 32 bytes that the quote repeats; more is cut by its caller, not here.
            pcrs: which registers of the SHA-256 bank.

        Raises:
            InputError: the TPM failed, or its registers never held still.
        """
        if len(qualifying) > 32:
            raise InputError(f"a quote carries at most 32 bytes, not {len(qualifying)}")
        chosen = sorted(set(pcrs))
        with self._lock:
            ak = self.key("ak")
            for _ in range(_ATTEMPTS):
                with self.commands("quote") as api:
                    attest, signature = api.quote(ak, _selected(chosen), qualifying)
                quoted = bytes(attest)
                values = {pcr: self._known[pcr] for pcr in chosen if pcr in self._known}
                if quoted.endswith(hashlib.sha256(b"".join(values.values())).digest()):
                    return Quoted(quoted, bytes(signature.marshal()), values)
                self._known = self.pcrs(chosen)
        raise InputError("the registers changed during every quote", where=self.where, fix="Try again")

    def key(self, name: str) -> Any:
        """Return the handle of a primary key: "ak", "ek" or "storage". For the attester's own modules."""
        with self._lock:
            if name not in self._handles:
                with self.commands("make a key") as api:
                    every = self._tss.ESYS_TR
                    owner = every.OWNER if name == "storage" else every.ENDORSEMENT
                    made = api.create_primary(
                        self._tss.TPM2B_SENSITIVE_CREATE(), self._template(name), primary_handle=owner
                    )
                    self._handles[name], self._publics[name] = made[0], made[1].publicArea
            return self._handles[name]

    def public(self, name: str) -> bytes:
        """Return TPMT_PUBLIC of a primary key: "ak", "ek" or "storage"."""
        self.key(name)
        return bytes(self._publics[name].marshal())

    def spki(self, name: str) -> bytes:
        """Return SubjectPublicKeyInfo, DER, of a primary key."""
        self.key(name)
        return bytes(self._publics[name].to_der())

    @property
    def ek_certificate(self) -> bytes | None:
        """The maker's certificate of the EK, DER; None where the TPM holds none, as software TPMs do not."""
        return self._endorsement()[0]

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        """Answer a verifier's challenge (`kinds.activation.challenge`): TPM2_ActivateCredential.

        Args:
            credential: TPM2B_ID_OBJECT.
            secret: TPM2B_ENCRYPTED_SECRET.

        Returns:
            What was encrypted to this TPM and its attestation key.

        Raises:
            InputError: it was for another TPM or another key.
        """
        tss, none = self._tss, self._tss.ESYS_TR.NONE
        ek, ak = self.key("ek"), self.key("ak")
        with self.commands("open a verifier's challenge") as api:
            sealed = tss.TPM2B_ID_OBJECT.unmarshal(credential)[0]
            shared = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(secret)[0]
            session = api.start_auth_session(none, none, tss.TPM2_SE.POLICY, None, tss.TPM2_ALG.SHA256)
            try:
                api.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
                return bytes(api.activate_credential(ak, ek, sealed, shared, session2=session))
            finally:
                api.flush_context(session)

    def close(self) -> None:
        """Drop keys and the connection; registers stay as they are. A second call does nothing."""
        with self._lock:
            api, self._api = self._api, None
            if api is not None and os.getpid() == self._process:
                for handle in self._handles.values():
                    with _ignored(self._tss):
                        api.flush_context(handle)
                with _ignored(self._tss):
                    api.close()
            self._handles.clear()

    def __enter__(self) -> Tpm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Tpm {self.where}>"

    def _template(self, name: str) -> Any:
        if name == "ak":
            return ak_template(self._tss)
        return storage_template(self._tss) if name == "storage" else self._endorsement()[1]

    def _endorsement(self) -> tuple[bytes | None, Any]:
        """Return the EK's certificate, if there is one, and its template: the kind that has a certificate."""
        with self.commands("show its endorsement key") as api:
            return endorsement(api, next((kind for kind, index in EK_KINDS if self.has(index)), None))

    def has(self, index: int) -> bool:
        """Tell whether an NV index is defined."""
        with self.commands("list what it stores") as api:
            try:
                api.tr_close(api.tr_from_tpmpublic(self._tss.TPM2_HANDLE(index)))
            except self._tss.TSS2_Exception as error:
                if refusal_code(error) == _RC_HANDLE:
                    return False
                raise
            return True


def _selected(pcrs: Sequence[int]) -> str:
    return "sha256:" + ",".join(map(str, pcrs))


@contextmanager
def _ignored(tss: Any) -> Iterator[None]:
    """Let a TPM that is gone not keep anybody from leaving it."""
    try:
        yield
    except (tss.TSS2_Exception, OSError, RuntimeError):
        return
