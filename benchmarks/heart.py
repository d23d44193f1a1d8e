"""Fed-Heart-Disease: four hospitals, one model, against FLamby's published figures.

    python -m benchmarks.heart [--quick] [--data DIR]     # five seeds either way: they take seconds

Rows, split and the 13 features are FLamby's (`cloister.cases.heart`); each seed's federation runs through the
real path: encrypted vaults, countersigned roster, masked updates, one secure sum a round, all in one process.
"Centralised" is the same training on all rows in one place. Accuracy at 0.5 on the test rows: the mean of the
four hospitals', and that of all test rows together, averaged over seeds 42 to 46.

What differs from FLamby: features are scaled by the schema's public bounds instead of each hospital's own
statistics, and the hyper-parameters. These were chosen without the test rows: the least cross-validated log
loss of the federated model on the train rows alone, over a grid (`python -m benchmarks.heart_tuning`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import arguments, data_folder, emit
from cloister.cases.heart import FEATURES, LABEL, SCHEMA_TOML, load_hospitals, split
from cloister.crypto import Identity, ScryptCost, StreamRandom
from cloister.learning import (
    ClientRows,
    DataSection,
    FeatureMap,
    HubEntry,
    Model,
    ModelSection,
    Plan,
    SiteEntry,
    StudySection,
    TrainingSection,
    build_model,
    centralised,
    evaluate,
    pin_initial,
)
from cloister.runtime import Party, Study
from cloister.types import RandomBytes
from cloister.vault import Vault, load_schema

SEEDS = (42, 43, 44, 45, 46)
SCHEMA = load_schema(SCHEMA_TOML.encode())
DATA = DataSection(schema=SCHEMA.digest().hex(), features=FEATURES, label=LABEL)
MODEL = ModelSection(kind="logistic", classes=2)
TRAINING = TrainingSection(rounds=100, batch=16, local_steps=5, learning_rate=0.3, l2=0.001, average_last=50)
FLAMBY_FEDAVG = {"mean_of_4": 0.685, "pooled": 0.748}
FLAMBY_POOLED = {"mean_of_4": 0.7353, "pooled": 0.7953}

_PURPOSE = "heart disease research"
_DATASET = "heart"

Rows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Hospital:
    """A hospital's encrypted train rows and its test rows."""

    identity: Identity
    vault: Vault
    train: Rows
    test: Rows


def features() -> tuple[FeatureMap, Model]:
    """Return FLamby's 13 features, scaled by the schema's bounds, and the logistic model over them."""
    mapped = FeatureMap.build(SCHEMA, DATA, MODEL)
    return mapped, build_model(MODEL, mapped.width)


def open_hospitals(data: Path, folder: Path) -> list[Hospital]:
    """Put each hospital's train rows into a vault of its own under `folder`."""
    hospitals = []
    for name, table in load_hospitals(data).items():
        train, test = split(table)
        hospitals.append(_hospital(name, train, test, folder / name))
    return hospitals


def _hospital(name: str, train: pa.Table, test: pa.Table, folder: Path) -> Hospital:
    mapped, _ = features()
    identity = Identity.generate(name)
    vault = Vault.unlock(folder, identity, "only for this benchmark", cost=ScryptCost(n=2**14))
    vault.add_table(train, name=_DATASET, schema=SCHEMA, purposes=[_PURPOSE])
    return Hospital(identity, vault, mapped.transform(train), mapped.transform(test))


def plan_for(hub: Identity, hospitals: Sequence[Hospital], seed: int) -> Plan:
    """Return the benchmark's plan, its start pinned."""
    plan = Plan(
        study=StudySection(name="fed-heart-disease", purpose=_PURPOSE, minimum_sites=len(hospitals)),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(
            SiteEntry(name=each.identity.name, identity=each.identity.fingerprint, dataset=_DATASET)
            for each in hospitals
        ),
        data=DATA,
        model=ModelSection(kind=MODEL.kind, classes=MODEL.classes, seed=seed),
        training=TRAINING,
    )
    return pin_initial(plan, SCHEMA)


def accuracies(model: Model, params: np.ndarray, tests: Sequence[Rows]) -> dict[str, float]:
    """Return the mean of the hospitals' accuracies and the accuracy on all their rows together."""
    each = [evaluate(model, params, X, y)["accuracy"] for X, y in tests]
    return {
        "mean_of_4": float(np.mean(each)),
        "pooled": float(np.average(each, weights=[len(y) for _, y in tests])),
    }


def seeded_bytes(seed: int) -> RandomBytes:
    """Return a source of bytes that repeats itself, so that a seed's figure can be had again."""
    stream = StreamRandom.from_seed(seed, "heart benchmark")
    return lambda count: stream.words(-(-count // 8)).tobytes()[:count]


def run(data: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the figures of this benchmark."""
    _, model = features()
    federated, central, seconds, clamped = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        hospitals = open_hospitals(data, Path(folder))
        tests = [each.test for each in hospitals]
        rows = ClientRows.stack([each.train for each in hospitals])
        hub = Identity.generate("university")
        for seed in seeds:
            plan = plan_for(hub, hospitals, seed)
            parties = [Party(each.identity, each.vault) for each in hospitals]
            begin = time.perf_counter()
            result = Study(plan, hub, parties, insecure_test_random=seeded_bytes(seed)).run()
            seconds.append(time.perf_counter() - begin)
            clamped += sum(result.clamped.values())
            federated.append(accuracies(model, result.model, tests))
            order = StreamRandom.from_seed(seed, "heart benchmark, centralised")
            alone = centralised(model, model.initial(seed), rows, TRAINING, insecure_test_random=order)
            central.append(accuracies(model, alone, tests))
    return {
        "federated": _mean(federated),
        "centralised": _mean(central),
        "by_seed": [
            {"seed": seed, "federated": f, "centralised": c}
            for seed, f, c in zip(seeds, federated, central, strict=True)
        ],
        "seconds_per_study": round(float(np.median(seconds)), 3),
        "clamped_coordinates": clamped,
    }


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([each[name] for each in figures])), 4) for name in figures[0]}


def main() -> None:
    parsed = arguments("Fed-Heart-Disease, federated through the secure sum and centralised").parse_args()
    data = data_folder(parsed.data)
    missing = (
        None if data is not None and data.is_dir() else "no data: give --data DIR or set CLOISTER_TEST_DATA"
    )
    figures: dict[str, Any] = {"federated": None, "centralised": None, "reasons": {"data": missing}}
    if missing is None and data is not None:
        figures = run(data, SEEDS)
    emit(
        "heart",
        {
            **figures,
            "flamby_fedavg": FLAMBY_FEDAVG,
            "flamby_centralised": FLAMBY_POOLED,
            "seeds": list(SEEDS),
            "path": "vaults, countersigned roster, secure sum each round; four sites and hub in one process",
            "settings": {"model": "logistic", "scaling": "bounds", "weights": TRAINING.weights}
            | {
                name: getattr(TRAINING, name)
                for name in ("rounds", "batch", "local_steps", "learning_rate", "l2", "average_last")
            },
        },
    )


if __name__ == "__main__":
    main()
