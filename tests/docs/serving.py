"""Make what the page on private inference begins with: `python -m tests.docs.serving`, in an empty folder.

Three homes whose owners trust one another: `provider`, who has models, `clinic`, which has questions, and
`doctor`, who reads answers. A language model in `tiny`, trained in seconds to greet and to call one tool; a
release in `release`, whose parties all three trust; rows for it in `patients.csv`, with their schema.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.governance.releases import SCHEMA, make_world
from tests.inference.language.models import make_tool_model

from cloister.crypto import Identity, ScryptCost, TrustStore
from cloister.vault import Vault

NAMES = ("provider", "clinic", "doctor")
CHEAP = ScryptCost(n=2**14)
ROWS = 200


def main() -> None:
    passphrase = Path(os.environ["CLOISTER_PASSPHRASE_FILE"]).read_text(encoding="utf-8").strip()
    people = [Identity.generate(name) for name in NAMES]
    with tempfile.TemporaryDirectory() as elsewhere:
        world = make_world(Path(elsewhere))
        world.release()
        (Path(elsewhere) / "release").rename("release")
    for person in people:
        home = Path(person.name)
        person.save(home / "identity.json", passphrase, cost=CHEAP)
        Vault.unlock(home / "vault", person, passphrase, cost=CHEAP)
        for other in (*people, world.hub, *world.sites):
            if other is not person:
                TrustStore(home / "trust").add(other.public)
    make_tool_model(Path("tiny"))
    Path("schema.toml").write_bytes(SCHEMA)
    pains = ("none", "typical", "atypical")
    rows = [
        f"p{row},{18 + row % 80},{90 + row % 100}.5,{pains[row % 3]},{str(row % 2 == 0).lower()}"
        for row in range(ROWS)
    ]
    text = "\n".join(["patient,age,pressure,pain,disease", *rows])
    Path("patients.csv").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
