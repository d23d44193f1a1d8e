from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange.messages import Ending, RequestHead, ResponseHead, decode, encode

PACK = msgspec.msgpack.Encoder().encode
FIELDS: dict[str, Any] = {
    "method": "POST",
    "path": "/v1/x?y=1",
    "headers": {"accept": "*/*", "content-type": "text/plain"},
    "policy": "ab" * 32,
    "credential": "clst-1",
}

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60
)
headers = st.dictionaries(names, values, max_size=20)


@given(headers, st.integers(200, 599), st.text("/abc%2E?=&", max_size=50))
def test_messages_come_back(given_headers: dict[str, str], status: int, path: str) -> None:
    for message in (
        RequestHead("GET", "/" + path, given_headers, "", "token"),
        ResponseHead(status, given_headers),
        Ending(b"receipt", bytes(32), bytes(range(32))),
    ):
        data = encode(message)
        assert decode(data, type(message)) == message
        assert encode(decode(data, type(message))) == data


def test_the_order_of_headers_does_not_show() -> None:
    forward = ResponseHead(200, {"a": "1", "b": "2"})
    assert encode(forward) == encode(ResponseHead(200, {"b": "2", "a": "1"}))


@pytest.mark.parametrize(
    "changed",
    [
        {"method": ""},
        {"method": "post"},
        {"method": "GET /"},
        {"path": ""},
        {"path": "v1"},
        {"path": "http://elsewhere/"},
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/a#b"},
        {"path": "/\xe4"},
        {"path": "/" + "a" * 8192},
        {"headers": {"Accept": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"a b": "x"}},
        {"headers": {"a:": "x"}},
        {"headers": {"a": "x\r\ny: z"}},
        {"headers": {"a": "x\n"}},
        {"headers": {"a": "\x00"}},
        {"headers": {"a": "\u4f60"}},
        {"headers": {f"h{i}": "" for i in range(65)}},
        {"headers": {"a": "x" * 16_384}},
        {"policy": "ab"},
        {"policy": "AB" * 32},
        {"policy": "ab" * 32 + "\n"},
        {"credential": "x" * 4097},
        {"credential": "a\nb"},
    ],
)
def test_what_cannot_be_sent_is_refused_at_both_ends(changed: dict[str, Any]) -> None:
    fields = {**FIELDS, **changed}
    with pytest.raises(InputError) as caught:
        RequestHead(**fields)
    shown = str(caught.value)
    assert all(str(value) not in shown for value in changed.values() if value)
    with pytest.raises(IntegrityError):
        decode(PACK(fields), RequestHead)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\xff" * 40,
        PACK({**FIELDS, "more": 1}),
        PACK({key: FIELDS[key] for key in ("path", "headers", "policy", "credential")}),
        PACK({key: FIELDS[key] for key in reversed(FIELDS)}),  # another order
        PACK({**FIELDS, "headers": dict(reversed(FIELDS["headers"].items()))}),
        PACK({key: FIELDS[key] for key in ("method", "path")}),  # fields that have defaults are written
        PACK({**FIELDS, "method": 1}),
        PACK({**FIELDS, "path": b"/v1"}),
        PACK(FIELDS) + b"\x00",
        PACK(FIELDS)[:-1],
        b"\xdf\x00\x00\x00\x05" + PACK(FIELDS)[1:],  # a longer way to write the same map
        b"\x91" * 5000,
    ],
)
def test_what_is_not_in_its_one_form_is_refused(data: bytes) -> None:
    assert decode(PACK(FIELDS), RequestHead) == RequestHead(**FIELDS)
    with pytest.raises(IntegrityError, match="RequestHead"):
        decode(data, RequestHead)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for kind in (RequestHead, ResponseHead, Ending):
        with pytest.raises(IntegrityError):
            decode(data, kind)


@pytest.mark.parametrize("status", [-1, 0, 100, 199, 600])
def test_a_status_is_one_of_http(status: int) -> None:
    with pytest.raises(InputError):
        ResponseHead(status)


def test_an_ending_has_its_lengths() -> None:
    for bad in (
        (bytes(1901), bytes(32), bytes(32)),
        (b"", bytes(31), bytes(32)),
        (b"", bytes(32), bytes(33)),
    ):
        with pytest.raises(InputError):
            Ending(*bad)


def test_the_largest_head_fits_one_block() -> None:
    many = {f"{i:02}": "\xff" * 254 for i in range(64)}
    head = RequestHead("A" * 16, "/" + "a" * 8191, many, "ab" * 32, "c" * 4096)
    assert len(encode(head)) <= 65_531


def test_messages_show_nothing() -> None:
    for message in (RequestHead(**FIELDS), ResponseHead(200, {"a": "private"})):
        assert repr(message) == str(message) == f"<{type(message).__name__}>"
        assert message.__rich_repr__() == []
