"""What scoring under encryption costs and changes, beside the same model in the clear, in the same run.

    python -m benchmarks.inference_he [--quick]

Rows fill ciphertexts (4,096 of the linear circuit, 8,192 of the hidden one); one process, one thread; client
and server both here. For each model, medians of runs:

    score_ms, encrypt_ms, open_ms   milliseconds a row, of server and client
    plain_ms                        milliseconds a row for `Predictor` on the same rows
    cost_over_plain                 all three over plain_ms
    up_bytes, down_bytes            bytes a row on the wire; bytes_over_plain is up_bytes over float64
    max_error, bound                largest difference of a probability; of a score, as the client is told
    label_flips, doubtful           rows whose class differs; rows the client is told could differ
    one_row_ms, one_row_bytes       all of it for a single row, which still takes whole ciphertexts

`logistic` has 30 features. `tanh` and `relu` have one hidden layer of 8 units over the same 30. All have
made-up parameters, and rows are drawn evenly from their bounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import arguments, emit
from cloister.inference import ModelArtifact, ModelCard
from cloister.inference.encrypted import Report, compare
from cloister.learning import DataSection, FeatureMap, build_model
from cloister.learning.sections import ModelSection
from cloister.vault import load_schema
from cloister.vault.sources import TableSource

__all__ = ["measure"]

FEATURES = 30
MODELS = {
    "logistic": (ModelSection(kind="logistic"), 4096),
    "tanh": (ModelSection(kind="mlp", hidden=(8,), classes=2, activation="tanh"), 8192),
    "relu": (ModelSection(kind="mlp", hidden=(8,), classes=2, activation="relu"), 8192),
}


def make_model(section: ModelSection) -> ModelArtifact:
    """Return a model of two classes over 30 numbers; its parameters are drawn as for a start."""
    names = tuple(f"x{number:02d}" for number in range(FEATURES))
    columns = "".join(f'[columns.{name}]\ntype = "number"\nbounds = [-4.0, 4.0]\n' for name in names)
    schema = load_schema(f'{columns}[columns.y]\ntype = "boolean"\nrole = "label"\n'.encode())
    data = DataSection(schema=schema.digest().hex(), features=names, label="y")
    features = FeatureMap.build(schema, data, section)
    model = build_model(section, features.width)
    start = model.initial(1) if section.hidden else np.random.default_rng(1).normal(size=model.size)
    card = ModelCard("cloister-model/1", "made-up", "0" * 64, 1, section, names, features)
    return ModelArtifact(card, start)


def make_rows(count: int) -> TableSource:
    """Return rows drawn evenly from the bounds."""
    values = np.random.default_rng(2).uniform(-4.0, 4.0, (FEATURES, count))
    return TableSource(pa.table({f"x{number:02d}": own for number, own in enumerate(values)}))


def figures(reports: list[Report]) -> dict[str, Any]:
    """Return the medians of times, the worst of errors, and what is the same in every run."""
    times = {
        name: statistics.median(getattr(each, name) for each in reports)
        for name in ("encrypt_ms", "score_ms", "open_ms", "plain_ms")
    }
    encrypted = times["encrypt_ms"] + times["score_ms"] + times["open_ms"]
    last = reports[-1]
    return {
        "rows": last.rows,
        **{name: round(value, 6) for name, value in times.items()},
        "cost_over_plain": round(encrypted / times["plain_ms"], 1),
        "up_bytes": round(last.up_bytes),
        "down_bytes": round(last.down_bytes),
        "bytes_over_plain": round(last.up_bytes / last.plain_bytes, 2),
        "max_error": float(f"{max(each.max_error for each in reports):.1e}"),
        "bound": float(f"{max(each.bound for each in reports):.1e}"),
        "label_flips": max(each.label_flips for each in reports),
        "doubtful": max(each.doubtful for each in reports),
    }


def measure(quick: bool, only: Sequence[str] = tuple(MODELS)) -> dict[str, Any]:
    """Return the figures of these models. Raises InputError where tenseal is not installed."""
    found = {}
    for name in only:
        section, count = MODELS[name]
        artifact, rows = make_model(section), make_rows(count)
        compare(artifact, make_rows(1))  # contexts are made once a process
        turns = 3 if section.hidden else 10
        own = figures([compare(artifact, rows) for _ in range(1 if quick else turns)])
        single = [compare(artifact, make_rows(1)) for _ in range(1 if quick else turns)]
        one = statistics.median(each.encrypt_ms + each.score_ms + each.open_ms for each in single)
        own["one_row_ms"] = round(one, 2)
        own["one_row_bytes"] = round(single[-1].up_bytes + single[-1].down_bytes)
        found[name] = own
    return found


def main() -> None:
    quick = arguments(__doc__.splitlines()[0]).parse_args().quick
    emit("inference_he", measure(quick))


if __name__ == "__main__":
    main()
