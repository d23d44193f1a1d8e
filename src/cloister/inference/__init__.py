"""Inference: a released model, its answers, and the sealed exchange of rows for answers.

Order of use: `load_model` (or `artifact_from_bytes` on bytes a release was verified with; `of_tables` where
tables alone will do), `Predictor.of`, `predict`. Between a client and a server: `seal_request`, `answer`,
`SealedRequest.open_answer`.
"""

from cloister.inference.adapter import AdapterArtifact
from cloister.inference.artifact import ModelArtifact, ModelCard, load_model
from cloister.inference.predictor import Predictor
from cloister.inference.released import Artifact, artifact_from_bytes, of_tables
from cloister.inference.rows import in_memory_file
from cloister.inference.sealed import SealedRequest, TablePredictor, answer, seal_request
from cloister.inference.tensors import MODEL_LIMIT, TENSORS_LIMIT

__all__ = [
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
]
