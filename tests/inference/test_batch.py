"""Batch predictions over a dataset: the predictor's own answers, for the purpose, and for whom a budget allows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.inference.artifacts import make_artifact, make_schema
from tests.inference.batchworld import OTHER, OWNER, PURPOSE, READER, add, make_vault, table, twin
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import open_bytes
from cloister.errors import PolicyRefused, SchemaError
from cloister.inference import ModelArtifact, ModelCard, Predictor, rowgroups
from cloister.inference.batch import predict_dataset, require_owner_alone
from cloister.inference.walled import rows_of, start_worker
from cloister.learning import DataSection, FeatureMap
from cloister.learning.sections import ModelSection
from cloister.privacy.ledger import Cap, Ledger
from cloister.vault import Schema, Vault

GROUP = 65_536
ANSWERS = ("prediction", "probability")


@pytest.fixture
def artifact() -> ModelArtifact:
    return make_artifact("boolean", ModelSection(kind="logistic"))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return make_vault(tmp_path / "vault")


def ask(vault: Vault, name: str = "patients", **options: Any) -> dict[str, Any]:
    return {
        "handed": vault.hand_over(name, purpose=PURPOSE),
        "purpose": PURPOSE,
        "identity": OWNER,
        "readers": [READER.public],
        "output_format": "parquet",
        **options,
    }


def opened(answer: Any) -> pa.Table:
    return pyarrow.parquet.read_table(io.BytesIO(open_bytes(bytes(answer.content), READER)))


@pytest.mark.parametrize("output", ["csv", "parquet"])
def test_answers_are_the_predictors_own(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path, output: str
) -> None:
    rows = table(200)
    add(vault, rows)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    answer = predict_dataset(artifact, **ask(vault, output_format=output), start=twin(scratch))
    content = io.BytesIO(open_bytes(bytes(answer.content), READER))
    found = pyarrow.csv.read_csv(content) if output == "csv" else pyarrow.parquet.read_table(content)
    assert found.equals(Predictor.of(artifact).predict(rows))
    assert (answer.rows, tuple(answer.columns)) == (200, ANSWERS)
    assert list(scratch.iterdir()) == []


def test_a_row_group_is_all_that_is_held(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scratch space stays empty, so its size does not matter; the vault's row groups come one by one."""
    rows = table(GROUP + 500)
    add(vault, rows)
    seen: list[int] = []
    answers = rowgroups._answers

    def watched(part: pa.Table, predictor: Predictor, before: int) -> pa.Table:
        assert part.column_names == ["age", "pain", "fluid"]
        assert not list(tmp_path.glob("scratch/*"))
        seen.append(part.num_rows)
        return answers(part, predictor, before)

    monkeypatch.setattr(rowgroups, "_answers", watched)
    (tmp_path / "scratch").mkdir()
    answer = predict_dataset(artifact, **ask(vault), start=twin(tmp_path / "scratch"))
    assert seen == [GROUP, 500]
    assert opened(answer).equals(Predictor.of(artifact).predict(rows))


def test_a_row_that_breaks_the_models_schema_is_named_by_its_number(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault's schema allows what the model's does not: a fluid that is missing."""
    rows = table(GROUP + 50)
    fluid = np.ones(GROUP + 50)
    add(vault, rows.set_column(2, "fluid", pa.array(fluid, mask=np.arange(GROUP + 50) == GROUP + 7)))
    strict = _strict()
    with pytest.raises(SchemaError, match="missing") as caught:
        predict_dataset(strict, **ask(vault), start=twin(tmp_path))
    assert (caught.value.line, caught.value.column) == (GROUP + 8, "fluid")


def _strict() -> ModelArtifact:
    """A model whose schema refuses missing fluid."""
    columns = make_schema("boolean").columns
    schema = Schema({**columns, "fluid": msgspec.structs.replace(columns["fluid"], missing="refuse")})
    data = DataSection(schema=schema.digest().hex(), features=("age", "pain", "fluid"), label="y")
    model = ModelSection(kind="logistic")
    features = FeatureMap.build(schema, data, model)
    card = ModelCard("cloister-model/1", "heart", "a" * 64, 5, model, data.features, features)
    return ModelArtifact(card, np.ones(features.width + 1))


def test_a_dataset_without_a_column_is_refused(artifact: ModelArtifact, vault: Vault, tmp_path: Path) -> None:
    columns = dict(make_schema("boolean").columns)
    del columns["fluid"]
    vault.add_table(
        table(20).drop_columns(["fluid"]), name="patients", schema=Schema(columns), purposes=[PURPOSE]
    )
    with pytest.raises(SchemaError, match="absent") as caught:
        predict_dataset(artifact, **ask(vault), start=twin(tmp_path))
    assert caught.value.column == "fluid"


def test_local_scaling_takes_its_reference_from_a_file(vault: Vault, tmp_path: Path) -> None:
    local = make_artifact("boolean", ModelSection(kind="logistic"), scaling="local")
    rows = table(60)
    add(vault, rows)
    pyarrow.parquet.write_table(rows, tmp_path / "reference")
    reference = rows_of(tmp_path / "reference", lambda: OWNER)
    answer = predict_dataset(local, **ask(vault, reference=reference), start=twin(tmp_path))
    assert opened(answer).equals(Predictor.of(local).fit(rows).predict(rows))


def test_another_purpose_is_refused_by_vault_and_worker(
    artifact: ModelArtifact, vault: Vault, tmp_path: Path
) -> None:
    add(vault, table(20))
    with pytest.raises(PolicyRefused, match="may not be used"):
        vault.hand_over("patients", purpose="marketing")
    with pytest.raises(PolicyRefused, match="may not be used"):
        predict_dataset(artifact, **ask(vault, purpose="marketing"), start=twin(tmp_path))


def test_behind_the_walls(artifact: ModelArtifact, vault: Vault) -> None:
    needs_walls()
    rows = table(300)
    add(vault, rows)
    running = start_worker()
    answer = predict_dataset(artifact, **ask(vault), start=lambda: running)
    assert opened(answer).equals(Predictor.of(artifact).predict(rows))
    assert b"canary" not in bytes(answer.content)
    assert running.socket.fileno() == -1


# --- budgets ----------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "ledger", OWNER) as made:
        made.declare("people", Cap.of(8.0, 1e-5))
        yield made


def test_rows_with_a_budget_are_told_to_their_owner_alone(vault: Vault, ledger: Ledger) -> None:
    manifest = add(vault, table(40))
    free = add(vault, table(40, seed=9), "others")
    ledger.bind("people", manifest.dataset_id, vault.fingerprints("patients"))
    require_owner_alone(vault, manifest, [OWNER.public], OWNER.public, ledger)
    require_owner_alone(vault, free, [READER.public], OWNER.public, ledger)
    for readers in ([READER.public], [OWNER.public, READER.public]):
        with pytest.raises(PolicyRefused, match=r"budget \(people\)") as refused:
            require_owner_alone(vault, manifest, readers, OWNER.public, ledger)
        assert refused.value.exit_code == 3
        assert "reader" in refused.value.where


def test_another_name_or_a_part_of_the_rows_goes_around_nothing(vault: Vault, ledger: Ledger) -> None:
    rows = table(40)
    ledger.bind("people", add(vault, rows).dataset_id, vault.fingerprints("patients"))
    copied = add(vault, rows.slice(5, 3), "copied")
    with pytest.raises(PolicyRefused, match="budget"):
        require_owner_alone(vault, copied, [OTHER.public], OWNER.public, ledger)
    assert ledger.bound(copied.dataset_id) == ()
