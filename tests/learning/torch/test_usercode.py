# ruff: noqa: E402 - what follows needs torch, which may be absent
"""A Python file that a plan names runs only if allowed, and only the bytes whose hash the plan has."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from torch import nn

from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.learning.torch import load_factory, load_module, usercode

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from torch import nn

@dataclass(frozen=True)
class Shape:
    inputs: int
    outputs: int = 2

def build():
    return nn.Linear(Shape(3).inputs, Shape(3).outputs)

def number():
    return 3

def broken():
    raise ValueError("no such size")

value = 4
"""


def file(folder: Path, text: str) -> tuple[Path, str]:
    path = folder / "model.py"
    path.write_text(text, encoding="utf-8")
    return path, hashlib.sha256(text.encode()).hexdigest()


def test_it_runs_where_it_may(tmp_path: Path) -> None:
    path, digest = file(tmp_path, GOOD)
    module = load_module(path, "build", digest, True, seed=3)
    assert isinstance(module, nn.Linear)
    again = load_module(path, "build", digest.upper(), True, seed=3)
    assert torch.equal(module.weight, again.weight)
    assert isinstance(load_factory(path, "build", digest, True)(), nn.Linear)


def test_nothing_runs_unless_it_is_allowed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path, digest = file(tmp_path, f"open({str(mark)!r}, 'w').close()\ndef build(): ...")
    with pytest.raises(PolicyRefused, match=r"your rights.*--allow-user-code") as caught:
        load_factory(path, "build", digest, False)
    assert caught.value.exit_code == 3
    with pytest.raises(IntegrityError, match="the plan names another"):
        load_factory(path, "build", "0" * 64, True)
    assert not mark.exists()
    load_factory(path, "build", digest, True)
    assert mark.exists()


def test_the_bytes_that_were_hashed_are_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever exchanges the file after it was read, or before the second look that never comes, gains nothing."""
    path, digest = file(tmp_path, GOOD)
    reads = 0
    real = usercode.read_bytes

    def exchanging(*arguments: object, **named: object) -> bytes:
        nonlocal reads
        reads += 1
        found = real(*arguments, **named)
        path.write_text("raise SystemExit('the other file ran')", encoding="utf-8")
        return found

    monkeypatch.setattr(usercode, "read_bytes", exchanging)
    assert isinstance(load_module(path, "build", digest, True), nn.Linear)
    assert reads == 1
    with pytest.raises(IntegrityError):
        load_factory(path, "build", digest, True)


@pytest.mark.parametrize(
    ("text", "factory", "reason"),
    [
        (GOOD, "missing", "no function of the name"),
        (GOOD, "value", "no function of the name"),
        ("def build(:", "build", "does not run: SyntaxError on line 1"),
        ("x = 1\nraise OSError('gone')", "build", "does not run: OSError on line 2: gone"),
        ("raise SystemExit(0)", "build", "does not run: SystemExit on line 1"),
        ("import nothing_of_that_name", "build", "does not run: ModuleNotFoundError"),
        ("\0", "build", "does not run"),
    ],
)
def test_a_file_that_does_not_do_is_an_input_error(
    tmp_path: Path, text: str, factory: str, reason: str
) -> None:
    path, digest = file(tmp_path, text)
    with pytest.raises(InputError, match=reason):
        load_factory(path, factory, digest, True)


def test_a_factory_that_fails_says_where(tmp_path: Path) -> None:
    path, digest = file(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"the factory failed: ValueError on line 19: no such size"):
        load_module(path, "broken", digest, True)
    with pytest.raises(InputError, match="the factory returned int"):
        load_module(path, "number", digest, True)


def test_a_missing_or_huge_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_factory(tmp_path / "nowhere.py", "build", "0" * 64, True)
    path, digest = file(tmp_path, "#" * (usercode._MOST_BYTES + 1))
    with pytest.raises(InputError, match="larger than"):
        load_factory(path, "build", digest, True)


def test_files_beside_it_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_the_model.py").write_text("x = 1", encoding="utf-8")
    path, digest = file(tmp_path, "import neighbour_of_the_model\ndef build(): ...")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        load_factory(path, "build", digest, True)
    assert "neighbour_of_the_model" not in sys.modules
