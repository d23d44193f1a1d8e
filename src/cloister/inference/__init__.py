"""Inference: a released model, its answers, and the sealed exchange of rows for answers.

Order of use: `load_model` (or `ModelArtifact.from_bytes` on bytes a release was verified with),
`Predictor.of`, `predict`. Between a client and a server: `seal_request`, `answer`,
`SealedRequest.open_answer`.
"""

from cloister.inference.artifact import ModelArtifact, ModelCard, load_model
from cloister.inference.predictor import Predictor
from cloister.inference.rows import in_memory_file
from cloister.inference.sealed import SealedRequest, TablePredictor, answer, seal_request
from cloister.inference.tensors import MODEL_LIMIT

__all__ = [
    "MODEL_LIMIT",
    "ModelArtifact",
    "ModelCard",
    "Predictor",
    "SealedRequest",
    "TablePredictor",
    "answer",
    "in_memory_file",
    "load_model",
    "seal_request",
]
