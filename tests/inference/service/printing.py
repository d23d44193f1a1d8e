"""A released module whose code prints whatever it sees. Importable, not collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.inference.modules import CODE, make_module

from cloister.inference.service import TableModel

PRINTS = b"""
        import logging, os, sys, warnings
        print("canary", x.tolist(), flush=True)
        sys.stderr.write(f"canary {x.tolist()}\\n")
        sys.__stdout__.write("canary")
        os.write(1, b"canary")
        os.write(2, b"canary")
        logging.getLogger("model").error("canary %s", x)
        warnings.warn(f"canary {x}")
"""


def printing_model(scratch: Path) -> tuple[TableModel, dict[str, Any]]:
    """Return it, and a row it takes."""
    code = CODE.replace(b"    def forward(self, x):\n", b"    def forward(self, x):\n" + PRINTS)
    artifact = make_module(code=code, scratch=scratch)
    return TableModel(artifact, code), {"age": 54, "pain": "typical", "fluid": 1.5}
