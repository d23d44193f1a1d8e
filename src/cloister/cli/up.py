"""`cloister up`: a whole network on this machine, as processes: the quickest way to see it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption
from cloister.cli.beforehand import require_grants, require_walls
from cloister.cli.common import JsonOption, say
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.learning import Plan

_STOP_SECONDS = 15.0
_LEAVE_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_DECLINED = ": takes no part: "


def up(
    plan: Annotated[Path, typer.Argument(help="The plan, as `study init` writes one.")],
    site: Annotated[
        list[Path], typer.Option("--site", help="Home folder of a site on this machine; repeat for each.")
    ],
    held_out: Annotated[
        str | None, typer.Option(help="Dataset in every vault to evaluate on; shown only for public rows.")
    ] = None,
    allow_user_code: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Allow this Python file, whose module the plan trains."),
    ] = None,
    base: BaseOption = None,
    worker: WorkerOption = Where.SANDBOXED,
    as_json: JsonOption = False,
) -> None:
    """Start a NATS server with TLS and accounts, this home as the hub, and the sites, each a process.

    Everything is as between organisations, except that one machine and one passphrase hold it all. Each
    site's policy is asked; where it says "ask", running this command is the owner's yes to this plan.
    """
    from cloister.crypto import Identity, ScryptCost
    from cloister.learning import load_plan
    from cloister.runtime.nats import LocalServer

    agreed = load_plan(plan)
    homes = {Identity.read_public(home / "identity.json").name: home for home in site}
    missing = [entry.name for entry in agreed.sites if entry.name not in homes]
    if missing:
        raise InputError(
            f"no home was given for {', '.join(missing)}", where="--site", fix="Give the home of every site"
        )
    require_walls(agreed, sandboxed=worker is Where.SANDBOXED)
    common.passphrase()  # asked for once; the processes get it as a file only they can read
    hub = common.load_identity()
    for home in homes.values():
        owner = Identity.load(home / "identity.json", common.passphrase())
        require_grants(
            home, owner, agreed, sandboxed=worker is Where.SANDBOXED, held_out=held_out, plan_file=plan
        )
    _approve(agreed, homes)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-up-")))
        secret = _passphrase_file(_in_memory(stack) or scratch)
        names = list(homes)
        server = stack.enter_context(
            LocalServer(
                scratch / "server", hub.name, names, passphrase=common.passphrase(), cost=ScryptCost()
            )
        )
        say(f"A NATS server with TLS listens on {server.urls[0]}, for this machine alone.")
        running = _Running(secret, server.urls[0], scratch)
        stack.callback(running.stop)
        extra = [] if allow_user_code is None else ["--allow-user-code", str(allow_user_code.absolute())]
        extra += [] if base is None else ["--base", str(base.absolute())]
        extra += [] if is_sandboxed(worker) else ["--worker", Where.INSIDE.value]
        held = [] if held_out is None else ["--held-out", held_out]
        for name, home in homes.items():
            network = ["--network", str(server.folder / "parties" / name)]
            running.start(home, ["site", *network, "--once", "--hub", hub.name, *held, *extra])
        schema = _schema_file(agreed, homes, scratch)
        shown = ["--json"] if as_json else []
        network = ["--network", str(server.folder / "parties" / hub.name)]
        acting = running.start(
            common.home(), ["hub", str(plan), *network, "--schema", schema, *extra, *shown], hub=True
        )
        code = running.wait(acting)
    if code != 0:
        raise typer.Exit(code)


def _approve(plan: Plan, homes: dict[str, Path]) -> None:
    """Enter the owner's yes in every home that would ask."""
    from cloister.crypto import Identity
    from cloister.runtime.approvals import Approvals

    own = Identity.read_public(common.identity_path())
    for home in homes.values():
        identity = Identity.load(home / "identity.json", common.passphrase())
        approvals = Approvals(home / "approvals", identity.public)
        if approvals.state(plan.digest) is None:
            approvals.request(plan, own, ["`cloister up` was started by the owner"])
        if approvals.state(plan.digest) == "pending":
            approvals.approve(plan.digest.hex(), identity)


def _in_memory(stack: ExitStack) -> Path | None:
    """Return a folder for the passphrase that no kill leaves on the disk; None where the system has none."""
    from cloister.runtime.journal.volatile import volatile_folder, why_not_volatile

    place = volatile_folder()
    if place is None or why_not_volatile(place) is not None:
        say("There is no place in memory (tmpfs): the passphrase is in a temporary file until the end.")
        return None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="up-", dir=place)))


def _passphrase_file(folder: Path) -> Path:
    path = folder / "passphrase"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(common.passphrase())
    return path


def _schema_file(plan: Plan, homes: dict[str, Path], folder: Path) -> str:
    """Write the public schema that the plan names, from the first site's manifest."""
    import msgspec

    from cloister.files import write_atomic
    from cloister.learning.toml import write_toml

    entry = plan.sites[0]
    _, manifest = common.member(homes[entry.name], entry.dataset)
    path = folder / "schema.toml"
    write_atomic(path, write_toml(msgspec.to_builtins(manifest.schema)).encode())
    return str(path)


class _Words:
    """What a process says. Of a site people see what keeps it from taking part; of the hub all but that, for
    the site has said it already, and in full."""

    def __init__(self, path: Path, site: str | None) -> None:
        self._path, self._site, self._read = path, site, 0

    def tell(self, *, ended: bool = False) -> None:
        """Say what is new and matters; a line that is not whole yet, when the process has ended."""
        lines = self._path.read_text(errors="replace").splitlines(keepends=True)
        if lines and not ended and not lines[-1].endswith("\n"):
            lines.pop()
        for line in lines[self._read :]:
            if self._site is None and _DECLINED not in line:
                say(line.rstrip())
            elif self._site is not None and ("Refused" in line or "Stopped" in line):
                say(f"{self._site}: {line.rstrip()}")
        self._read = len(lines)


class _Running:
    """The processes of one `up`.

    Args:
        secret: file with the passphrase.
        url: of the server.
        scratch: a folder that goes with the run.
    """

    def __init__(self, secret: Path, url: str, scratch: Path) -> None:
        self._secret, self._url, self._scratch = secret, url, scratch
        self._words: list[_Words] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, home: Path, arguments: Sequence[str], *, hub: bool = False) -> subprocess.Popen[bytes]:
        """Start a command in a home; the hub's result goes where ours goes, a site's nowhere."""
        environment = os.environ | {
            "CLOISTER_HOME": str(home.absolute()),
            "CLOISTER_PASSPHRASE_FILE": str(self._secret),
            "OMP_NUM_THREADS": "1",
        }
        with ExitStack() as opened:  # the process has its own copy
            process = subprocess.Popen(
                [sys.executable, "-m", "cloister", *arguments, "--nats", self._url],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if hub else subprocess.DEVNULL,
                stderr=opened.enter_context(self._words_of(None if hub else home.name)),
            )
        self._processes.append(process)
        return process

    def _words_of(self, site: str | None) -> IO[bytes]:
        """Return where messages go, of a site or the hub; from there they are shown."""
        words = (self._scratch / f"{len(self._words)}.log").open("ab")
        self._words.append(_Words(Path(words.name), site))
        return words

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code of the hub, once sites had time to end; meanwhile say what it says, and what
        sites refuse."""
        while process.poll() is None:
            time.sleep(_LOOK_SECONDS)
            self._tell()
        self._tell()
        # a site that refused does not end: it waits for a better invitation
        self._finish(_STOP_SECONDS if process.returncode == 0 else _LEAVE_SECONDS)
        self._tell(ended=True)
        return process.returncode

    def _tell(self, *, ended: bool = False) -> None:
        for words in self._words:
            words.tell(ended=ended)

    def _finish(self, seconds: float) -> None:
        """Let the sites end by themselves, within so many seconds for all of them together."""
        until = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return

    def stop(self) -> None:
        """End whatever still runs, by its process id."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
