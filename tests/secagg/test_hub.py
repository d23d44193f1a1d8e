from __future__ import annotations

import numpy as np
import pytest
from tests.secagg.network import MODEL, Network, context, ring_sum, vectors

from cloister.errors import ProtocolError, RoundBurnt
from cloister.secagg import messages, model_digest


@pytest.fixture
def net() -> Network:
    return Network(context(4, attempts=5))  # t = m = 3


@pytest.fixture
def data(net) -> dict[str, np.ndarray]:
    return dict(zip(net.names, vectors(4, 32, 20), strict=True))


def without(data, *names):
    return {name: vector for name, vector in data.items() if name not in names}


def test_uploads_are_added_and_forgotten(net, data):
    net.upload(0, data)
    assert net.hub.uploaded == frozenset(net.names)
    arrays = [value for value in vars(net.hub._round).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 1
    assert arrays[0].size == 20


def test_a_repeated_upload_counts_once(net, data):
    net.upload(0, data)
    net.hub.on_upload("site-1", net.sites["site-1"].upload(0, data["site-1"], MODEL))
    net.answer(net.hub.close(), net.names)
    assert net.hub.result().total.tolist() == ring_sum(data.values(), 32)


def test_an_upload_after_closing_is_ignored(net, data):
    net.upload(0, without(data, "site-3"))
    requests = net.hub.close()
    late = net.sites["site-3"].upload(0, data["site-3"], MODEL)
    net.hub.on_upload("site-3", late)
    assert "site-3" not in net.hub.uploaded
    while requests:
        requests = net.answer(requests, net.names)
    assert net.hub.result().survivors == ("site-0", "site-1", "site-2")
    assert net.hub.result().total.tolist() == ring_sum(without(data, "site-3").values(), 32)


def test_fewer_than_the_minimum_burn_the_attempt_and_not_the_next(net, data):
    net.upload(0, without(data, "site-2", "site-3"))
    with pytest.raises(RoundBurnt, match="the minimum is 3"):
        net.hub.close()
    assert net.hub.result() is None
    assert net.run(1, data).total.tolist() == ring_sum(data.values(), 32)


def test_uploads_that_do_not_belong_are_refused(net, data):
    net.hub.begin(1)
    other = Network(net.context)
    site = net.sites["site-0"]
    for sender, message in (
        ("site-0", site.upload(0, data["site-0"], MODEL)),
        ("site-1", site.upload(1, data["site-0"], MODEL)),
        ("site-0", other.sites["site-0"].upload(1, data["site-0"], MODEL)),
        ("stranger", site.upload(1, data["site-0"], MODEL)),
    ):
        with pytest.raises(ProtocolError) as caught:
            net.hub.on_upload(sender, message)
        assert caught.value.peer == sender
    assert net.hub.uploaded == frozenset()


def test_model_and_size_can_be_fixed_beforehand(net, data):
    net.hub.begin(0, model_tag=model_digest(MODEL), size=20)
    with pytest.raises(ProtocolError, match="another model") as caught:
        net.hub.on_upload("site-0", net.sites["site-0"].upload(0, data["site-0"], MODEL + 1))
    assert caught.value.peer == "site-0"
    with pytest.raises(ProtocolError, match="76 bytes"):
        net.hub.on_upload("site-1", net.sites["site-1"].upload(0, data["site-1"][1:], MODEL))
    net.hub.on_upload("site-2", net.sites["site-2"].upload(0, data["site-2"], MODEL))
    assert net.hub.uploaded == {"site-2"}


def test_a_payload_that_is_no_whole_number_of_elements_is_refused(net):
    net.hub.begin(0)
    for payload in (b"", b"123"):
        message = messages.Upload(net.hub.setup_digest, 0, "site-0", bytes(32), memoryview(payload))
        with pytest.raises(ProtocolError):
            net.hub.on_upload("site-0", messages.encode(message))


def test_attempts_move_forward(net, data):
    net.hub.begin(2)
    for attempt in (0, 2):
        with pytest.raises(ProtocolError, match="was used"):
            net.hub.begin(attempt)
    with pytest.raises(ProtocolError, match="not one of"):
        net.hub.begin(5)


def test_t_answers_suffice_for_the_full_list(net, data):
    net.upload(0, data)
    requests = net.hub.close()
    net.answer(requests, net.names[:2])
    assert net.hub.result() is None
    net.answer(requests, net.names[2:3])
    assert net.hub.result().total.tolist() == ring_sum(data.values(), 32)
    assert net.hub.on_answer("site-3", net.sites["site-3"].answer(requests["site-3"])) is None


def test_t_signatures_then_t_answers(net, data):
    net.upload(0, without(data, "site-1"))
    requests = net.hub.close()
    certified = net.answer(requests, ("site-0", "site-1", "site-2"))  # the one that is missing signs too
    assert certified is not None
    assert (
        net.hub.on_answer("site-3", net.sites["site-3"].answer(requests["site-3"])) is None
    )  # late, and not wrong
    net.answer(certified, ("site-1", "site-2", "site-3"))
    assert net.hub.result().total.tolist() == ring_sum(without(data, "site-1").values(), 32)


def test_a_repeated_answer_counts_once(net, data):
    net.upload(0, data)
    requests = net.hub.close()
    for _ in range(3):
        net.answer(requests, net.names[:2])
    assert net.hub.result() is None


def test_lost_sites_burn_the_attempt_once_too_few_are_left(net, data):
    net.upload(0, without(data, "site-3"))
    requests = net.hub.close()
    net.hub.lost("site-3")
    with pytest.raises(RoundBurnt) as caught:
        net.hub.lost("site-0")
    assert caught.value.peer == "site-0"
    assert net.hub.on_answer("site-1", net.sites["site-1"].answer(requests["site-1"])) is None
    assert net.hub.result() is None


def test_sites_lost_while_collecting_count_when_closing(net, data):
    net.upload(0, without(data, "site-3"))
    net.hub.lost("site-3")
    net.hub.lost("site-2")
    with pytest.raises(RoundBurnt, match="still answer"):
        net.hub.close()


def test_one_that_answered_and_died_still_counts(net, data):
    net.upload(0, data)
    requests = net.hub.close()
    net.answer(requests, ["site-0"])
    net.hub.lost("site-0")
    net.hub.lost("site-1")
    net.answer(requests, ["site-2", "site-3"])
    assert net.hub.result() is not None


def test_a_signature_that_is_not_the_senders_is_refused(net, data):
    net.upload(0, without(data, "site-3"))
    requests = net.hub.close()
    good = messages.decode(
        net.sites["site-0"].answer(requests["site-0"]), messages.Endorsement, net.context, None
    )
    for wrong in (
        messages.Endorsement(good.setup, 0, "site-1", good.signature),
        messages.Endorsement(good.setup, 1, "site-1", good.signature),
        messages.Endorsement(bytes(32), 0, "site-1", good.signature),
        good,
    ):
        with pytest.raises(ProtocolError) as caught:
            net.hub.on_answer("site-1", messages.encode(wrong))
        assert caught.value.peer == "site-1"
    assert not net.hub._round._signatures


def test_shares_for_another_list_are_refused(net, data):
    net.upload(0, data)
    requests = net.hub.close()
    good = messages.decode(net.sites["site-0"].answer(requests["site-0"]), messages.Shares, net.context, None)
    for wrong in (
        messages.Shares(good.setup, 0, "site-0", bytes(32), good.shares),
        messages.Shares(good.setup, 1, "site-0", good.choice, good.shares),
        messages.Shares(good.setup, 0, "site-1", good.choice, good.shares),
    ):
        with pytest.raises(ProtocolError, match="another") as caught:
            net.hub.on_answer("site-0", messages.encode(wrong))
        assert caught.value.peer == "site-0"


def test_liars_are_not_counted_on(net, data):
    """With t = 3 of 4, two who answer wrongly leave too few."""
    net.upload(0, data)
    requests = net.hub.close()
    with pytest.raises(ProtocolError):
        net.hub.on_answer("site-0", b"")
    with pytest.raises(RoundBurnt) as caught:
        net.hub.on_answer("site-1", b"")
    assert caught.value.peer == "site-1"
    assert net.answer(requests, ["site-2", "site-3"]) is None
    assert net.hub.result() is None


def test_answers_in_the_wrong_phase_are_refused(net, data):
    with pytest.raises(ProtocolError, match="no attempt has begun"):
        net.hub.on_answer("site-0", b"")
    net.upload(0, data)
    with pytest.raises(ProtocolError, match="before any request"):
        net.hub.on_answer("site-0", b"")
    net.hub.close()
    with pytest.raises(ProtocolError, match="order of the protocol"):
        net.hub.close()


def test_burning_drops_what_was_collected(net, data):
    net.upload(0, data)
    requests = net.hub.close()
    net.hub.burn()
    assert net.answer(requests, net.names) is None
    assert net.hub.result() is None
    assert net.hub._round._total is None
    assert net.run(1, data).total.tolist() == ring_sum(data.values(), 32)


def test_a_site_cannot_announce_or_deal_twice_differently():
    net = Network(context(3), set_up=False)
    twin = Network(net.context, set_up=False)
    net.hub.on_announcement("site-0", net.sites["site-0"].announce())
    with pytest.raises(ProtocolError, match="announced twice") as caught:
        net.hub.on_announcement("site-0", twin.sites["site-0"].announce())
    assert caught.value.peer == "site-0"
    for name in ("site-1", "site-2"):
        announcements = net.hub.on_announcement(name, net.sites[name].announce())
    net.hub.on_deal("site-0", net.sites["site-0"].deal(announcements))
    deal = messages.decode(net.sites["site-0"].deal(announcements), messages.Deal, net.context, None)
    with pytest.raises(ProtocolError, match="dealt twice"):
        net.hub.on_deal(
            "site-0", messages.encode(messages.Deal(deal.header, deal.sealed[::-1], deal.share_hashes))
        )
