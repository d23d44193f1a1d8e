"""What a client finds behind the exchange: applications that answer requests as an OpenAI server does.

    OpenAIApp(engine)            a language model in this process: chat, completions, embeddings, models
    LoopbackApp(connect, names)  any OpenAI-compatible server on this machine's loopback, passed through
    TableApp(predictor, name)    a released table model: rows in, predictions out
    SealingApp(inner)            around any of them: a reply that a request asks to be sealed to its readers

Each is a `cloister.inference.application.Application`: a request in the clear comes in, a reply in the
clear goes out. They run in the walled worker, open no files and no sockets of their own, and keep nothing
of a request once it is answered. What a client sends never makes them raise: every refusal is a reply with
an OpenAI error object. `aclose` is a coroutine of all four.
"""

from cloister.inference.openai.app import OpenAIApp
from cloister.inference.openai.loopback import LoopbackApp
from cloister.inference.openai.sealing import SealingApp
from cloister.inference.openai.table import TableApp

__all__ = ["LoopbackApp", "OpenAIApp", "SealingApp", "TableApp"]
