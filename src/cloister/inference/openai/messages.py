"""Messages and tools of a chat, as sent and as a chat template reads them.

A template gets plain strings: text parts are joined by line feeds, a developer speaks as the system, and
the arguments of an earlier tool call are an object again and not the text of one. Images, audio and files
are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloister.inference.openai.errors import Refusal
from cloister.inference.openai.fields import Fields

__all__ = ["Message", "Tool", "template_messages", "template_tools"]

_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+\Z")]


class TextPart(Fields, frozen=True):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


_Content = str | Annotated[tuple[TextPart, ...], Meta(min_length=1)]


class CalledFunction(Fields, frozen=True):
    """Which function an earlier answer called; `arguments` is JSON, as the model wrote it."""

    name: _Name
    arguments: str


class Call(Fields, frozen=True):
    """A tool call in an earlier answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class SystemMessage(Fields, frozen=True, tag_field="role", tag="system"):
    """What the operator of a conversation says."""

    content: _Content
    name: str | None = None


class DeveloperMessage(Fields, frozen=True, tag_field="role", tag="developer"):
    """The newer name of a system message."""

    content: _Content
    name: str | None = None


class UserMessage(Fields, frozen=True, tag_field="role", tag="user"):
    """What a person says."""

    content: _Content
    name: str | None = None


class AssistantMessage(Fields, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer, with the empty fields that clients send back with it."""

    content: _Content | None = None
    name: str | None = None
    tool_calls: tuple[Call, ...] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[tuple[None, ...], Meta(max_length=0)] | None = None


class ToolMessage(Fields, frozen=True, tag_field="role", tag="tool"):
    """What a tool returned."""

    content: _Content
    tool_call_id: str
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Fields, frozen=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: _Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Fields, frozen=True):
    """A tool that the model may call: a function."""

    type: Literal["function"]
    function: Function


def template_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return a conversation as a chat template reads it.

    Raises:
        Refusal: an earlier tool call's arguments are no JSON object.
    """
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """Return tools as a chat template reads them.

    Raises:
        Refusal: one asks that its schema be enforced.
    """
    for index, tool in enumerate(tools):
        if tool.function.strict:
            raise Refusal(
                "This service does not enforce the schema of a function: send strict as false.",
                param=f"tools[{index}].function.strict",
                code="unsupported_value",
            )
    return [{"type": "function", "function": _function(tool.function)} for tool in tools]


def _function(function: Function) -> dict[str, object]:
    return {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or {"type": "object", "properties": {}},
    }


def _message(message: Message, place: str) -> dict[str, object]:
    content = message.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    role = message.__struct_config__.tag
    value: dict[str, object] = {"role": "system" if role == "developer" else role, "content": text}
    if message.name is not None:
        value["name"] = message.name
    if isinstance(message, ToolMessage):
        value["tool_call_id"] = message.tool_call_id
    elif isinstance(message, AssistantMessage) and message.tool_calls:
        value["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{index}].function.arguments")
            for index, call in enumerate(message.tool_calls)
        ]
    return value


def _call(call: Call, place: str) -> dict[str, object]:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refusal("The arguments are not a JSON object.", param=place, code="invalid_value") from None
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
