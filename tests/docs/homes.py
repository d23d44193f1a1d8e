"""Make the homes that a page begins with: `python -m tests.docs.homes`, in an empty folder.

Three sites and a hub that trust one another, as a reader has after the first steps of the page on private
studies, with a weak scrypt so that pages do not spend their time on passphrases.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloister.crypto import Identity, ScryptCost, TrustStore
from cloister.vault import Vault

NAMES = ("north", "south", "west", "hub")
CHEAP = ScryptCost(n=2**14)


def main() -> None:
    passphrase = Path(os.environ["CLOISTER_PASSPHRASE_FILE"]).read_text(encoding="utf-8").strip()
    identities = [Identity.generate(name) for name in NAMES]
    for identity in identities:
        home = Path(identity.name)
        identity.save(home / "identity.json", passphrase, cost=CHEAP)
        Vault.unlock(home / "vault", identity, passphrase, cost=CHEAP)
        for other in identities:
            if other is not identity:
                TrustStore(home / "trust").add(other.public)


if __name__ == "__main__":
    main()
