"""Which method and path leads where, and the list of models, which every application here has.

    POST /v1/NAME         one function for each
    GET  /v1/models       the models
    GET  /v1/models/ID    one of them

A query is ignored, as OpenAI ignores it. Whatever a function raises becomes a reply: what a client is told of
an error is for `errors.refusal_of` to say.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping

from cloister.inference.application import Reply, Request
from cloister.inference.openai.errors import Refusal, json_reply, refusal_of

__all__ = ["Handler", "model_in", "route", "unknown_model"]

Handler = Callable[[Request], Awaitable[Reply]]
"""Answers one path; may raise Refusal, or what an engine raises."""


async def route(
    request: Request, handlers: Mapping[str, Handler], models: Mapping[str, int] | Handler
) -> Reply:
    """Return the reply of the handler that a request leads to; never raises an `Exception`.

    Args:
        request: what a client asks.
        handlers: by path, for POST.
        models: names, with the time at which each was loaded, in seconds since 1970; or what answers both
            paths.
    """
    path = request.path.partition("?")[0]
    try:
        if path in handlers:
            _check_method(request.method, "POST")
            return await handlers[path](request)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _check_method(request.method, "GET")
            return await models(request) if callable(models) else _models(model_in(request.path), models)
        raise Refusal(f"Invalid URL ({request.method} {path}).", status=404, code="unknown_url")
    except Exception as error:  # noqa: BLE001  an application never raises; only an InputError is worded
        return refusal_of(error).reply()


def model_in(path: str) -> str:
    """Return the name in /v1/models/NAME, which may hold slashes; empty for the list."""
    return urllib.parse.unquote(path.partition("?")[0].removeprefix("/v1/models").removeprefix("/"))


def unknown_model(name: str) -> Refusal:
    """Return the refusal of a model that is not served."""
    return Refusal(f"The model {name!r} does not exist.", status=404, param="model", code="model_not_found")


def _check_method(method: str, due: str) -> None:
    if method != due:
        raise Refusal(
            f"Not allowed to {method} here: this path takes {due}.",
            status=405,
            code="method_not_allowed",
            headers={"allow": due},
        )


def _models(name: str, models: Mapping[str, int]) -> Reply:
    listed = [
        {"id": each, "object": "model", "created": at, "owned_by": "cloister"} for each, at in models.items()
    ]
    if not name:
        return json_reply({"object": "list", "data": listed})
    for each in listed:
        if each["id"] == name:
            return json_reply(each)
    raise unknown_model(name)
