"""The private exchange: how a request reaches an enclave, and its answer the client, unread in between.

Client: `Asking` on a `KeySet` that accepted evidence vouches for. Server: `KeyRing.open`, then `Answering`.
Both are state machines: they take bytes and times and return bytes and events. Over HTTP, `EXCHANGE_PATH`
takes one request and returns its answer, `KEYS_PATH` returns `Published`; a refusal is `{"refused": word}`
with the status in `REFUSAL_STATUS`.
"""

from typing import Final

from cloister.inference.exchange.client import Asking
from cloister.inference.exchange.frames import FrameOpener, FrameSealer
from cloister.inference.exchange.keyset import PURPOSE, KeySet, Published, keys_report_data
from cloister.inference.exchange.messages import Ending, RequestHead, ResponseHead
from cloister.inference.exchange.receipt import Receipt, open_receipt, salted, sign_receipt
from cloister.inference.exchange.refusals import REFUSAL_STATUS, Refused, StaleKey, TooLarge
from cloister.inference.exchange.sealing import ANSWER_PREFIX, REQUEST_PREFIX
from cloister.inference.exchange.server import MAX_BODY, Answering, KeyRing

EXCHANGE_PATH: Final = "/.well-known/cloister/exchange"
"""Where a service takes requests: POST."""
KEYS_PATH: Final = "/.well-known/cloister/keys"
"""Where a service shows keys and evidence: GET, with ?nonce= and 64 hexadecimal digits."""

__all__ = [
    "ANSWER_PREFIX",
    "EXCHANGE_PATH",
    "KEYS_PATH",
    "MAX_BODY",
    "PURPOSE",
    "REFUSAL_STATUS",
    "REQUEST_PREFIX",
    "Answering",
    "Asking",
    "Ending",
    "FrameOpener",
    "FrameSealer",
    "KeyRing",
    "KeySet",
    "Published",
    "Receipt",
    "Refused",
    "RequestHead",
    "ResponseHead",
    "StaleKey",
    "TooLarge",
    "keys_report_data",
    "open_receipt",
    "salted",
    "sign_receipt",
]
