"""The room's contract is what it exports."""

from __future__ import annotations

import cloister.inference


def test_exports() -> None:
    assert set(cloister.inference.__all__) == {
        "MODEL_LIMIT",
        "TENSORS_LIMIT",
        "AdapterArtifact",
        "Artifact",
        "ModelArtifact",
        "ModelCard",
        "Predictor",
        "SealedRequest",
        "TablePredictor",
        "answer",
        "artifact_from_bytes",
        "in_memory_file",
        "load_model",
        "of_tables",
        "seal_request",
    }
    assert all(hasattr(cloister.inference, name) for name in cloister.inference.__all__)
