"""Homes on disk for tests of the command line: identities, trust, and a passphrase file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from cloister.cli import common
from cloister.crypto import Identity, ScryptCost, TrustStore

PASSPHRASE = "correct horse"
CHEAP = ScryptCost(n=2**14)


def make_homes(root: Path, identities: Mapping[str, Identity]) -> None:
    """Write ROOT/NAME for each identity, everybody trusting everybody, and ROOT/passphrase."""
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    (root / "passphrase").chmod(0o600)
    for name, identity in identities.items():
        identity.save(root / name / "identity.json", PASSPHRASE, cost=CHEAP)
        for other in identities.values():
            if other is not identity:
                TrustStore(root / name / "trust").add(other.public)


def be(monkeypatch: pytest.MonkeyPatch, root: Path, name: str) -> None:
    """From now on the command line is that of `name`."""
    monkeypatch.setenv("CLOISTER_HOME", str(root / name))
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(root / "passphrase"))
    common.passphrase.cache_clear()


def tampered(release: Path, target: Path, name: str) -> Path:
    """Copy a release to `target` with one bit of one file changed."""
    shutil.copytree(release, target, dirs_exist_ok=True)
    data = bytearray((target / name).read_bytes())
    data[-9] ^= 1
    (target / name).write_bytes(data)
    return target
