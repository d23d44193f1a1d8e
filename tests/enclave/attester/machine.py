"""Whether this machine can run a software TPM."""

from __future__ import annotations

import pytest

from cloister.enclave.attester import why_no_swtpm


def needs_swtpm() -> None:
    """Skip the test where it cannot, and say why."""
    missing = why_no_swtpm()
    if missing is not None:
        pytest.skip(f"{missing}; `make enclave-packages` installs what is missing")
