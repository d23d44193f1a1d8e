"""Cloister: one model from rows that never leave their owners, private inference, and a signed record.

    from cloister import Identity, Party, Plan, Study, Vault

The names below are the library's face; everything else is found in the room that its name says. They are
imported on first use, so that `import cloister` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity, TrustStore
    from cloister.errors import CloisterError
    from cloister.governance import Certificate, verify_release
    from cloister.inference import Predictor
    from cloister.inference.client import PrivateClient
    from cloister.learning import Plan, load_plan
    from cloister.privacy.ledger import Cap, Ledger
    from cloister.runtime import Party, Study
    from cloister.secagg import SecureSumHub, SecureSumSite
    from cloister.vault import Schema, Vault, load_schema

__version__ = "0.1.0"

__all__ = [
    "Cap",
    "Certificate",
    "CloisterError",
    "Identity",
    "Ledger",
    "Party",
    "Plan",
    "Predictor",
    "PrivateClient",
    "PublicIdentity",
    "Schema",
    "SecureSumHub",
    "SecureSumSite",
    "Study",
    "TrustStore",
    "Vault",
    "load_plan",
    "load_schema",
    "verify_release",
]

_ROOMS = {
    "crypto": ("Identity", "PublicIdentity", "TrustStore"),
    "errors": ("CloisterError",),
    "governance": ("Certificate", "verify_release"),
    "inference": ("Predictor",),
    "inference.client": ("PrivateClient",),
    "learning": ("Plan", "load_plan"),
    "privacy.ledger": ("Cap", "Ledger"),
    "runtime": ("Party", "Study"),
    "secagg": ("SecureSumHub", "SecureSumSite"),
    "vault": ("Schema", "Vault", "load_schema"),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"cloister.{room}"), name)
    raise AttributeError(f"module 'cloister' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
