"""Which fields of a request a server on loopback is given. What is not listed is refused, or dropped.

Such servers take more than OpenAI's fields, from whoever may ask at all: the id of a request (which can end
or answer another client's), a slot or a session of somebody else's, where to fetch kept keys and values from,
templates and processors that are programs, tensors that are unpickled, and addresses to load images from,
inside the operator's network. So a field is passed on because it is known to be about this one answer:

- OpenAI's, and what servers of this kind add about sampling;
- of `chat_template_kwargs`, whether and how much to think, for the rest can replace the template;
- parts of messages that are text, or media that come along: as "data:" addresses, or audio in base64.

Fields that say who asks, or where prompts are kept, are dropped: the first is nobody's business there, the
second is for `loopback` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.inference.openai.errors import Refusal

__all__ = ["passed"]

_PASSED: Final = frozenset(
    """
    model messages prompt input n stream stream_options max_tokens max_completion_tokens temperature top_p
    stop seed logprobs top_logprobs logit_bias frequency_penalty presence_penalty response_format tools
    tool_choice parallel_tool_calls functions function_call reasoning_effort verbosity modalities prediction
    suffix echo best_of dimensions encoding_format
    top_k min_p repetition_penalty length_penalty min_tokens ignore_eos stop_token_ids bad_words
    skip_special_tokens spaces_between_special_tokens include_stop_str_in_output guided_json guided_choice
    """.split()  # noqa: SIM905  # as a list it would be forty lines
)
_DROPPED: Final = frozenset(
    """
    user metadata service_tier safety_identifier store prompt_cache_key prompt_cache_options
    prompt_cache_retention cache_salt cache_prompt
    """.split()  # noqa: SIM905
)
_TEMPLATE: Final = {"enable_thinking": bool, "thinking": bool, "reasoning_effort": str}
_MEDIA: Final = ("image_url", "audio_url", "video_url")
_PARTS: Final = ("text", "refusal", "input_audio", *_MEDIA)


def passed(fields: Mapping[str, object]) -> dict[str, object]:
    """Return what of a request's fields goes on.

    Raises:
        Refusal: 400, naming the field that does not.
    """
    found: dict[str, object] = {}
    for name, value in fields.items():
        if name in _DROPPED or value is None:
            continue
        if name == "chat_template_kwargs":
            _check_template(value)
        elif name == "messages":
            _check_messages(value)
        elif name not in _PASSED:
            raise Refusal(f"{name} is not supported by this service.", param=name, code="unknown_parameter")
        found[name] = value
    return found


def _check_template(value: object) -> None:
    for name, each in value.items() if isinstance(value, dict) else [("", value)]:
        if type(each) is not _TEMPLATE.get(name):
            raise Refusal(
                "Of chat_template_kwargs this service takes enable_thinking, thinking and reasoning_effort.",
                param="chat_template_kwargs",
                code="unsupported_value",
            )


def _check_messages(messages: object) -> None:
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            _check_part(part, f"messages[{at}].content[{number}]")


def _check_part(part: object, place: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _PARTS:
        raise Refusal(
            "A part of a message is a text, an image, audio or video.", param=place, code="unsupported_value"
        )
    for name in part.keys() - {"type", "text", "refusal"}:
        value = part[name]
        if name == "input_audio" and name == kind:
            continue
        address = value.get("url") if isinstance(value, dict) else value
        if name != kind or not isinstance(address, str) or not address.startswith("data:"):
            raise Refusal(
                'Media come along with a request, as a "data:" URL: nothing is fetched for it.',
                param=f"{place}.{name}",
                code="unsupported_value",
            )
