"""What runs here, said by the machine itself: TPM, confidential guest, or an unprotected software TPM.

To use: `find_attester(folder, software_allowed=False)`, then `attest(report_data)`. A measured start is
`find_attester(..., measured=measure(plan=..., policy=...))`.
"""

from cloister.enclave.attester.attest import (
    Attester,
    TpmAttester,
    TsmAttester,
    find_attester,
    software_attester,
)
from cloister.enclave.attester.counter import MachineCounter
from cloister.enclave.attester.measured import Measured, measure
from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.attester.swtpm import NOT_PROTECTED, SoftwareTpm, TpmInUse, why_no_swtpm
from cloister.enclave.attester.tpm import Quoted, Tpm

__all__ = [
    "NOT_PROTECTED",
    "Attester",
    "MachineCounter",
    "Measured",
    "NvCounter",
    "Quoted",
    "SoftwareTpm",
    "Tpm",
    "TpmAttester",
    "TpmInUse",
    "TsmAttester",
    "find_attester",
    "measure",
    "software_attester",
    "why_no_swtpm",
]
