"""The page on three organisations, typed as it stands: each party a home of its own, server, hub and sites
processes of their own on loopback."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.markdown import ROOT, Block, Page, shell_text

from cloister.crypto import Identity
from cloister.learning import load_plan

PAGE = Page(ROOT / "docs" / "deploy" / "three-organisations.md")
PARTIES = ("north", "south", "west", "hub", "broker")
SITES = PARTIES[:3]
PATIENCE = 180.0  # machines that test are busy


class World:
    """The machines of the page: one folder, as if all that is sent had arrived, and a home for each party."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.work.mkdir(parents=True)
        secret = root / "passphrase"
        secret.write_text("correct horse battery staple\n")
        secret.chmod(0o600)
        self.secret = secret
        self.operator = ""
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def environment(self, name: str) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(self.root),
            "LANG": "C.UTF-8",
            "CLOISTER_HOME": str(self.root / name),
            "CLOISTER_PASSPHRASE_FILE": str(self.secret),
            "XDG_RUNTIME_DIR": self.volatile(name),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def volatile(self, name: str) -> str:
        """A runtime folder for each party, as each machine has one: in memory where there is such a place."""
        shared = Path("/dev/shm")
        base = shared / f"cloister-docs-{os.getpid()}" if shared.is_dir() else self.root / "run"
        (base / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(base / name)

    def filled(self, script: str) -> str:
        """Put in what readers put in: fingerprints, the plan's digest, the server's address."""
        plan = self.work / "plan.toml"
        if plan.exists():
            script = script.replace("4f1c09aa", load_plan(plan).digest.hex()[:8])
        script = script.replace("fingerprint-of-broker", self.operator)
        script = re.sub(r"fingerprint-of-(\w+)", lambda found: self.fingerprint(found[1]), script)
        script = script.replace("--host broker.example", f"--host 127.0.0.1 --port {self.port}")
        return script.replace("broker.example:4222", f"127.0.0.1:{self.port}")

    def fingerprint(self, name: str) -> str:
        return Identity.read_public(self.root / name / "identity.json").fingerprint

    def type(self, name: str, script: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{self.filled(script)}"],  # noqa: S607
            cwd=self.work,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if found := re.search(r"operator's fingerprint over another channel: ([0-9a-f]+)", done.stdout):
            self.operator = found[1]
        return done

    def start(self, name: str, script: str) -> None:
        *before, last = self.filled(script).strip().rsplit("&&", 1)
        command = " && ".join([*before, f"exec {last.strip()}"])
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                ["bash", "-c", command],  # noqa: S607
                cwd=self.work,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return f"--- {name}\n{path.read_text(errors='replace')[-3000:]}" if path.exists() else ""

    def story(self) -> str:
        return "\n".join(self.said(name) for name in PARTIES)

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "world")
    rows(made.work)
    yield made
    made.stop()
    shutil.rmtree(Path(made.volatile("hub")).parent)


def rows(folder: Path) -> None:
    drawn = random.Random(1)  # noqa: S311  # rows for a test
    for site, count in zip(SITES, (1600, 1200, 800), strict=True):
        with (folder / f"{site}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["customer_id", "age", "income", "loans", "housing", "defaulted"])
            for number in range(count):
                age, loans = drawn.randint(18, 80), drawn.randint(0, 8)
                income, housing = round(drawn.uniform(15, 120), 1), drawn.choice(["rent", "own", "family"])
                risk = 0.5 * loans - 0.05 * income + (housing == "rent") + drawn.gauss(0, 0.7)
                out.writerow([f"{site}-{number}", age, income, loans, housing, int(risk > 0)])


def scripts(block: Block) -> Iterator[tuple[str, str]]:
    """Who types a block, and what: the first's text as it stands, then with the names exchanged."""
    first, _, others = block.argument.partition(" likewise ")
    text = shell_text(block)
    yield first, text
    for other in others.split():
        swap = {first: other, other: first}
        pattern = rf"\b({first}|{other})\b"
        if block.directive == "background":  # who runs it changes, whom it names does not
            yield other, text
        else:
            yield other, re.sub(pattern, lambda found, swap=swap: swap[found[1]], text)


def follow(world: World, block: Block) -> None:
    place = f"{PAGE.name}:{block.line}"
    if block.directive == "file":
        (world.work / block.argument).write_text(block.text)
    elif block.directive == "background":
        for name, script in scripts(block):
            world.start(name, script)
            time.sleep(0.5)  # a server listens by then; the order of the others does not matter
    elif block.directive in ("as", "until"):
        for name, script in scripts(block):
            until = time.monotonic() + PATIENCE
            while (done := world.type(name, script)).returncode:
                assert block.directive == "until", f"{place} at {name}\n{done.stderr}\n{world.story()}"
                assert time.monotonic() < until, f"{place} at {name}\n{done.stderr}\n{world.story()}"
                time.sleep(0.3)
            assert "Traceback" not in done.stderr


def test_every_step_that_can_be_run_is_run() -> None:
    said = [block.directive for block in PAGE.blocks() if block.language == "console"]
    assert said.count("as") >= 10
    assert said.count("background") == 3
    assert {name for block in PAGE.blocks() for name, _ in _named(block)} <= set(PARTIES)


def _named(block: Block) -> Iterator[tuple[str, str]]:
    return scripts(block) if block.directive in ("as", "background", "until") else iter(())


@pytest.mark.slow
def test_the_page_can_be_typed_as_it_stands(world: World) -> None:
    if shutil.which("nats-server", path=world.environment("hub")["PATH"]) is None:
        pytest.skip("there is no nats-server here")
    for block in PAGE.blocks():
        follow(world, block)
    assert world.running["hub"].wait(PATIENCE) == 0, world.story()
    assert "10 rounds over 3 sites" in world.said("hub")
    for name in (*SITES, "hub"):
        kept = world.root / name / "studies" / "credit"
        until = time.monotonic() + 20.0  # a site keeps its study when it has heard the hub's last word
        while not (kept / "record.dsse.json").is_file():
            assert time.monotonic() < until, world.story()
            time.sleep(0.1)
    for name in SITES:
        spent = world.type(name, "cloister budget loans")
        assert "credit" in spent.stdout
        assert world.running[name].poll() is None  # and waits for the next study
    refused = world.type(
        "hub", "cloister hub plan.toml --schema schema.toml --nats tls://broker.example:4222"
    )
    assert refused.returncode == 2
    assert "kept here already" in refused.stderr
