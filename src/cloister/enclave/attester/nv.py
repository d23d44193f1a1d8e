"""Counters in a TPM: they only go up, whatever is done to the disk.

One NV index a counter (TPMA_NV_COUNTER), in the owner's range; its handle is derived from the counter's name,
so that nothing has to be stored to find it again. A counter that is deleted and made anew begins above every
value a counter of that TPM ever had (part 1, 37.2.4.2): deleting one loses what it protects and rolls nothing
back.

Anybody who may use the TPM may increment it, which makes what it protects unreadable, and never an older
state readable. Counters of a software TPM are files: putting back its folder puts them back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cloister.enclave.attester.tpm import Tpm
from cloister.errors import InputError

__all__ = ["NvCounter"]

_RANGE: Final = 0x01A00000  # within the owner's 0x01800000 to 0x01BFFFFF (TCG handle registry, 2.2)
_BITS: Final = 20
_SIZE: Final = 8


class NvCounter:
    """A counter by its name; defined in the TPM when it is first needed. A `types.Counter`.

    Args:
        tpm: where it is.
        name: 1 to 128 characters. Another name is another counter.
    """

    def __init__(self, tpm: Tpm, name: str) -> None:
        if not 1 <= len(name) <= 128:
            raise InputError("a counter's name has 1 to 128 characters")
        self.tpm: Final = tpm
        self.name: Final = name
        digest = hashlib.sha256(b"cloister counter v1\0" + name.encode()).digest()
        self.index: Final = _RANGE | int.from_bytes(digest) >> (256 - _BITS)

    def exists(self) -> bool:
        """Tell whether the TPM has it."""
        return self.tpm.has(self.index)

    def read(self) -> int:
        """Return its value; 0 where the TPM has none yet. Raises InputError where the TPM fails."""
        if not self.exists():
            return 0
        with self.opened("read a counter") as (api, handle):
            return int.from_bytes(bytes(api.nv_read(handle, _SIZE)))

    def increment(self) -> int:
        """Add one, durably, and return the new value; a counter that was not there is made."""
        if not self.exists():
            self._define()
        with self.opened("increment a counter") as (api, handle):
            api.nv_increment(handle)
        return self.read()

    @contextmanager
    def opened(self, doing: str, **known: Any) -> Iterator[tuple[Any, Any]]:
        """Give the ESAPI context and the handle of an index that is this counter; see `Tpm.commands`."""
        with self.tpm.commands(doing, **known) as api:
            handle = api.tr_from_tpmpublic(self.tpm.tss.TPM2_HANDLE(self.index))
            try:
                public, _ = api.nv_read_public(handle)
                if int(public.nvPublic.attributes) & ~_WRITTEN != self._attributes():
                    raise InputError("a TPM's index is in use by something else", where=f"{self.index:#x}")
                yield api, handle
            finally:
                api.tr_close(handle)

    def _define(self) -> None:
        tss = self.tpm.tss
        public = tss.TPM2B_NV_PUBLIC(
            nvPublic=tss.TPMS_NV_PUBLIC(
                nvIndex=self.index,
                nameAlg=tss.TPM2_ALG.SHA256,
                attributes=self._attributes(),
                dataSize=_SIZE,
            )
        )
        with self.tpm.commands("make a counter") as api:
            api.tr_close(api.nv_define_space(b"", public))

    def _attributes(self) -> int:
        kind = self.tpm.tss.TPMA_NV
        wanted = kind.AUTHREAD | kind.AUTHWRITE | kind.OWNERREAD | kind.NO_DA
        return int(wanted) | int(self.tpm.tss.TPM2_NT.COUNTER) << 4


_WRITTEN: Final = 1 << 29  # TPMA_NV_WRITTEN
