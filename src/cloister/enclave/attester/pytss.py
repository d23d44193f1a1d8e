"""The one door to `tpm2_pytss`: imported late, silenced, and its errors put into words.

The package binds the TCG's reference stack (libtss2) and is optional; `import cloister.enclave` works without
it. libtss2 writes to stderr on its own whenever a TPM refuses something, which is often what was asked for;
that is turned off unless TSS2_LOG is set.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cloister.errors import CloisterError, InputError

__all__ = ["load", "refusal_code", "tpm_errors", "why_absent"]

_FIX = "Run `cloister enclave setup`, which installs libtss2 and tpm2-pytss, or install cloister[tpm]"


def load() -> Any:
    """Return the package.

    Raises:
        InputError: it, or the library below it, is not installed.
    """
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        raise InputError(f"nothing can speak to a TPM here: {error}", fix=_FIX) from None


def why_absent() -> str | None:
    """Return why no TPM can be spoken to, or None where one can."""
    try:
        load()
    except InputError as error:
        return error.what
    return None


def refusal_code(error: Exception) -> int:
    """Return a TPM's response code without the handle, session or parameter it is about (part 2, 6.6)."""
    return int(getattr(error, "error", 0))


@contextmanager
def tpm_errors(
    doing: str, where: str = "", refused: Callable[[int], CloisterError | None] = lambda code: None
) -> Iterator[None]:
    """Put what libtss2 raises into words.

    Args:
        doing: what is being done, after "the TPM did not".
        where: which TPM.
        refused: gives the error for a response code that has a meaning here, or None.

    Raises:
        InputError: the TPM, or the way to it, failed.
    """
    tss = load()
    try:
        yield
    except tss.TSS2_Exception as error:
        known = refused(refusal_code(error))
        raise known or InputError(
            f"the TPM did not {doing}: {error}", where=where, fix="Check that nobody else has taken it over"
        ) from None
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the TPM did not {doing}: {error}", where=where) from None
