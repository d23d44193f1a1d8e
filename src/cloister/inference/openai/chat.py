"""POST /v1/chat/completions: a conversation in, one or more answers out, whole or as events.

Steps: 1 the request is read; 2 the model is the one served, and generates; 3 the chat template makes tokens;
4 prompt and answer fit the context; 5 as many answers as were asked are generated; 6 they are worded.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence

from cloister.errors import InputError
from cloister.inference.application import LanguageEngine, Reply, TokenLogprob
from cloister.inference.openai.answers import (
    Delta,
    Stamp,
    ToolCall,
    ToolParser,
    answer,
    check_room,
    finite,
    usage,
)
from cloister.inference.openai.encoding import encoded
from cloister.inference.openai.errors import Refusal, json_reply, refusal_of
from cloister.inference.openai.events import DONE, event, streamed
from cloister.inference.openai.messages import template_messages, template_tools
from cloister.inference.openai.schema import ChatRequest
from cloister.inference.openai.streams import merged

__all__ = ["chat"]

_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"


async def chat(
    engine: LanguageEngine,
    request: ChatRequest,
    parser: Callable[[], ToolParser] | None,
    now: float,
    size: int,
) -> Reply:
    """Return the reply to a chat request that names this engine.

    Args:
        engine: the model; generates.
        request: what is asked.
        parser: makes what finds tool calls in this model's text.
        now: seconds since 1970.
        size: bytes of the request's body: how long it may take to encode.

    Raises:
        Refusal: it does not fit this model. What the engine raises before the first event passes.
    """
    tools = template_tools(request.tools) if request.tool_choice == "auto" else []
    if tools and (parser is None or not engine.takes_tools):
        raise Refusal(
            "This model's chat template knows no tools.", param="tools", code="unsupported_parameter"
        )
    messages = template_messages(request.messages)
    try:
        prompt = await encoded(size, lambda: engine.chat_prompt(messages, tools))  # 3
    except InputError as error:
        raise refusal_of(error, param="messages") from None
    sampling = request.sampling(engine.context - len(prompt))
    check_room(engine.context, len(prompt), sampling.max_tokens, "messages")  # 4
    deltas = merged(  # 5
        [
            answer(
                engine, prompt, sampling, parser if tools else None, single=not request.parallel_tool_calls
            )
            for _ in range(request.n)
        ]
    )
    stamp = Stamp.fresh("chatcmpl", now, engine.name)
    if request.stream:
        return await streamed(_events(deltas, request, stamp, len(prompt)))  # 6
    return json_reply(await _whole(deltas, request, stamp, len(prompt)))


async def _whole(
    deltas: AsyncGenerator[tuple[int, Delta], None], request: ChatRequest, stamp: Stamp, prompt: int
) -> dict[str, object]:
    answers: list[list[Delta]] = [[] for _ in range(request.n)]
    async for index, delta in deltas:
        answers[index].append(delta)
    choices = []
    for index, parts in enumerate(answers):
        text = "".join(part.text for part in parts)
        calls = [call for part in parts for call in part.calls]
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [_call(call) for call in calls]
        logprobs = _logprobs([each for part in parts for each in part.logprobs], request.logprobs)
        choices.append(
            {"index": index, "message": message, "logprobs": logprobs, "finish_reason": parts[-1].finish}
        )
    tokens = sum(part.tokens for parts in answers for part in parts)
    return stamp.parts(_WHOLE, choices) | {"usage": usage(prompt, tokens)}


async def _events(
    deltas: AsyncGenerator[tuple[int, Delta], None], request: ChatRequest, stamp: Stamp, prompt: int
) -> AsyncGenerator[bytes, None]:
    extra = {"usage": None} if request.with_usage else {}
    tokens, said = 0, False
    calls = [0] * request.n
    held: list[list[TokenLogprob]] = [[] for _ in range(request.n)]

    def chunk(index: int, delta: dict[str, object], logprobs: object = None, finish: object = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(stamp.parts(_CHUNK, [choice]) | extra)

    try:
        async for index, delta in deltas:
            tokens += delta.tokens
            held[index] += delta.logprobs
            out = b""
            if not said:
                said = True
                out = b"".join(chunk(each, {"role": "assistant", "content": ""}) for each in range(request.n))
            if delta.text or (held[index] and delta.finish):
                logprobs = _logprobs(held[index], request.logprobs)
                out += chunk(index, {"content": delta.text}, logprobs)
                held[index] = []
            for call in delta.calls:
                out += chunk(index, {"tool_calls": [{"index": calls[index]} | _call(call)]})
                calls[index] += 1
            if delta.finish is not None:
                out += chunk(index, {}, None, delta.finish)
            if out:
                yield out
    finally:
        await deltas.aclose()
    end = event(stamp.parts(_CHUNK, []) | {"usage": usage(prompt, tokens)}) if request.with_usage else b""
    yield end + DONE


def _call(call: ToolCall) -> dict[str, object]:
    """Return a tool call as it is worded; nine letters and digits is the one form of id that every chat
    template takes back."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": os.urandom(5).hex()[:9], "type": "function", "function": function}


def _logprobs(tokens: Sequence[TokenLogprob], wanted: bool) -> dict[str, object] | None:
    if not wanted:
        return None
    content = [
        {
            "token": each.token,
            "logprob": finite(each.logprob),
            "bytes": list(each.token.encode("utf-8", "surrogatepass")),
            "top_logprobs": [],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}
