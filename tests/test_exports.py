from __future__ import annotations

import subprocess
import sys

import pytest

import cloister


def test_every_exported_name_is_there_and_no_other() -> None:
    assert sorted(name for names in cloister._ROOMS.values() for name in names) == sorted(cloister.__all__)
    for name in cloister.__all__:
        assert getattr(cloister, name).__name__ == name
    assert set(cloister.__all__) <= set(dir(cloister))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cloister.Nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cloister; print([m for m in ('numpy', 'pyarrow', 'cryptography', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
