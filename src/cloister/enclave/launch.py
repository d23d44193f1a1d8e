"""What was measured before the software ran that is judged, and what that software can measure itself.

A reference value counts for an image only where nobody but firmware, hypervisor or processor could have put
it there. Everything else a machine of somebody's own, perfectly genuine, says as it likes:

- registers of a virtual TPM, where nothing names the paravisor or firmware that made it: any guest can sign
  runtime data with a TPM key of its own making;
- RTMRs of a TDX machine without MRTD, PCRs from 16 on of a Nitro enclave, registers from 8 on of a TPM;
- what the host chose: host data, configuration identifiers, family and image identifiers;
- registers 11 to 13 of a TPM: a measured start extends them, and its log can be withheld.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Kind

__all__ = ["LAUNCH", "unanchored"]

_SNP: Final = frozenset({"measurement", "id_key_digest", "author_key_digest"})
LAUNCH: Final[Mapping[Kind, frozenset[str]]] = {
    "snp": _SNP,
    "azure-snp-vtpm": _SNP,
    "tdx": frozenset({"mrtd"}),
    "azure-tdx-vtpm": frozenset({"mrtd"}),
    "sgx": frozenset({"mrenclave", "mrsigner"}),
    "tpm": frozenset(f"pcr{index}" for index in range(8)),
    "nitro": frozenset({"pcr0", "pcr1", "pcr2", "pcr8", "signing_certificate"}),
}
"""By kind, the values of which a reference must name one."""
_OWN: Final = frozenset({"pcr11", "pcr12", "pcr13"})
_WITH_TPM: Final = frozenset({"tpm", "azure-snp-vtpm", "azure-tdx-vtpm"})


def unanchored(claims: Claims, names: Collection[str], signers: Collection[str]) -> str:
    """Return why values that match may be the judged software's own word; empty where they are not.

    Args:
        claims: of the evidence.
        names: of the values that a reference names.
        signers: names of signers that are asked for beside it.
    """
    launch = LAUNCH.get(claims.kind, frozenset())
    if not launch & {*names, *signers}:
        return f"nothing that was measured before the software ran; name one of {', '.join(sorted(launch))}"
    if claims.kind in _WITH_TPM and (own := sorted(_OWN & set(names))):
        return f"{', '.join(own)}, which a measured start extends by its own word"
    return ""
