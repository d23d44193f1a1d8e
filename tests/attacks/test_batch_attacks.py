"""Batch predictions under attack: a worker that goes for other keys, rows that were changed, code that tells.

What holds the keys is the caller; the worker is played by whoever wants more than its dataset. Of a broker's
dataset no key can be had from the caller at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from tests.enclave.broker.world import NOW, Home, InsecureAttesterDouble, identity, permission
from tests.inference.artifacts import make_artifact
from tests.inference.batchworld import OTHER, OWNER, PURPOSE, READER, add, make_vault, scripted, table, twin
from tests.inference.modules import CODE, make_module
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import open_bytes, seal_bytes, sha256
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
)
from cloister.inference import ModelArtifact, Predictor
from cloister.inference.batch import predict_dataset
from cloister.inference.walled import predict_walled, start_worker
from cloister.inference.walledmessages import Failed, Predicted, Rows
from cloister.learning.sections import ModelSection
from cloister.runtime.workers.brokered import BrokerAccess
from cloister.runtime.workers.messages import BrokerAsk, EvidenceWanted, KeyWanted, encode
from cloister.vault import Vault
from cloister.vault.checkedfile import DATA_NAME, KEY_MATERIAL_NAME

CANARY = "canary-Kx83"


@pytest.fixture
def artifact() -> ModelArtifact:
    return make_artifact("boolean", ModelSection(kind="logistic"))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = make_vault(tmp_path / "vault")
    add(made, table(30))
    add(made, table(30, seed=5), "others", purposes=(PURPOSE, "billing"))
    return made


def ask(vault: Vault, **options: Any) -> dict[str, Any]:
    options = {"purpose": PURPOSE, "identity": OWNER, "readers": [OWNER.public], **options}
    options.setdefault("handed", vault.hand_over("patients", purpose=PURPOSE))
    return {"output_format": "csv", **options}


def wrapped(vault: Vault, name: str) -> list[bytes]:
    """The wrapped data keys of a dataset: they lie beside its rows, for everybody to read."""
    folder = vault.hand_over(name, purpose=PURPOSE).folder
    material = json.loads((folder / KEY_MATERIAL_NAME).read_text())
    return [base64.b64decode(json.loads(each)["wrappedDEK"]) for each in material.values()]


# --- a worker that wants more -----------------------------------------------------------------------------


def test_keys_of_another_dataset_are_not_lent(artifact: ModelArtifact, vault: Vault) -> None:
    lent: list[Any] = []
    for foreign in wrapped(vault, "others"):

        def steal(channel: Any, task: Any, key: bytes = foreign) -> None:
            channel.send(encode(KeyWanted(0, key)))
            lent.append(channel.receive())

        start, twins = scripted(steal)
        with pytest.raises(IntegrityError):
            predict_dataset(artifact, **ask(vault), start=start)
        assert twins[0].closed
    assert lent == []


def test_its_own_keys_are_lent_and_not_for_ever(artifact: ModelArtifact, vault: Vault) -> None:
    own, given = wrapped(vault, "patients")[0], []

    def hoard(channel: Any, task: Any) -> None:
        while True:
            channel.send(encode(KeyWanted(0, own)))
            given.append(channel.receive())

    start, twins = scripted(hoard)
    with pytest.raises(ProtocolError, match="more keys than its rows have"):
        predict_dataset(artifact, **ask(vault), start=start)
    assert 0 < len(given) <= 4 * (5 + 2)
    assert twins[0].closed


@pytest.mark.parametrize(
    "asked",
    [
        KeyWanted(1, b"x" * 60),
        BrokerAsk(0, b"x", True),
        BrokerAsk(1, b"x", True),
        EvidenceWanted(0, bytes(1216)),
        EvidenceWanted(1, bytes(1216)),
    ],
    ids=lambda asked: f"{type(asked).__name__}{asked.dataset}",
)
def test_what_a_dataset_does_not_have_is_not_given(artifact: ModelArtifact, vault: Vault, asked: Any) -> None:
    start, twins = scripted(lambda channel, task: asked)
    with pytest.raises(ProtocolError):
        predict_dataset(artifact, **ask(vault), start=start)
    assert twins[0].closed


@pytest.mark.parametrize("rows", [0, 29, 31, 2**40])
def test_answers_for_other_rows_than_the_manifests_are_refused(
    artifact: ModelArtifact, vault: Vault, rows: int
) -> None:
    sealed = memoryview(seal_bytes(b"x", [OWNER.public]))
    start, _ = scripted(lambda channel, task: Predicted(sealed, rows, ["prediction", "probability"]))
    with pytest.raises(ProtocolError, match="number of rows"):
        predict_dataset(artifact, **ask(vault), start=start)


def test_answers_for_another_reader_are_refused(artifact: ModelArtifact, vault: Vault) -> None:
    sealed = memoryview(seal_bytes(b"x", [OTHER.public]))
    start, _ = scripted(lambda channel, task: Predicted(sealed, 30, ["prediction", "probability"]))
    with pytest.raises(ProtocolError, match="not sealed to the readers"):
        predict_dataset(artifact, **ask(vault), start=start)


# --- rows that are not what was signed --------------------------------------------------------------------


def test_a_changed_page_ends_it(artifact: ModelArtifact, vault: Vault, tmp_path: Path) -> None:
    handed = vault.hand_over("patients", purpose=PURPOSE)
    path = handed.folder / DATA_NAME
    whole = path.read_bytes()
    refused = 0
    for place in range(4, len(whole) - 4, 97):
        data = bytearray(whole)
        data[place] ^= 0x40
        path.write_bytes(bytes(data))
        try:
            predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))
        except IntegrityError:
            refused += 1
    assert refused  # pages of columns that the model does not read are not opened
    path.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError):
        predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))


def test_a_changed_page_never_changes_an_answer(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path
) -> None:
    handed = vault.hand_over("patients", purpose=PURPOSE)
    path = handed.folder / DATA_NAME
    whole = path.read_bytes()
    honest = predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))
    expected = open_bytes(bytes(honest.content), OWNER)
    for place in range(50, len(whole) - 4, 211):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            answer = predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))
        except IntegrityError:
            continue
        assert open_bytes(bytes(answer.content), OWNER) == expected


@pytest.mark.parametrize("names", [(DATA_NAME,), (KEY_MATERIAL_NAME,), (DATA_NAME, KEY_MATERIAL_NAME)])
def test_the_files_of_another_dataset_are_not_taken_for_it(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """They are exchanged after the vault has checked them, and before the worker opens them."""
    handed = vault.hand_over("patients", purpose=PURPOSE)
    other = vault.hand_over("others", purpose=PURPOSE)
    for name in names:
        shutil.copyfile(other.folder / name, handed.folder / name)
    with pytest.raises(IntegrityError):
        predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))


def test_a_manifest_that_somebody_else_signed_is_refused(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError):
        predict_dataset(artifact, **ask(vault, identity=OTHER), start=twin(tmp_path))
    forged = make_vault(tmp_path / "forged", owner=OTHER)
    add(forged, table(30))
    handed = replace(
        vault.hand_over("patients", purpose=PURPOSE),
        envelope=forged.hand_over("patients", purpose=PURPOSE).envelope,
    )
    with pytest.raises(IntegrityError):
        predict_dataset(artifact, **ask(vault, handed=handed), start=twin(tmp_path))


def test_a_purpose_of_another_dataset_opens_nothing(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path
) -> None:
    assert vault.hand_over("others", purpose="billing").manifest.rows == 30
    with pytest.raises(PolicyRefused, match="may not be used for 'billing'"):
        predict_dataset(artifact, **ask(vault, purpose="billing"), start=twin(tmp_path))


# --- keys with a broker -----------------------------------------------------------------------------------


class Brokered:
    """A vault of alice's, whose keys a broker keeps, and the way there."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "broker")
        self.owner = identity("alice")
        self.keys = self.home.owner()
        self.vault = make_vault(root / "vault", self.keys, self.owner)
        add(self.vault, table(30))
        self.handed = self.vault.hand_over("patients", purpose=PURPOSE)
        self.attester = InsecureAttesterDouble()
        broker, kek = identity("broker").public, self.handed.manifest.kek_id
        self.access = BrokerAccess(self.home.connect, broker, self.attester, lambda each: each == kek)

    def allow(self, **changes: Any) -> None:
        stated = {
            "kek_id": self.handed.manifest.kek_id,
            "manifest": sha256(self.handed.envelope).hex(),
            "plan": None,
            "purpose": PURPOSE,
        }
        self.keys.allow(permission(1, NOW + timedelta(days=1), **{**stated, **changes}))

    def ask(self, **options: Any) -> dict[str, Any]:
        options = {"identity": self.owner, "readers": [self.owner.public], "broker": self.access, **options}
        return ask(self.vault, handed=self.handed, **options)


@pytest.fixture
def brokered(tmp_path: Path) -> Any:
    made = Brokered(tmp_path)
    yield made
    made.home.close()


def test_a_broker_opens_for_an_attested_worker_and_for_one_use(
    artifact: ModelArtifact, brokered: Brokered, tmp_path: Path
) -> None:
    brokered.allow()
    answer = predict_dataset(artifact, **brokered.ask(), start=twin(tmp_path))
    expected = Predictor.of(artifact).predict(table(30))
    assert open_bytes(bytes(answer.content), brokered.owner).count(b"\n") == expected.num_rows + 1
    assert len(brokered.attester.made) == 1
    with pytest.raises(PolicyRefused):
        predict_dataset(artifact, **brokered.ask(), start=twin(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"purpose": "billing"}, {"plan": "22" * 32}, {"manifest": "11" * 32}], ids=str
)
def test_a_grant_for_something_else_opens_nothing(
    artifact: ModelArtifact, brokered: Brokered, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(PolicyRefused):
        predict_dataset(artifact, **brokered.ask(), start=twin(tmp_path))
    brokered.allow(**changes)
    with pytest.raises(PolicyRefused):
        predict_dataset(artifact, **brokered.ask(), start=twin(tmp_path))


def test_a_machine_that_the_broker_does_not_know_gets_no_key(
    artifact: ModelArtifact, brokered: Brokered, tmp_path: Path
) -> None:
    brokered.allow()
    access = replace(brokered.access, attester=InsecureAttesterDouble("bb" * 32))
    with pytest.raises(PolicyRefused, match="none of the accepted images"):
        predict_dataset(artifact, **brokered.ask(broker=access), start=twin(tmp_path))


def test_the_caller_has_no_key_to_lend_of_what_a_broker_keeps(
    artifact: ModelArtifact, brokered: Brokered
) -> None:
    brokered.allow()
    own = wrapped(brokered.vault, "patients")[0]
    start, twins = scripted(lambda channel, task: KeyWanted(0, own))
    with pytest.raises(ProtocolError, match="a key that a broker keeps"):
        predict_dataset(artifact, **brokered.ask(), start=start)
    start, _ = scripted(lambda channel, task: EvidenceWanted(0, bytes(1216)))
    with pytest.raises(ProtocolError, match="did not ask for"):
        predict_dataset(artifact, **brokered.ask(), start=start)
    assert twins[0].closed
    assert brokered.attester.made == []


# --- a user's code ----------------------------------------------------------------------------------------

LEAKS = CODE.replace(
    b"        return self.second",
    b"        if (x[:, 0] == -1.0).any():\n"
    b"            raise ValueError(f'rows are {x.tolist()}')\n"
    b"        return self.second",
)
THREE = f"patient,age,pain,fluid\n{CANARY},40,none,1.5\np-2,77,typical,\np-3,18,atypical,0\n".encode()


def with_code(code: bytes, **options: Any) -> dict[str, Any]:
    return {"output_format": "csv", "readers": [READER.public], "code": code, **options}


def test_what_code_says_of_rows_is_not_passed_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    artifact = make_module(code=LEAKS, scratch=tmp_path)
    rows = Rows(memoryview(THREE), None, "rows.csv")
    with pytest.raises(CloisterError) as error:
        predict_walled(artifact, rows, **with_code(LEAKS, start=twin(tmp_path)))
    assert "rows are" not in str(error.value)
    assert "not shown" in str(error.value)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Failed("ValueError", CANARY, CANARY, CANARY), PlanError),
        (Failed(CANARY, "x", "", ""), PlanError),
        (Failed("InputError", CANARY, CANARY, CANARY), InputError),
        (Failed("IntegrityError", CANARY, "", ""), IntegrityError),
        (Failed("PolicyRefused", CANARY, "", CANARY), PolicyRefused),
        (Failed("SchemaError", CANARY, CANARY, CANARY, 5, CANARY), SchemaError),
        (Failed("SchemaError", CANARY, CANARY, CANARY, 2**60, "age"), PlanError),
    ],
)
def test_code_chooses_no_word_of_an_error(tmp_path: Path, said: Failed, kind: type[CloisterError]) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    artifact = make_module(scratch=tmp_path)
    start, _ = scripted(lambda channel, task: said)
    with pytest.raises(CloisterError) as error:
        predict_walled(artifact, Rows(memoryview(THREE), None, "rows.csv"), **with_code(CODE, start=start))
    assert type(error.value) is kind
    assert CANARY not in str(error.value)
    assert str(2**60) not in str(error.value)


def test_other_code_starts_no_worker(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra torch")
    artifact, rows = make_module(scratch=tmp_path), Rows(memoryview(THREE), None, "rows.csv")
    start, twins = scripted(lambda channel, task: None)
    with pytest.raises(IntegrityError, match="SHA-256"):
        predict_walled(artifact, rows, **with_code(LEAKS, start=start))
    with pytest.raises(PolicyRefused, match="allow-user-code"):
        predict_walled(artifact, rows, **{**with_code(CODE, start=start), "code": None})
    assert twins == []


TRIES = """
import os, socket, pathlib, torch
from torch import nn

def tried(attempt):
    try:
        attempt()
    except BaseException:
        return 0.0
    return 1.0

ANSWERS = [
    tried(lambda: socket.socket().close()),
    tried(lambda: socket.socket(socket.AF_UNIX).close()),
    tried(lambda: pathlib.Path({target!r}).write_text("x")),
    tried(lambda: pathlib.Path({secret!r}).read_text()),
    tried(lambda: os.listdir({vault!r})),
]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 1)

    def forward(self, x):
        return self.last(x) * 0.0 + sum(ANSWERS)

def build():
    return Model()
"""


def test_code_behind_the_walls_reaches_nothing(tmp_path: Path) -> None:
    """It tells what it could do in its answers, the one way out it has: to their readers."""
    pytest.importorskip("torch", reason="needs the extra torch")
    needs_walls()
    secret = tmp_path / "identity.json"
    secret.write_text("keys")
    code = TRIES.format(target=str(tmp_path / "out"), secret=str(secret), vault=str(tmp_path)).encode()
    author = code.replace(b"ANSWERS = [", b"ANSWERS = [0.0]\nTRIES = lambda: [")  # its start is the same
    artifact = make_module("number", 0, code=author, scratch=tmp_path)
    card = artifact.card
    section = msgspec.structs.replace(card.model, code=hashlib.sha256(code).hexdigest())
    artifact = ModelArtifact(msgspec.structs.replace(card, model=section), artifact.parameters)
    for start, reached in ((start_worker, False), (twin(tmp_path), True)):
        answer = predict_walled(
            artifact,
            Rows(memoryview(THREE), None, "rows.csv"),
            **with_code(code, output_format="parquet", start=start),
        )
        opened = pa.parquet.read_table(pa.BufferReader(open_bytes(bytes(answer.content), READER)))
        # 25 is the middle of the label's bounds: nothing succeeded. Without walls much does
        assert (opened["value"].to_pylist() == [25.0] * 3) is not reached
        assert (tmp_path / "out").exists() is reached
