"""POST /v1/embeddings: texts or token ids in, one vector of unit length for each out.

Vectors are float32: numbers in JSON, or the base64 of their little-endian bytes.
"""

from __future__ import annotations

import base64

import numpy as np

from cloister.inference.application import LanguageEngine, Reply
from cloister.inference.openai.completions import tokens_of
from cloister.inference.openai.errors import Refusal, json_reply
from cloister.inference.openai.schema import EmbeddingRequest

__all__ = ["embed"]


async def embed(engine: LanguageEngine, request: EmbeddingRequest) -> Reply:
    """Return the reply to an embedding request that names this engine.

    Raises:
        Refusal: an input is longer than the context. What the engine raises passes.
    """
    prompts = await tokens_of(engine, request.inputs, "input")
    for prompt in prompts:
        if len(prompt) > engine.context:
            raise Refusal(
                f"The maximum context length is {engine.context} tokens. An input has {len(prompt)}.",
                param="input",
                code="context_length_exceeded",
            )
    vectors = await engine.embed(prompts)
    data = [
        {"object": "embedding", "index": index, "embedding": _worded(vector, request.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(len(prompt) for prompt in prompts)
    return json_reply(
        {
            "object": "list",
            "data": data,
            "model": engine.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _worded(vector: list[float], encoding: str) -> str | list[float]:
    if encoding == "float":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
