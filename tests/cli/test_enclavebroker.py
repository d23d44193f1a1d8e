from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE
from tests.contracts.key_service import KeyServiceContract
from tests.enclave.broker.world import Home, InsecureAttesterDouble
from tests.vault.world import PURPOSE, SCHEMA, rows

from cloister.cli import main
from cloister.crypto import Identity, sha256
from cloister.enclave.broker import BrokerKeys, SocketLink, Worker, opening
from cloister.enclave.broker.store import Store
from cloister.errors import PolicyRefused
from cloister.types import KeyService
from cloister.vault import Catalog, LocalKeystore, SplitKeys
from cloister.vault.handover import open_handed

PLAN = "ab" * 32
ADD = ("vault", "add", "rows.csv", "--name", "heart", "--schema", "schema.toml", "--purpose", PURPOSE)


@pytest.fixture
def home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ann's home, with a keystore and a broker that open fast."""
    create = Store.create.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        opening.Store, "create", classmethod(lambda cls, *args, cost=None: create(cls, *args, cost=CHEAP))
    )
    monkeypatch.setitem(main.COMMANDS, "broker", main.Entry("enclavebroker", "app", "Keys.", "Enclave"))
    LocalKeystore.initialise(homes / "ann" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    Path("schema.toml").write_text(SCHEMA)
    rows(Path("rows.csv"), 30)
    return homes / "ann"


_SERVE = """
import sys
from tests.enclave.broker.world import InsecureAppraisalDouble
from cloister.cli import brokerserve, main
if "--double" in sys.argv:
    sys.argv.remove("--double")
    brokerserve.policy_in_force = lambda *_: (InsecureAppraisalDouble(), "00" * 32, "A test double appraises.")
main.COMMANDS["broker"] = main.Entry("enclavebroker", "app", "Keys.", "Enclave")
sys.exit(main.run(["broker", "serve", *sys.argv[1:]]))
"""


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `broker serve` as a process of the present home."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert "answers at" in line or line.startswith("{"), process.stderr.read()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        process.stdout.close()
        process.stderr.close()


def test_a_worked_session(home: Path, cloister: Command) -> None:
    """Served, a dataset added, granted, opened by an attested worker alone, logged, revoked, removed."""
    cloister("broker", "add", "model.first")
    socket = home / "broker" / "broker.sock"
    with serving("--double"):
        added = cloister(*ADD, "--broker", socket)
        assert (added.code, added.out) == (0, "heart: 30 rows stored.\n")
        granted = cloister("broker", "grant", "heart", "--plan", PLAN, "--json")
        assert granted.code == 0
        assert granted.json["wanted"]["purpose"] == PURPOSE
        verified = cloister("vault", "verify", "heart")
        assert verified.code == 3
        assert "checks 1 to 3 hold" in verified.err
        assert "attested workers alone" in verified.err
        exported = cloister("vault", "export", "heart", "--out", "out.csv")
        assert exported.code == 3
        assert "attested workers alone" in exported.err

        owner = Identity.read_public(home / "identity.json")
        catalog = Catalog(home / "vault", owner)
        envelope, kek_id = catalog.envelope("heart"), catalog.manifest("heart").kek_id
        digest = sha256(envelope).hex()
        good, bad = InsecureAttesterDouble(), InsecureAttesterDouble("bb" * 32)
        for attester in (bad, good):
            party = Worker(attester, manifest=digest, plan=PLAN, purpose=PURPOSE)
            keys = BrokerKeys(lambda: SocketLink(socket), owner, worker=party)
            handed = open_handed(
                catalog.folder("heart"),
                envelope,
                owner,
                purpose=PURPOSE,
                data_key=lambda wrapped, keys=keys: keys.unwrap(kek_id, wrapped),
            )
            with handed as dataset:
                if attester is bad:
                    with pytest.raises(PolicyRefused, match="none of the accepted images"):
                        dataset.table()
                else:
                    assert dataset.table().num_rows == 30
            keys.close()

        listed = cloister("broker", "ls")
        assert "1 of 1 used, over" in listed.out
        told = cloister("broker", "log")
        assert "REFUSED" in told.out
        assert "not hardware-protected" in told.out
        assert f"released  1 key of {kek_id}" in told.out
        assert "entries, root" in told.out
        assert cloister("broker", "revoke", granted.json["id"]).code == 0
        removed = cloister("vault", "rm", "heart", "--yes")
        assert removed.code == 0
        assert "broker's copy of the key was destroyed" in removed.out
        kinds = [
            entry["entry"] for entry in cloister("broker", "log", "--json", "--last", "999").json["entries"]
        ]
        assert kinds[-2:] == ["revoked", "destroyed"]


def test_a_served_broker_leaves_no_core_file(home: Path) -> None:
    with serving("--double") as process:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]


def test_without_a_server_the_owner_opens_the_broker_itself(home: Path, cloister: Command) -> None:
    assert cloister("broker", "add", "model.first").code == 0
    granted = cloister(
        "broker", "grant", "model.first", "--manifest", "cd" * 32, "--purpose", "scoring", "--uses", "3"
    )
    assert granted.code == 0
    assert "for 'scoring', no plan, 3 uses until" in granted.out
    facts = cloister("broker", "ls", "--json").json
    assert [kek["kek_id"] for kek in facts["keks"]] == ["model.first"]
    assert facts["permissions"][0]["used"] == 0
    ended = cloister("broker", "revoke", facts["permissions"][0]["permission"]["id"], "--json")
    assert ended.json["revoked"] is True
    assert "revoked" in cloister("broker", "ls").out
    assert cloister("broker", "log").out.count("\n") == 4


def test_by_default_only_hardware_is_accepted(home: Path, cloister: Command) -> None:
    with serving("--json", "--shared") as process:
        assert process.stdout is not None
        assert oct((home / "broker" / "broker.sock").stat().st_mode & 0o777) == "0o666"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("grant", "nothing"), "there is no dataset"),
        (("grant", "m", "--manifest", "xyz", "--purpose", "p"), "64 hexadecimal"),
        (("grant", "m", "--manifest", "cd" * 32), "--purpose"),
        (("grant", "m", "--manifest", "cd" * 32, "--purpose", "p"), "no KEK of this id"),
        (("grant", "m", "--manifest", "cd" * 32, "--purpose", "p", "--uses", "0"), "--uses"),
        (("revoke", "xyz"), "32 hexadecimal"),
        (("revoke", "ab" * 16), "no such grant"),
        (("add", "A b"), "not allowed"),
        (("log",), "no key broker's log"),
        (("ls", "--socket", "nobody.sock"), "broker serve"),
        (("ls", "--broker-identity", "nobody"), "nobody"),
    ],
)
def test_bad_input_gets_one_sentence(
    home: Path, cloister: Command, arguments: tuple[str, ...], says: str
) -> None:
    ended = cloister("broker", *arguments)
    assert ended.code == 2
    assert says in ended.err
    assert ended.out == ""


def test_a_broker_that_does_not_answer_stores_nothing(home: Path, cloister: Command) -> None:
    ended = cloister(*ADD, "--broker", "nobody.sock")
    assert ended.code == 2
    assert "broker serve" in ended.err
    assert cloister("vault", "ls").out == "The vault is empty.\n"
    assert cloister(*ADD).code == 0


def test_a_broker_of_somebody_else_is_not_taken_for_ones_own(
    home: Path, homes: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.homes import be

    be(monkeypatch, homes, "ben")
    with serving():
        be(monkeypatch, homes, "ann")
        ended = cloister(*ADD, "--broker", homes / "ben" / "broker" / "broker.sock")
        assert ended.code == 1
        assert "another key broker" in ended.err
        ended = cloister(
            *ADD, "--broker", homes / "ben" / "broker" / "broker.sock", "--broker-identity", "ben"
        )
        assert ended.code == 3
        assert "--owner" in ended.err
        be(monkeypatch, homes, "ben")
    with serving("--owner", "ann"):
        be(monkeypatch, homes, "ann")
        ended = cloister(
            *ADD, "--broker", homes / "ben" / "broker" / "broker.sock", "--broker-identity", "ben"
        )
        assert ended.code == 0
        be(monkeypatch, homes, "ben")


def test_after_new_keys_the_broker_still_obeys(home: Path, cloister: Command) -> None:
    cloister("broker", "add", "model.first")
    assert cloister("keys", "rotate").code == 0
    assert "model.first" in cloister("broker", "ls").out
    assert cloister("broker", "add", "model.second").code == 0


def test_datasets_in_the_keystore_stay_there(home: Path, cloister: Command) -> None:
    assert cloister(*ADD).code == 0
    with serving():
        ended = cloister(
            *[each if each != "heart" else "second" for each in ADD],
            "--broker",
            home / "broker" / "broker.sock",
        )
        assert ended.code == 0
        assert cloister("vault", "verify", "heart").code == 0
        assert cloister("vault", "verify", "second").code == 3
        assert cloister("vault", "rm", "heart", "--yes").code == 0


@pytest.mark.skipif(Path("/dev/tpmrm0").exists(), reason="this machine has a TPM")
def test_without_a_tpm_there_is_no_counting_in_one(home: Path, cloister: Command) -> None:
    ended = cloister("broker", "serve", "--tpm")
    assert ended.code == 2
    assert "TPM" in ended.err
    assert ended.err.count("\n") == 1


def test_a_store_that_was_altered_is_not_served(home: Path, cloister: Command) -> None:
    cloister("broker", "add", "model.first")
    (home / "broker" / "broker.log").unlink()
    for command in (("serve",), ("add", "model.second"), ("ls",)):
        ended = cloister("broker", *command)
        assert ended.code == 1
        assert "has lost its log" in ended.err


def test_an_unsigned_or_contradictory_policy_is_not_served(home: Path, cloister: Command) -> None:
    Path("p.toml").write_text("allow_software_tee = true\nkinds = ['snp']\n")
    assert "software is allowed" in cloister("broker", "serve", "--policy", "p.toml").err
    (home / "policy").mkdir(exist_ok=True)
    (home / "policy" / "enclave.toml").write_text("allow_software_tee = true\n")
    ended = cloister("broker", "serve")
    assert ended.code == 2
    assert "sign" in ended.err


class TestSplitKeys(KeyServiceContract):
    """Keys of the contract go to the keystore; those of datasets, to the broker, have tests of their own."""

    def make(self, folder: Path) -> KeyService:
        local = LocalKeystore.initialise(folder / "keystore.json", PASSPHRASE, cost=CHEAP)
        self.broker = Home(folder / "broker")
        return SplitKeys(local, self.broker.owner(), new=True)

    @pytest.fixture(autouse=True)
    def _close(self) -> Iterator[None]:
        yield
        self.broker.close()
