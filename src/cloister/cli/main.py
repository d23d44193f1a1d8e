"""The `cloister` command: what there is, and how it ends.

Commands live in files of their own and are imported when they are called, so that `cloister --help` needs
neither numpy nor cryptography.

Whatever happens, the reader gets one sentence on stderr and one of these exit codes, never a traceback:

    0    done, or the verdict is yes
    1    the verdict is no
    2    usage, bad input, or the system refused
    3    refused by a policy or a budget
    130  interrupted

`CLOISTER_DEBUG=1` adds the traceback, which may show values of variables: it is for one's own machine.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from cloister import __version__
from cloister.cli import common
from cloister.cli.start import INTERRUPTED, INTERRUPTED_SENTENCE, main
from cloister.errors import CloisterError, StorageError
from cloister.text import printable, type_and_place

__all__ = ["COMMANDS", "Entry", "app", "main", "run"]


@dataclass(frozen=True)
class Entry:
    """Where a command is, and its line in the overview."""

    module: str
    attribute: str
    help: str
    panel: str


COMMANDS: Final[dict[str, Entry]] = {
    "demo": Entry("demo", "demo", "Run all seven stages on real rows and write a report.", "Start"),
    "keys": Entry("keys", "app", "Make your identity, export it, trust those of others.", "Keys and files"),
    "seal": Entry("seal", "seal", "Encrypt a file to one or more recipients.", "Keys and files"),
    "open": Entry("seal", "open_", "Open a file that was sealed to you.", "Keys and files"),
    "hash": Entry("seal", "hash_", "Hash a file, or check its hash.", "Keys and files"),
    "vault": Entry("vault", "app", "Bring rows into an encrypted vault, check and export them.", "Studies"),
    "budget": Entry(
        "budget", "budget", "What may be learned from your rows, what was, and what is left.", "Studies"
    ),
    "query": Entry("query", "query", "Ask private statistics of a dataset, or of several sites.", "Studies"),
    "study": Entry("study", "app", "Plan, check and run a study.", "Studies"),
    "hub": Entry("hub", "hub", "Run the hub of a study between organisations.", "Between organisations"),
    "site": Entry("site", "app", "Take part in studies, as your policy allows.", "Between organisations"),
    "up": Entry("up", "up", "Server, hub and sites as processes on this machine.", "Between organisations"),
    "enclave": Entry("enclave", "app", "Evidence of what runs where, and keys released to it.", "Enclaves"),
    "audit": Entry(
        "audit", "audit", "Attack a model or a study, and compare with its claim of privacy.", "Results"
    ),
    "canaries": Entry(
        "canaries", "canaries", "Make rows that an audit recognises in a finished model.", "Results"
    ),
    "predict": Entry(
        "predict", "predict", "Predict with a released model: sealed rows in, sealed answers out.", "Results"
    ),
    "he": Entry("he", "app", "Scores under encryption: the server never sees rows.", "Results"),
    "release": Entry("release", "release", "Release a study's model through its policy.", "Results"),
    "verify": Entry(
        "verify", "verify", "Verify a release offline, against your own trust anchors.", "Results"
    ),
    "model": Entry("model", "app", "Encrypt a model's folder; show and check it.", "Private inference"),
    "serve": Entry("serve", "serve", "Serve a model that nobody can listen to.", "Private inference"),
    "clients": Entry("clients", "app", "Say who may ask your services.", "Private inference"),
    "proxy": Entry(
        "proxy", "proxy", "Serve OpenAI's API here, in front of a verified service.", "Private inference"
    ),
    "ask": Entry("ask", "ask", "Ask a verified language model one question.", "Private inference"),
    "relay": Entry(
        "relay", "relay", "Forward sealed requests without saying whose they are.", "Private inference"
    ),
    "receipts": Entry("receipts", "receipts", "Check the receipts of answers.", "Private inference"),
}

# Typer brings its own copy of click in newer versions and uses the installed one in older ones.
_UsageProblem: Final = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _LazyCommand(TyperCommand):
    """A line in the overview that becomes the command when it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help, short_help=entry.help, rich_help_panel=entry.panel)
        self._entry = entry

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """Import the command and hand over to it."""
        return self._load().make_context(info_name, args, parent=parent, **extra)

    def _load(self) -> Any:
        found = getattr(importlib.import_module(f"cloister.cli.{self._entry.module}"), self._entry.attribute)
        holder = typer.Typer(add_completion=False, callback=lambda: None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=self.name)
        else:
            holder.command(self.name)(found)
        group: Any = typer.main.get_command(holder)
        return group.commands[self.name]


class _Overview(TyperGroup):
    """The group of all commands, none of them imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the line for a name, or None."""
        entry = COMMANDS.get(cmd_name)
        return _LazyCommand(cmd_name, entry) if entry else None


app = typer.Typer(cls=_Overview, add_completion=False, no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cloister {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """One model from rows that stay with their owners, private inference, and a signed record of it all."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit code."""
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context(
            "cloister", list(sys.argv[1:] if arguments is None else arguments)
        ) as context:
            command.invoke(context)
        if sys.stdout is None:  # closed by whoever started the process; print then says nothing
            return _end("Standard output is closed, so no result was shown. Send it to a file.", 2)
        sys.stdout.flush()
        return 0
    except typer.Exit as ending:
        return ending.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _end(INTERRUPTED_SENTENCE, INTERRUPTED)
    except CloisterError as error:
        return _end(str(error), error.exit_code)
    except (BrokenPipeError, SystemExit):  # the reader of stdout has gone; rich exits where print raises
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at its end
        return 2
    except OSError as error:
        return _end(str(_storage(error)), 2)
    except MemoryError:
        return _end("There is not enough memory for this; close other programs, or use a larger machine.", 2)
    except Exception as error:  # noqa: BLE001  # the last stop: users get a sentence, not a traceback
        if isinstance(error, _UsageProblem):
            return _usage(error)
        return _end(_defect(error), 2)
    finally:
        common.passphrase.cache_clear()


def _end(sentence: str, code: int) -> int:
    """Say how it ended; called while the exception is being handled."""
    if os.environ.get("CLOISTER_DEBUG") == "1":
        traceback.print_exc()
    print(printable(" ".join(sentence.split()), "?"), file=sys.stderr)  # it may quote what a partner said
    return code


def _usage(error: Any) -> int:
    """Say what is wrong with the command line; a bare group has printed its help instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2
    path = error.ctx.command_path if getattr(error, "ctx", None) else "cloister"
    sentence = error.format_message().rstrip(".")
    return _end(f"{sentence}{'' if sentence.endswith('?') else '.'} Run `{path} --help`.", 2)


def _storage(error: OSError) -> CloisterError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = (
        "Free space and run it again; nothing was left half-written"
        if full
        else "Check the path and its permissions"
    )
    return StorageError(f"the system refused: {reason}", where=str(error.filename or ""), fix=fix)


def _defect(error: Exception) -> str:
    return (
        f"Cloister met an error it did not expect ({type_and_place(error)}); nothing was released. "
        "Run it again with CLOISTER_DEBUG=1 and report what it shows."
    )
