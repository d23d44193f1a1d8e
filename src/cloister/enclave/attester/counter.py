"""A counter of this machine, opened when it is first asked: its TPM's, or a software TPM's.

Several processes may hold one of these for the same thing, such as those that share a ledger, while only one
of them counts: a software TPM serves one process at a time, so nobody opens it before he needs it.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.attester.swtpm import SoftwareTpm
from cloister.enclave.attester.tpm import DEVICE, Tpm
from cloister.errors import PolicyRefused

__all__ = ["MachineCounter"]


class MachineCounter:
    """A `types.Counter`.

    Args:
        folder: state of the software TPM that serves where the machine has none. It is of this counter alone,
            and NOT HARDWARE-PROTECTED: put back with a disk, it counts from where it was.
        name: of the counter.
        software_allowed: whether a software TPM may be made. One that is there was allowed before.
        device: of the machine's TPM.
    """

    def __init__(
        self, folder: Path, name: str, *, software_allowed: bool = False, device: Path = DEVICE
    ) -> None:
        self._folder = folder
        self._name = name
        self._software_allowed = software_allowed
        self._device = device
        self._lock = threading.Lock()
        self._counter: NvCounter | None = None
        self._closing: weakref.finalize[..., MachineCounter] | None = None

    @property
    def hardware(self) -> bool:
        """Whether the machine has a TPM of its own, as far as can be told without asking it."""
        return self._device.exists()

    def read(self) -> int:
        """Return its value; see `types.Counter`. Raises also PolicyRefused where there is no TPM."""
        return self._opened().read()

    def increment(self) -> int:
        """Add one; see `types.Counter`. Raises also PolicyRefused where there is no TPM."""
        return self._opened().increment()

    def close(self) -> None:
        """Let go of the TPM; a later call opens it again."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._counter = self._closing = None

    def _opened(self) -> NvCounter:
        with self._lock:
            if self._counter is None:
                held = self._machine()
                self._closing = weakref.finalize(self, held.close)
                tpm = held.tpm if isinstance(held, SoftwareTpm) else held
                self._counter = NvCounter(tpm, self._name)
            return self._counter

    def _machine(self) -> SoftwareTpm | Tpm:
        if self.hardware:
            return Tpm.device(self._device)
        if not self._software_allowed and not self._folder.is_dir():
            raise PolicyRefused(
                "this machine has no TPM, and so no counter that only goes up",
                where=self._name,
                fix="Use a machine with one; a software TPM counts too, and protects nothing",
            )
        return SoftwareTpm(self._folder)
