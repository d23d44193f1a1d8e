"""What keys the attester asks a TPM for, as it asks for them.

All are primary keys: the TPM derives them from a seed of its own and this template, so the same ones come
back whenever they are asked for and nothing has to be stored.

- EK: the low-range templates L-1 (RSA-2048) and L-2 (P-256) of the TCG's EK Credential Profile 2.5, section
  B.3, which is what makers certify; nonce and template indices are honoured where a maker wrote them.
- AK: P-256 with ECDSA and SHA-256, restricted and fixed to its TPM, in the endorsement hierarchy.
- storage key: P-256, restricted decryption, in the owner hierarchy (TCG Provisioning Guidance 2.1, 7.5.1).
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__all__ = ["EK_KINDS", "ak_template", "endorsement", "sealed_template", "storage_template"]

EK_KINDS: Final = (("EK-ECC256", 0x01C0000A), ("EK-RSA2048", 0x01C00002))
"""Names of EK templates, and the NV index of each one's certificate."""

_OWN: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda"


def ak_template(tss: Any) -> Any:
    """Return the template of the attestation key."""
    return tss.TPM2B_PUBLIC.parse("ecc:ecdsa-sha256:null", objectAttributes=f"{_OWN}|restricted|sign")


def storage_template(tss: Any) -> Any:
    """Return the template of the key that sealed data is below."""
    return tss.TPM2B_PUBLIC.parse("ecc:aes128cfb", objectAttributes=f"{_OWN}|restricted|decrypt")


def endorsement(api: Any, kind: str | None) -> tuple[bytes | None, Any]:
    """Return the EK's certificate, DER, and its template.

    Args:
        api: the ESAPI context.
        kind: the first of `EK_KINDS` that has a certificate in this TPM; None for none.
    """
    utils: Any = importlib.import_module("tpm2_pytss.utils")
    certificate, template = utils.create_ek_template(kind or EK_KINDS[0][0], utils.NVReadEK(api))
    return (None if certificate is None else bytes(certificate)), template


def sealed_template(tss: Any, policy: bytes) -> Any:
    """Return the template of sealed data that only `policy` (32 bytes) opens: no password does."""
    return tss.TPM2B_PUBLIC.parse(
        "keyedhash", objectAttributes="fixedtpm|fixedparent|noda|adminwithpolicy", authPolicy=policy
    )
