"""Roots of trust of hardware vendors: SHA-256 of each root certificate's DER, and where it is published.

Pins only: the certificates themselves travel in a piece of evidence's endorsements, and count for nothing
unless they hash to a pin. Each mapping is what `x509.check_chain` takes as `pins`; its values are names for
people. A root that is added here is trusted by every appraisal: it needs a source that its vendor controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = [
    "AMD_ARK",
    "AWS_NITRO",
    "GCP_EK_AK",
    "INTEL_SGX",
    "NVIDIA_DEVICE",
    "NVIDIA_RIM",
]

AMD_ARK: Final[Mapping[str, str]] = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": "Turin",
}
"""AMD root keys by product; https://kdsintf.amd.com/vcek/v1/{product}/cert_chain (AMD document 57230)."""

INTEL_SGX: Final[Mapping[str, str]] = {
    "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3": "Intel SGX Root CA",
}
"""Root of SGX and TDX; https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer"""

AWS_NITRO: Final[Mapping[str, str]] = {
    "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b": "aws.nitro-enclaves",
}
"""Root G1; https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html prints this fingerprint."""

NVIDIA_DEVICE: Final[Mapping[str, str]] = {
    "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48": "NVIDIA Device Identity CA",
}
"""Root of GPU and NVSwitch identities; NVIDIA nvtrust, guest tools, verifier_device_root.pem."""

NVIDIA_RIM: Final[Mapping[str, str]] = {
    "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1": "NVIDIA CoRIM signing Root CA",
}
"""Root of reference manifests; NVIDIA nvtrust, guest tools, verifier_RIM_root.pem."""

GCP_EK_AK: Final[Mapping[str, str]] = {
    "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2": "Google Cloud EK/AK CA Root",
}
"""Root of vTPM endorsement and attestation keys; issuer URLs (pki.goog) in their certificates lead to it."""
