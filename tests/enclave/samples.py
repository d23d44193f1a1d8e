"""Genuine public evidence of hardware vendors: read where $CLOISTER_TEST_EVIDENCE says, never kept here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "CLOISTER_TEST_EVIDENCE"


def sample(relative: str) -> bytes:
    """Return one sample's bytes; the test is skipped where there are none.

    Args:
        relative: its path below the folder of samples, such as "snp/coco_test-report.bin".
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"${VARIABLE} names no folder of evidence samples")
    path = Path(folder) / relative
    if not path.is_file():
        pytest.skip(f"${VARIABLE} has no {relative}")
    return path.read_bytes()
