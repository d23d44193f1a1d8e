"""POST /v1/completions: texts or token ids in, their continuations out, whole or as events.

Steps as in `chat`, without a template. Choice i of prompt p has the index p * n + i.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from cloister.errors import InputError
from cloister.inference.application import LanguageEngine, Reply, TokenLogprob
from cloister.inference.openai.answers import Delta, Stamp, answer, check_room, finite, usage
from cloister.inference.openai.encoding import check_text, encoded
from cloister.inference.openai.errors import json_reply, refusal_of
from cloister.inference.openai.events import DONE, event, streamed
from cloister.inference.openai.schema import CompletionRequest
from cloister.inference.openai.streams import merged

__all__ = ["complete", "tokens_of"]

_KIND = "text_completion"


async def tokens_of(
    engine: LanguageEngine, prompts: Sequence[str | tuple[int, ...]], param: str
) -> list[list[int]]:
    """Return the tokens of each prompt. Raises Refusal where one cannot be encoded, or fits no context."""
    texts = [each for each in prompts if isinstance(each, str)]
    for text in texts:
        check_text(engine.context, text, param)

    def encode() -> list[list[int]]:
        return [engine.text_prompt(each) if isinstance(each, str) else list(each) for each in prompts]

    try:
        return await encoded(sum(map(len, texts)), encode)
    except InputError as error:
        raise refusal_of(error, param=param) from None


async def complete(engine: LanguageEngine, request: CompletionRequest, now: float) -> Reply:
    """Return the reply to a completion request that names this engine.

    Raises:
        Refusal: it does not fit this model. What the engine raises before the first event passes.
    """
    prompts = await tokens_of(engine, request.prompts, "prompt")
    sampling = request.sampling()
    for prompt in prompts:
        check_room(engine.context, len(prompt), sampling.max_tokens, "prompt")
    deltas = merged([answer(engine, prompt, sampling) for prompt in prompts for _ in range(request.n)])
    choices = len(prompts) * request.n
    stamp = Stamp.fresh("cmpl", now, engine.name)
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    if request.stream:
        return await streamed(_events(deltas, request, stamp, prompt_tokens, choices))
    return json_reply(await _whole(deltas, request, stamp, prompt_tokens, choices))


async def _whole(
    deltas: AsyncGenerator[tuple[int, Delta], None],
    request: CompletionRequest,
    stamp: Stamp,
    prompt: int,
    count: int,
) -> dict[str, object]:
    answers: list[list[Delta]] = [[] for _ in range(count)]
    async for index, delta in deltas:
        answers[index].append(delta)
    choices = [
        _choice(
            index,
            "".join(part.text for part in parts),
            [each for part in parts for each in part.logprobs] if request.logprobs is not None else None,
            parts[-1].finish,
        )
        for index, parts in enumerate(answers)
    ]
    tokens = sum(part.tokens for parts in answers for part in parts)
    return stamp.parts(_KIND, choices) | {"usage": usage(prompt, tokens)}


async def _events(
    deltas: AsyncGenerator[tuple[int, Delta], None],
    request: CompletionRequest,
    stamp: Stamp,
    prompt: int,
    count: int,
) -> AsyncGenerator[bytes, None]:
    extra = {"usage": None} if request.with_usage else {}
    tokens = 0
    offsets = [0] * count
    held: list[list[TokenLogprob]] = [[] for _ in range(count)]
    try:
        async for index, delta in deltas:
            tokens += delta.tokens
            held[index] += delta.logprobs
            if not delta.text and delta.finish is None:
                continue
            logprobs = held[index] if request.logprobs is not None else None
            choice = _choice(index, delta.text, logprobs, delta.finish, offsets[index])
            offsets[index] += sum(len(each.token) for each in held[index])
            held[index] = []
            yield event(stamp.parts(_KIND, [choice]) | extra)
    finally:
        await deltas.aclose()
    end = event(stamp.parts(_KIND, []) | {"usage": usage(prompt, tokens)}) if request.with_usage else b""
    yield end + DONE


def _choice(
    index: int, text: str, tokens: Sequence[TokenLogprob] | None, finish: str | None, offset: int = 0
) -> dict[str, object]:
    logprobs = None
    if tokens is not None:
        offsets = []
        for each in tokens:
            offsets.append(offset)
            offset += len(each.token)
        logprobs = {
            "tokens": [each.token for each in tokens],
            "token_logprobs": [finite(each.logprob) for each in tokens],
            "top_logprobs": None,
            "text_offset": offsets,
        }
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
