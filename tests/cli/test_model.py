"""`cloister model`: seal, show, verify, rm, and a grant for a sealed model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.cli.test_enclavebroker import serving
from tests.enclave.broker.world import InsecureAttesterDouble
from tests.governance.releases import World, identity, make_world

from cloister.cli.modelkeys import handed_model, model_to_serve, noted_socket
from cloister.crypto import Identity
from cloister.enclave.broker import SocketLink, opening
from cloister.enclave.broker.store import Store
from cloister.errors import PolicyRefused
from cloister.governance.folder import MODEL
from cloister.inference import ModelArtifact
from cloister.inference.models.keys import broker_data_key
from cloister.inference.models.manifest import MANIFEST_NAME, stored_name
from cloister.inference.models.sealed import opened_model
from cloister.learning.modelfiles.files import PlainFolder
from cloister.vault import LocalKeystore

CANARY = b"canary-weights-" + os.urandom(8).hex().encode()
WEIGHTS = CANARY * 100_000
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture
def home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ann's home, with a keystore and a broker that open fast, and a model's folder beside it."""
    create = Store.create.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        opening.Store, "create", classmethod(lambda cls, *args, cost=None: create(cls, *args, cost=CHEAP))
    )
    LocalKeystore.initialise(homes / "ann" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    plain = Path("Tiny-2.5B")
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(CONFIG))
    (plain / "tokenizer.json").write_text("{}")
    (plain / "README.md").write_text("not part of it")
    (plain / "model.safetensors").write_bytes(WEIGHTS)
    return homes / "ann"


def seal(cloister: Command, *more: str | Path, out: str = "sealed") -> dict[str, object]:
    ended = cloister("model", "seal", "Tiny-2.5B", "--out", out, "--json", *more)
    assert ended.code == 0, ended.err
    found: dict[str, object] = ended.json
    return found


def test_a_worked_session(home: Path, cloister: Command) -> None:
    sealed = cloister("model", "seal", "Tiny-2.5B", "--out", "sealed")
    assert sealed.code == 0
    assert "tiny-2-5b: 3 files" in sealed.out
    assert "still in the clear" in sealed.out
    shutil.rmtree("Tiny-2.5B")
    shown = cloister("model", "show", "sealed")
    assert shown.code == 0
    assert "the keystore of ann" in shown.out
    assert f"model.safetensors  {len(WEIGHTS)}" in shown.out
    assert "README" not in shown.out
    manifest = cloister("model", "show", "sealed", "--json").json["manifest"]
    assert f"manifest {manifest}" in sealed.out
    verified = cloister("model", "verify", "sealed")
    assert verified.code == 0
    assert "is whole" in verified.out
    assert cloister("model", "rm", "sealed").code == 2
    removed = cloister("model", "rm", "sealed", "--yes")
    assert removed.code == 0
    assert "model can no longer be read" in removed.out
    gone = cloister("model", "verify", "sealed")
    assert gone.code == 1
    assert "4  key             FAILS" in gone.out


def test_a_long_sealing_says_how_far_it_is(
    home: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.cli.modelprogress._TELL_SECONDS", 0.0)
    done = cloister("model", "seal", "Tiny-2.5B", "--out", "sealed")
    assert (done.code, "GB are sealed ..." in done.err) == (0, True)
    assert cloister("model", "verify", "sealed").code == 0


def test_no_canary_is_left_in_clear(home: Path, homes: Path, cloister: Command) -> None:
    """Not in the sealed folder, in the home, or in anything else that sealing, showing and checking wrote."""
    seal(cloister)
    shutil.rmtree("Tiny-2.5B")
    assert cloister("model", "verify", "sealed").code == 0
    for path in homes.rglob("*"):
        if path.is_file():
            assert CANARY not in path.read_bytes(), path


def test_what_was_sealed_is_what_a_plain_folder_is(home: Path, cloister: Command) -> None:
    facts = seal(cloister, "--name", "ada")
    assert facts["name"] == "ada"
    assert facts["digest"] == PlainFolder(Path("Tiny-2.5B")).digest
    handed, lends = model_to_serve(Path("sealed"))
    with opened_model(handed.folder, handed.envelope, handed.owner, lends.lend) as model:
        assert model.read("model.safetensors") == WEIGHTS


def test_a_home_without_a_vault_gets_a_keystore(homes: Path, home: Path, cloister: Command) -> None:
    ended = cloister("model", "seal", "Tiny-2.5B", "--out", "sealed", home=homes / "ben")
    assert ended.code == 0
    assert (homes / "ben" / "vault" / "keystore.json").exists()
    assert cloister("model", "verify", "sealed").code == 0


def test_a_changed_byte_is_named(home: Path, cloister: Command) -> None:
    seal(cloister)
    path = Path("sealed") / stored_name(1)
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    ended = cloister("model", "verify", "sealed", "--json")
    assert ended.code == 1
    assert [check["ok"] for check in ended.json["checks"]] == [True, True, False]
    assert ended.json["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("seal", "nothing", "--out", "x"), 2, "cannot read"),
        (("seal", "Tiny-2.5B", "--out", "Tiny-2.5B/inner"), 2, "within its source"),
        (("seal", "Tiny-2.5B", "--out", "."), 2, "exists"),
        (("seal", "Tiny-2.5B", "--out", "x", "--name", "A b"), 2, "not allowed"),
        (("seal", "Tiny-2.5B", "--out", "x", "--trust", "y"), 2, "for releases"),
        (("seal", "Tiny-2.5B", "--out", "x", "--broker-identity", "ann"), 2, "--broker SOCKET"),
        (("seal", "Tiny-2.5B", "--out", "x", "--broker", "nobody.sock"), 2, "broker serve"),
        (
            ("seal", "Tiny-2.5B", "--out", "x", "--broker", "b.sock", "--broker-identity", "nobody"),
            2,
            "nobody",
        ),
        (("show", "Tiny-2.5B"), 2, "no sealed model"),
        (("verify", "nothing"), 2, "no sealed model"),
        (("rm", "Tiny-2.5B", "--yes"), 2, "no sealed model"),
    ],
)
def test_bad_input_gets_one_sentence(
    home: Path, cloister: Command, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended = cloister("model", *arguments)
    assert ended.code == code
    assert says in ended.err
    assert ended.out == ""
    assert not Path("x").exists()
    assert LocalKeystore.open(home / "vault" / "keystore.json", PASSPHRASE).ids() == ()


@pytest.mark.parametrize("name", ["weights.bin", "modeling.py", "notes.txt"])
def test_a_folder_with_pickle_or_code_is_not_sealed(home: Path, cloister: Command, name: str) -> None:
    (Path("Tiny-2.5B") / name).write_bytes(b"x")
    ended = cloister("model", "seal", "Tiny-2.5B", "--out", "x")
    assert ended.code == 2
    assert name in ended.err


def test_a_sealed_model_is_not_sealed_again(home: Path, cloister: Command) -> None:
    seal(cloister)
    ended = cloister("model", "seal", "sealed", "--out", "twice")
    assert ended.code == 2
    assert "sealed already" in ended.err


def test_whose_model_it_may_be(home: Path, homes: Path, cloister: Command) -> None:
    """Somebody trusted can be shown; his key is in his keystore. A stranger's is nobody's."""
    seal(cloister)
    shown = cloister("model", "show", "sealed", home=homes / "ben")
    assert shown.code == 0
    assert "the keystore of ann" in shown.out
    closed = cloister("model", "verify", "sealed")
    assert closed.code == 3
    assert "checks 1 to 3 hold" in closed.err
    assert cloister("model", "rm", "sealed", "--yes").code == 1
    (homes / "ben" / "trust" / "ann.json").unlink()
    refused = cloister("model", "show", "sealed")
    assert refused.code == 1
    assert "sealed by nobody" in refused.err


def test_after_new_keys_ones_models_still_open(home: Path, cloister: Command) -> None:
    seal(cloister)
    assert cloister("keys", "rotate").code == 0
    assert cloister("model", "verify", "sealed").code == 0
    assert cloister("model", "rm", "sealed", "--yes").code == 0


def test_a_key_in_a_broker(home: Path, cloister: Command) -> None:
    """Sealed, granted by its folder alone, opened by an attested worker, closed to everybody else, removed."""
    socket = home / "broker" / "broker.sock"
    with serving("--double"):
        facts = seal(cloister, "--broker", socket)
        assert facts["broker"] == Identity.read_public(home / "identity.json").fingerprint
        assert "the key broker of ann" in cloister("model", "show", "sealed").out
        closed = cloister("model", "verify", "sealed")
        assert closed.code == 3
        assert "checks 1 to 3 hold" in closed.err
        assert "attested workers alone" in closed.err
        granted = cloister("enclave", "broker", "grant", "sealed", "--uses", "2", "--json")
        assert granted.code == 0
        assert granted.json["wanted"] == {
            "kek_id": facts["key"], "manifest": facts["manifest"], "plan": None, "purpose": "inference",
        }  # fmt: skip
        assert cloister("enclave", "broker", "grant", "sealed", "--purpose", "training").code == 2

        handed = handed_model(Path("sealed"))
        assert handed.broker is not None
        assert noted_socket(handed) == socket.absolute()
        for attester in (InsecureAttesterDouble("bb" * 32), InsecureAttesterDouble()):
            key = broker_data_key(
                handed.envelope, handed.owner, handed.broker, lambda: SocketLink(socket), attester
            )
            if attester.measurement.startswith("bb"):
                with pytest.raises(PolicyRefused, match="none of the accepted images"):
                    opened_model(handed.folder, handed.envelope, handed.owner, key)
            else:
                with opened_model(handed.folder, handed.envelope, handed.owner, key) as model:
                    assert model.read("model.safetensors") == WEIGHTS
        assert "1 of 2 used" in cloister("enclave", "broker", "ls").out
        removed = cloister("model", "rm", "sealed", "--yes")
        assert removed.code == 0
        assert "broker's copy of the key was destroyed" in removed.out
    assert LocalKeystore.open(home / "vault" / "keystore.json", PASSPHRASE).ids() == ()


def test_a_broker_of_somebody_else(
    home: Path, homes: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant goes where the model's folder says, to whom its manifest says, without an option."""
    socket = homes / "ben" / "broker" / "broker.sock"
    be(monkeypatch, homes, "ben")
    with serving("--double", "--owner", "ann"):
        be(monkeypatch, homes, "ann")
        refused = cloister("model", "seal", "Tiny-2.5B", "--out", "sealed", "--broker", socket)
        assert refused.code == 1
        assert "another key broker" in refused.err
        assert not Path("sealed").exists()
        seal(cloister, "--broker", socket, "--broker-identity", "ben")
        assert cloister("enclave", "broker", "grant", "sealed").code == 0
        (Path("sealed") / "broker.json").unlink()
        lost = cloister("enclave", "broker", "grant", "sealed")
        assert lost.code == 2
        assert "broker.json" in lost.err
        assert cloister("enclave", "broker", "grant", "sealed", "--socket", socket).code == 0
        (Path("sealed") / "broker.json").write_text("nonsense")
        assert cloister("enclave", "broker", "grant", "sealed").code == 2
        be(monkeypatch, homes, "ben")


def test_a_key_in_the_keystore_needs_no_grant(home: Path, cloister: Command) -> None:
    seal(cloister)
    ended = cloister("enclave", "broker", "grant", "sealed")
    assert ended.code == 2
    assert "needs no grant" in ended.err


def test_somebody_elses_model_is_not_granted(home: Path, homes: Path, cloister: Command) -> None:
    seal(cloister)
    ended = cloister("enclave", "broker", "grant", "sealed", home=homes / "ben")
    assert ended.code == 1
    assert "sealed by nobody" in ended.err


def test_a_folder_whose_manifest_was_taken_away_is_no_sealed_model(home: Path, cloister: Command) -> None:
    """So that plaintext put in its place is not served as sealed."""
    seal(cloister)
    (Path("sealed") / MANIFEST_NAME).unlink()
    assert "no sealed model" in cloister("model", "verify", "sealed").err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("release"))
    people = (world.hub, *world.sites, identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    LocalKeystore.initialise(world.root / "server" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    world.release()
    world.release("sealed", recipients=[identity("server").public], created="2026-04-01T00:00:00Z")
    return world


@pytest.mark.parametrize("release", ["release", "sealed"])
def test_a_release_is_verified_and_its_model_sealed(
    world: World, tmp_path: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    be(monkeypatch, world.root, "server")
    ended = cloister(
        "model", "seal", world.root / release, "--out", tmp_path / "out", "--name", "heart", "--json"
    )
    assert ended.code == 0, ended.err
    assert (ended.json["kind"], ended.json["name"]) == ("table", "heart")
    unnamed = cloister("model", "seal", world.root / release, "--out", tmp_path / "unnamed", "--json").json
    card = ModelArtifact.from_bytes((world.root / "release" / MODEL).read_bytes()).card
    assert unnamed["name"] == card.name
    verified = cloister("verify", world.root / release, "--json").json
    assert ended.json["release"] == verified["certificate"]
    handed, lends = model_to_serve(tmp_path / "out")
    with opened_model(handed.folder, handed.envelope, handed.owner, lends.lend) as model:
        data = model.read(MODEL)
    assert data == (world.root / "release" / MODEL).read_bytes()
    assert ModelArtifact.from_bytes(data).card.name


def test_a_release_that_does_not_verify_is_not_sealed(
    world: World, tmp_path: Path, cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, world.root, "server")
    bad = Path(shutil.copytree(world.root / "release", tmp_path / "bad"))
    data = bytearray((bad / MODEL).read_bytes())
    data[-1] ^= 1
    (bad / MODEL).write_bytes(data)
    ended = cloister("model", "seal", bad, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "does not verify" in ended.err
    assert not (tmp_path / "out").exists()
