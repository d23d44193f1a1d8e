"""How the command line is found, and how it ends."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from tests.cli.conftest import Command

from cloister import __version__
from cloister.cli import main as frame
from cloister.cli.main import COMMANDS, Entry
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PassphraseError,
    PolicyRefused,
    ProtocolError,
    StorageError,
    VerificationError,
)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Register a command `fail` that raises `raising.error`."""

    class Module:
        error: BaseException = RuntimeError()

        @classmethod
        def fail(cls) -> None:
            """Fail."""
            raise cls.error

    monkeypatch.setitem(sys.modules, "cloister.cli.failing", Module)
    monkeypatch.setitem(COMMANDS, "fail", Entry("failing", "fail", "Fail.", "Start"))
    return Module  # type: ignore[return-value]


def test_the_overview_lists_every_command(cloister: Command) -> None:
    ending = cloister("--help")
    assert ending.code == 0
    assert ending.err == ""
    for name, entry in COMMANDS.items():
        assert f" {name} " in ending.out
        assert entry.help in " ".join(ending.out.replace("│", " ").split())


def test_the_overview_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from cloister.cli.main import run\n"
        "code = run(['--help'])\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code_of_help, modules = json.loads(done.stderr)
    assert code_of_help == 0
    heavy = {
        "numpy",
        "pyarrow",
        "cryptography",
        "sklearn",
        "scipy",
        "matplotlib",
        "msgspec",
        "safetensors",
        "asyncio",
    }
    assert not heavy & set(modules)
    assert not {name for name in modules if name.startswith("cloister.") and "cli" not in name} - {
        "cloister.errors",
        "cloister.files",
        "cloister.text",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_it_is_said_to_be(name: str, cloister: Command) -> None:
    entry = COMMANDS[name]
    assert hasattr(importlib.import_module(f"cloister.cli.{entry.module}"), entry.attribute)
    ending = cloister(name, "--help")
    assert ending.code == 0
    assert f"cloister {name}" in ending.out
    assert "install-completion" not in ending.out


def test_the_version(cloister: Command) -> None:
    assert cloister("--version").out == f"cloister {__version__}\n"


def test_without_a_command_there_is_help(cloister: Command) -> None:
    for arguments in ((), ("keys",)):
        ending = cloister(*arguments)
        assert ending.code == 2
        assert "Usage" in ending.out + ending.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sael",), "No such command 'sael'"),
        (("--nonsense",), "No such option"),
        (("keys", "nonsense"), "No such command 'nonsense'"),
        (("keys", "exprt"), "Did you mean 'export'? Run"),
        (("seal",), "Missing argument"),
        (("seal", "file"), "Missing option"),
        (("hash", "file", "--nonsense"), "No such option"),
    ],
)
def test_usage_errors_are_one_sentence(arguments: tuple[str, ...], sentence: str, cloister: Command) -> None:
    ending = cloister(*arguments)
    assert ending.code == 2
    assert ending.out == ""
    assert sentence in ending.err
    assert "--help`" in ending.err
    assert ending.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CloisterError("what", where="where", fix="Do this"), 2),
        (PassphraseError("what", where="where", fix="Do this"), 2),
        (StorageError("what", where="where", fix="Do this"), 2),
        (IntegrityError("what", where="where", fix="Do this"), 1),
        (VerificationError("what", where="where", fix="Do this"), 1),
        (PolicyRefused("what", where="where", fix="Do this"), 3),
    ],
)
def test_each_error_has_its_code(error: CloisterError, code: int, raising: type, cloister: Command) -> None:
    raising.error = error
    ending = cloister("fail")
    assert (ending.code, ending.out, ending.err) == (code, "", "what (where). Do this.\n")


def test_a_message_in_several_lines_becomes_one(raising: type, cloister: Command) -> None:
    raising.error = ProtocolError("one\n  two", peer="hub")
    assert cloister("fail").err == "one two (from hub).\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption_is_said_in_a_sentence(
    error: BaseException, raising: type, cloister: Command
) -> None:
    raising.error = error
    ending = cloister("fail")
    assert ending.code == 130
    assert ending.err == "Interrupted; nothing was left half-written.\n"


def test_a_commands_own_exit_code_is_kept(raising: type, cloister: Command) -> None:
    raising.error = typer.Exit(1)
    assert (cloister("fail").code, cloister("fail").err) == (1, "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/file"),
            "No space left on device (/data/file). Free space",
        ),
        (OSError(errno.EACCES, "Permission denied", "/data"), "Permission denied (/data). Check the path"),
        (OSError("bare"), "the system refused: OSError"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_the_systems_refusals_are_sentences(
    error: Exception, sentence: str, raising: type, cloister: Command
) -> None:
    raising.error = error
    ending = cloister("fail")
    assert ending.code == 2
    assert sentence in ending.err
    assert ending.err.count("\n") == 1


def test_what_a_partner_said_is_shown_and_not_obeyed(raising: type, cloister: Command) -> None:
    raising.error = InputError("every site refuses; north: \x1b]0;owned\x07 \x9b2J 你好")
    ending = cloister("fail")
    assert ending.err.startswith("every site refuses; north: ?]0;owned? ?2J 你好")


def test_an_unexpected_error_shows_its_place_and_not_its_text(
    raising: type, cloister: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    raising.error = ZeroDivisionError("a patient's value")
    ending = cloister("fail")
    assert ending.code == 2
    assert "ZeroDivisionError at " in ending.err
    assert "patient" not in ending.err
    assert ending.err.count("\n") == 1
    monkeypatch.setenv("CLOISTER_DEBUG", "1")
    assert frame.run(["fail"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from cloister.cli.main import main; sys.argv[1:] = ['--help']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_process_with_130(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of a hash of an endless file; SIGTERM does the same."""
    fifo = tmp_path / "endless"
    os.mkfifo(fifo)
    code = f"import sys; from cloister.cli.main import main; sys.argv[1:] = ['hash', {str(fifo)!r}]; main()"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    with fifo.open("wb") as pipe:  # opened: the child is reading
        pipe.write(b"x")
        pipe.flush()
        time.sleep(0.2)
        child.send_signal(number)
        assert child.wait(30) == 130
    assert child.stderr is not None
    assert child.stderr.read() == "Interrupted; nothing was left half-written.\n"
    child.stderr.close()


@pytest.mark.parametrize("moment", ["cloister.cli.common", "cloister.cli.main"])
def test_ctrl_c_while_the_commands_are_imported_is_a_sentence(moment: str) -> None:
    code = (
        "import signal, sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {moment!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from cloister.cli.start import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted; nothing was left half-written.\n")


def test_a_second_ctrl_c_at_the_end_changes_nothing() -> None:
    """One in the command, one while the process clears up after it."""
    code = (
        "import signal, sys\n"
        "from cloister.cli import common, main, start\n"
        "press = lambda *_: signal.raise_signal(signal.SIGINT)\n"
        "common.passphrase.cache_clear = press\n"
        "import atexit; atexit.register(press)\n"
        "main.typer.main.get_command = press\n"
        "start.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert set(done.stderr.splitlines()) == {"Interrupted; nothing was left half-written."}


def test_a_closed_standard_output_is_said() -> None:
    code = "import sys; sys.stdout = None; sys.argv[1:] = ['--version']; from cloister.cli.start import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    hashing = code.replace("['--version']", f"['hash', {__file__!r}]")
    done = subprocess.run([sys.executable, "-c", hashing], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Standard output is closed")
    assert done.stderr.count("\n") == 1
