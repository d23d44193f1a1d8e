"""What the room of clients shows, and what it needs of optional packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cloister.inference.client as room
from cloister.errors import InputError


def test_every_name_is_there() -> None:
    assert sorted(name for names in room._MODULES.values() for name in names) == sorted(room.__all__)
    for name in room.__all__:
        assert getattr(room, name).__name__ == name
    assert dir(room) == sorted(room.__all__)
    with pytest.raises(AttributeError):
        room.Nothing  # noqa: B018


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("httpx2", "httpcore2", "uvicorn", "starlette"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from cloister.inference.client import Verifier, ReceiptStore, check_receipts
from cloister.errors import InputError
import cloister
for get in (lambda: cloister.PrivateClient, lambda: __import__("cloister.inference.client", fromlist=["Relay"]).Relay):
    try:
        get()
    except InputError as error:
        print(error)
from cloister.cli.main import run
print([run(command) for command in (["proxy", "https://x"], ["ask", "https://x", "hi"], ["relay", "https://x"])])
"""


def test_without_the_extra_one_is_told_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.count("Install cloister[serve]") == 2
    assert done.stdout.endswith("[2, 2, 2]\n")
    assert done.stderr.count("Install cloister[serve]") == 3


def test_importing_the_room_imports_no_client() -> None:
    code = "import sys, cloister.inference.client as c; c.Verifier; print('httpx2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(room.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError):
        room.__getattr__("PrivateClient")
    assert InputError.exit_code == 2
