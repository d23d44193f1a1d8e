"""Running a Python file that somebody else wrote, where its owner has read it and says so.

In this order: 1. nothing happens unless it was allowed; 2. the file is read once; 3. the SHA-256 of these
very bytes is compared with the plan's; 4. these bytes are compiled and run, so that a file exchanged
meanwhile changes nothing; 5. the named function is taken.

The code runs in this process with the rights of whoever started it: it can read every file they can read, the
vault's keys in memory included. The hash says which code ran, not that it is harmless. Tests of the module it
makes (`probe`) catch mistakes, not malice. What the file imports is not covered by the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import nn

from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.files import read_bytes
from cloister.learning.torch.start import build_module

__all__ = ["load_factory", "load_module"]

_MOST_BYTES: Final = 1 << 20


def load_factory(path: Path, factory: str, sha256: str, allow_user_code: bool) -> Callable[[], nn.Module]:
    """Return the function `factory` of a Python file, which is run for it.

    Args:
        path: the file, UTF-8, 1 MiB at most. Files beside it cannot be imported.
        factory: name of a function in it that takes no arguments and returns a torch module.
        sha256: of the file, 64 hex digits, as the plan has it.
        allow_user_code: whether the one who runs this allows it.

    Raises:
        PolicyRefused: it was not allowed.
        InputError: the file cannot be read, does not run, or has no such function.
        IntegrityError: it is not the file that the plan names.
    """
    if not allow_user_code:
        raise PolicyRefused(
            "this model is Python code, which would run with your rights and could read whatever you can",
            where=str(path),
            fix="Read the file; if you trust it, run again with --allow-user-code",
        )
    source = read_bytes(path, limit=_MOST_BYTES, what="model's file")
    found = hashlib.sha256(source).hexdigest()
    if not hmac.compare_digest(found.encode(), sha256.lower().encode()):
        raise IntegrityError(
            f"the model's file has SHA-256 {found}, and the plan names another",
            where=str(path),
            fix="Get the file that belongs to this plan",
        )
    module = types.ModuleType(f"cloister_user_code_{found[:16]}")
    module.__file__ = str(path)
    # dataclasses and pickled names look a class's module up by its name
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - asked for, and by hash
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise InputError(
            _said("the model's file does not run", error), where=str(path), fix="Correct it"
        ) from error
    function = vars(module).get(factory)
    if not callable(function):
        raise InputError(
            "the model's file has no function of the name that the plan gives",
            where=f"{path}, factory {factory}",
            fix="Correct the name, or define it",
        )

    def make() -> nn.Module:
        try:
            made = function()
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                _said("the factory failed", error), where=f"{path}, factory {factory}", fix="Correct it"
            ) from error
        if not isinstance(made, nn.Module):
            raise InputError(
                f"the factory returned {type(made).__name__}",
                where=f"{path}, factory {factory}",
                fix="Return a torch.nn.Module",
            )
        return made

    return make


def load_module(path: Path, factory: str, sha256: str, allow_user_code: bool, *, seed: int = 0) -> nn.Module:
    """Return the module of a Python file, its random numbers taken from `seed`. Raises as `load_factory`."""
    return build_module(load_factory(path, factory, sha256, allow_user_code), seed)


def _said(what: str, error: BaseException) -> str:
    """Return what went wrong in someone's code, with the line where it has one."""
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("cloister_user_code_"):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" on line {line}" if line else ""
    return f"{what}: {type(error).__name__}{place}: {error}"
