from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.secagg.network import MODEL, Network, context, vectors

from cloister.errors import CloisterError, ProtocolError
from cloister.secagg import messages

CONTEXT = context(3)
SIGNED = messages.Signed(b"payload", bytes(64))


def test_what_is_encoded_is_decoded():
    request = messages.Request(bytes(32), 1, ["site-0"], [messages.Signature("site-1", bytes(64))])
    assert messages.decode(messages.encode(request), messages.Request, CONTEXT, None) == request


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: {**raw, "extra": 1},
        lambda raw: {key: value for key, value in raw.items() if key != "attempt"},
        lambda raw: {**raw, "attempt": "1"},
        lambda raw: {**raw, "attempt": -1},
        lambda raw: {**raw, "attempt": 2**40},
        lambda raw: {**raw, "setup": bytes(31)},
        lambda raw: {**raw, "setup": bytes(33)},
        lambda raw: {**raw, "survivors": [""]},
        lambda raw: {**raw, "survivors": ["x" * 64]},
        lambda raw: {**raw, "type": "shares"},
        lambda raw: {**raw, "signatures": [{"signer": "site-1", "signature": bytes(63)}]},
        lambda raw: [raw],
        lambda raw: None,
    ],
)
def test_what_is_not_exactly_such_a_message_is_refused(change):
    good = messages.encode(messages.Request(bytes(32), 1, ["site-0"], []))
    raw = msgspec.msgpack.decode(good)
    with pytest.raises(ProtocolError) as caught:
        messages.decode(msgspec.msgpack.encode(change(raw)), messages.Request, CONTEXT, "site-1")
    assert caught.value.peer == "site-1"


@pytest.mark.parametrize("tail", [b"\x00", b"\xc0"])
def test_trailing_bytes_are_refused(tail):
    with pytest.raises(ProtocolError):
        messages.decode(messages.encode(SIGNED) + tail, messages.Signed, CONTEXT, None)


def test_long_messages_are_refused_unread():
    with pytest.raises(ProtocolError, match="too long"):
        messages.decode(bytes(20_000), messages.Endorsement, CONTEXT, None)
    with pytest.raises(ProtocolError, match="too long"):
        messages.open_signed(bytes(20_000), messages.Announcement, "announcement", CONTEXT, "site-0")


@pytest.fixture(scope="module")
def traffic() -> tuple[Network, dict[str, bytes]]:
    """One valid message of each kind, from a run in which site-3 dropped out."""
    net = Network(context(4), set_up=False)
    announcements = net.announce()
    bundles = net.deal(announcements)
    seen = {
        "announcement": announcements[0],
        "deal": net.sites["site-0"].deal(announcements),
        "bundle": bundles["site-0"],
    }
    net.finish_setup(bundles)
    data = dict(zip(net.names[:3], vectors(3, 32, 5), strict=True))
    net.upload(0, data)
    seen["upload"] = net.sites["site-0"].upload(0, data["site-0"], MODEL)
    proposal = net.hub.close()
    seen["request"] = proposal["site-0"]
    seen["endorsement"] = net.sites["site-0"].answer(proposal["site-0"])
    certified = net.answer(proposal, net.names)
    assert certified is not None
    seen["certified"] = certified["site-0"]
    seen["shares"] = net.sites["site-0"].answer(certified["site-0"])
    return net, seen


KINDS = ["announcement", "deal", "bundle", "upload", "request", "endorsement", "certified", "shares"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_altered_bytes_never_raise_anything_but_our_errors(traffic, kind, data):
    net, seen = traffic
    altered = bytearray(seen[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(altered) - 1))
        altered[position] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(altered))) if data.draw(st.booleans()) else len(altered)
    feed(net, kind, bytes(altered[:cut]), seen)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), raw=st.binary(max_size=200))
def test_garbage_never_raises_anything_but_our_errors(traffic, kind, raw):
    net, seen = traffic
    feed(net, kind, raw, seen)


def feed(net: Network, kind: str, raw: bytes, seen: dict[str, bytes]) -> None:
    """Give bytes to whoever reads this kind of message; for the set-up, to fresh machines."""
    with contextlib.suppress(CloisterError):
        if kind == "announcement":
            Network(net.context, set_up=False).hub.on_announcement("site-0", raw)
        elif kind == "deal":
            fresh = Network(net.context, set_up=False)
            fresh.announce()
            fresh.hub.on_deal("site-0", raw)
        elif kind == "bundle":
            fresh = Network(net.context, set_up=False)
            fresh.deal(fresh.announce())
            fresh.sites["site-0"].finish_setup(raw)
        elif kind == "upload":
            net.hub._round = None
            net.hub.begin(0)
            net.hub.on_upload("site-0", raw)
        elif kind in ("request", "certified"):
            before = net.sites["site-0"]._choice
            with contextlib.suppress(CloisterError):
                net.sites["site-0"].answer(raw)
            assert net.sites["site-0"]._choice == before
        else:
            net.hub._round = None
            net.upload(0, dict(zip(net.names[:3], vectors(3, 32, 5), strict=True)))
            proposal = net.hub.close()
            if kind == "shares":
                net.answer(proposal, net.names[:3])
            net.hub.on_answer("site-0", raw)


def test_an_upload_costs_its_elements_and_little_more():
    for bits, limit in ((32, 4.1), (16, 2.1), (8, 1.05)):
        net = Network(context(3, bits=bits))
        message = net.sites["site-0"].upload(0, np.zeros(10_000, dtype=f"u{bits // 8}"), MODEL)
        assert len(message) / 10_000 <= limit
        assert len(message) - 10_000 * bits // 8 < 300
