"""The package's contract is what it exports."""

from __future__ import annotations

import cloister.inference.exchange as exchange


def test_exports() -> None:
    assert set(exchange.__all__) == {
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
    }
    assert all(hasattr(exchange, name) for name in exchange.__all__)


def test_paths_are_those_that_relays_forward() -> None:
    assert exchange.EXCHANGE_PATH == "/.well-known/cloister/exchange"
    assert exchange.KEYS_PATH == "/.well-known/cloister/keys"
    assert (exchange.REQUEST_PREFIX, exchange.ANSWER_PREFIX) == (1201, 33)
