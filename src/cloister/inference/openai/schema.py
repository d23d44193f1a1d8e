"""What may be asked: chat completions, completions, embeddings; and how that becomes `Sampling`.

A field that is not listed is refused, since an answer that silently lacks what was asked for is a wrong
answer. So are sampling penalties, seeds, images, forced tool calls and enforced schemas, which no engine here
offers; a seed passes with temperature 0, where nothing is drawn.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from cloister.inference.application import Sampling
from cloister.inference.openai.errors import Refusal
from cloister.inference.openai.fields import Fields, read_fields
from cloister.inference.openai.messages import Message, Tool

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Prompts",
    "StreamOptions",
    "read_chat",
    "read_completion",
    "read_embedding",
]

MAX_PROMPTS: Final = 128
"""Prompts of one completion request, times its choices."""
MAX_INPUTS: Final = 2048
"""Inputs of one embedding request, as OpenAI has it."""

_IGNORED: Final = frozenset(
    {
        "user",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
_ONLY: Final = {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},)}
_ONLY_CHAT: Final = _ONLY | {
    "store": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none",),
    "reasoning_effort": ("none",),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}
_ONLY_COMPLETION: Final = _ONLY | {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_ONLY_EMBEDDING: Final[dict[str, tuple[object, ...]]] = {"dimensions": ()}

_Tokens = Annotated[int, Meta(ge=1, le=2**31)]
_TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
_Stop = Annotated[str, Meta(min_length=1, max_length=1024)]

Prompts = str | Annotated[tuple[str | _TokenId | tuple[_TokenId, ...], ...], Meta(min_length=1)]
"""A text, texts, token ids, or lists of token ids."""


class StreamOptions(Fields, frozen=True):
    """How to stream. Frames have one size here, so that nothing is left for `include_obfuscation` to do."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Generation(Fields, frozen=True, kw_only=True):
    model: str
    max_tokens: _Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=8)] = 1
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] = 0
    seed: int | None = None
    stop: _Stop | Annotated[tuple[_Stop, ...], Meta(max_length=4)] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """Raise Refusal for fields that do not go together."""
        if self.seed is not None and self.temperature > 0:
            raise Refusal(
                "seed is not supported by this service, except with temperature 0.",
                param="seed",
                code="unsupported_parameter",
            )
        if self.stream_options is not None and not self.stream:
            raise Refusal(
                "stream_options is only allowed when stream is true.",
                param="stream_options",
                code="invalid_value",
            )

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self, max_tokens: int, logprobs: bool) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop,
            logprobs=logprobs,
        )


class FunctionName(Fields, frozen=True):
    """Names a function."""

    name: str


class NamedTool(Fields, frozen=True):
    """Names the tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(_Generation, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool = False
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] = ()
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True

    def check(self) -> None:
        """Raise Refusal for fields that do not go together."""
        super().check()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise Refusal(
                "max_tokens and max_completion_tokens cannot both be set.",
                param="max_tokens",
                code="invalid_value",
            )
        if self.tool_choice not in ("none", "auto"):
            raise Refusal(
                "This service cannot force a tool call: tool_choice is none or auto.",
                param="tool_choice",
                code="unsupported_value",
            )

    def sampling(self, room: int) -> Sampling:
        """Return how to draw; `room` tokens are left of the context, and all are offered by default."""
        return self._sampling(self.max_completion_tokens or self.max_tokens or room, self.logprobs)


class CompletionRequest(_Generation, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Meta(ge=0, le=0)] | None = None

    def check(self) -> None:
        """Raise Refusal for fields that do not go together."""
        super().check()
        if len(self.prompts) * self.n > MAX_PROMPTS:
            raise Refusal(
                f"At most {MAX_PROMPTS} choices in one request.", param="prompt", code="invalid_value"
            )

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """The prompts, each a text or token ids."""
        return _each(self.prompt, "prompt")

    def sampling(self) -> Sampling:
        """Return how to draw; 16 tokens by default, as OpenAI has it."""
        return self._sampling(self.max_tokens or 16, self.logprobs is not None)


class EmbeddingRequest(Fields, frozen=True):
    """POST /v1/embeddings."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """What to embed, each a text or token ids."""
        return _each(self.input, "input")


def read_chat(body: bytes) -> ChatRequest:
    """Return what a body asks. Raises Refusal, naming the field."""
    request = read_fields(body, ChatRequest, ignored=_IGNORED, only=_ONLY_CHAT)
    request.check()
    return request


def read_completion(body: bytes) -> CompletionRequest:
    """Return what a body asks. Raises Refusal, naming the field."""
    request = read_fields(body, CompletionRequest, ignored=_IGNORED, only=_ONLY_COMPLETION)
    request.check()
    return request


def read_embedding(body: bytes) -> EmbeddingRequest:
    """Return what a body asks. Raises Refusal, naming the field."""
    request = read_fields(body, EmbeddingRequest, ignored=_IGNORED, only=_ONLY_EMBEDDING)
    if len(request.inputs) > MAX_INPUTS:
        raise Refusal(f"At most {MAX_INPUTS} inputs in one request.", param="input", code="invalid_value")
    return request


def _each(prompts: Prompts, param: str) -> tuple[str | tuple[int, ...], ...]:
    """Return the texts or token ids in a field. Raises Refusal where they are mixed, or one is empty."""
    if isinstance(prompts, str):
        texts: tuple[str | tuple[int, ...], ...] = (prompts,)
    elif all(isinstance(each, int) for each in prompts):
        texts = (tuple(each for each in prompts if isinstance(each, int)),)
    else:
        texts = tuple(each for each in prompts if not isinstance(each, int))
        if len(texts) != len(prompts) or len({type(each) for each in texts}) != 1:
            raise Refusal("Texts and token ids cannot be mixed.", param=param, code="invalid_value")
    if not all(texts):
        raise Refusal(f"{param} must not be empty.", param=param, code="invalid_value")
    return texts
