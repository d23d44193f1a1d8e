from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.secagg.network import MODEL, Network, context, identity, ring_sum, vectors

from cloister.errors import InputError, IntegrityError, ProtocolError, RoundBurnt
from cloister.secagg import SecureSumHub, SecureSumSite, SiteSnapshot
from cloister.secagg.restore import HubSnapshot


def restarted(net: Network, name: str) -> SecureSumSite:
    """A site from what a perfect journal has of it, through bytes."""
    site = net.sites[name]
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(site.snapshot()), type=SiteSnapshot)
    number = int(name.removeprefix("site-"))
    return SecureSumSite.restore(
        net.context, identity(number), kept, site.attempt, site.uploaded, site.choice
    )


@pytest.fixture(params=["sum", "none"])
def net(request) -> Network:
    return Network(context(4, attempts=3, view=request.param))  # t = m = 3


@pytest.fixture
def data(net) -> dict[str, np.ndarray]:
    return dict(zip(net.names, vectors(4, 32, 20), strict=True))


def test_a_restored_site_sends_the_same_bytes(net, data):
    net.upload(1, data)
    before = net.sites["site-1"]
    net.sites["site-1"] = after = restarted(net, "site-1")
    assert (after.attempt, after.uploaded, after.choice) == (1, before.uploaded, None)
    assert after.setup_digest == before.setup_digest
    assert after.announce() == before.announce()
    assert after.upload(1, data["site-1"], MODEL) == before.uploaded
    requests = net.hub.close()
    assert after.answer(requests["site-1"]) == before.answer(requests["site-1"])
    assert restarted(net, "site-1").choice == (0, 1, 2, 3)
    net.answer(requests, net.names)
    assert net.opened(net.hub.result()).tolist() == ring_sum(data.values(), 32)


def test_a_restored_site_goes_on_with_later_attempts(net, data):
    for attempt in range(3):
        for name in net.names:
            net.sites[name] = restarted(net, name)
        assert net.opened(net.run(attempt, data)).tolist() == ring_sum(data.values(), 32)


def test_secrets_of_earlier_attempts_are_not_taken_up(net):
    kept = net.sites["site-0"].snapshot()  # of a time when all were there
    site = SecureSumSite.restore(net.context, identity(0), kept, 2, None, None)
    assert site.snapshot().attempts[:2] == [b"", b""]
    with pytest.raises(ProtocolError, match="is over"):
        site.upload(1, vectors(1, 32, 20)[0], MODEL)


def test_a_site_is_restored_only_whole_and_where_it_belongs(net, data):
    net.upload(1, data)
    site = net.sites["site-0"]
    kept, upload = site.snapshot(), site.uploaded
    other = Network(net.context)
    twin = other.sites["site-0"].snapshot()
    replace = msgspec.structs.replace
    for wrong in (
        replace(kept, attempts=kept.attempts[:-1]),
        replace(kept, attempts=[*kept.attempts[:-1], b""]),
        replace(kept, attempts=[*kept.attempts[:-1], kept.attempts[-1][:-1]]),
        replace(kept, attempts=twin.attempts),
        replace(kept, announcements=kept.announcements[:-1]),
        replace(kept, announcements=kept.announcements[::-1]),
        replace(kept, announcements=twin.announcements),
        replace(kept, headers=twin.headers),
        replace(kept, epoch_key=b"" if kept.epoch_key else bytes(32)),
    ):
        with pytest.raises(IntegrityError, match="what was kept of an epoch"):
            SecureSumSite.restore(net.context, identity(0), wrong, 1, upload, None)
    full, strange = (0, 1, 2, 3), net.sites["site-1"].uploaded
    for attempt, uploaded, choice in (
        (3, None, None),
        (-2, None, None),
        (-1, upload, None),
        (-1, None, full),
        (2, upload, None),
        (1, strange, None),
        (1, upload[:-1], None),
        (1, upload, (0, 1)),
        (1, upload, (0, 1, 4)),
        (1, upload, (-1, 0, 1)),
        (1, upload, (1, 0, 2)),
        (1, None, full),
    ):
        with pytest.raises(IntegrityError, match="what was kept of an epoch"):
            SecureSumSite.restore(net.context, identity(0), kept, attempt, uploaded, choice)
    with pytest.raises(IntegrityError):
        SecureSumSite.restore(context(4, attempts=3, epoch=2), identity(0), kept, 1, upload, None)
    with pytest.raises(IntegrityError):
        SecureSumSite.restore(net.context, identity(1), kept, -1, None, None)
    with pytest.raises(InputError, match="roster"):
        SecureSumSite.restore(net.context, identity(9), kept, -1, None, None)


def test_nothing_secret_is_printed(net):
    assert repr(net.sites["site-0"].snapshot()) == "<SiteSnapshot: secret>"


def test_there_is_no_snapshot_before_the_set_up_or_after_the_end(net):
    unready = Network(net.context, set_up=False)
    for party in (unready.sites["site-0"], unready.hub):
        with pytest.raises(ProtocolError, match="not complete"):
            party.snapshot()
    net.sites["site-0"].end()
    with pytest.raises(ProtocolError, match="over"):
        net.sites["site-0"].snapshot()


# --- the hub -----------------------------------------------------------------------------------------


def hub_restarts(net: Network) -> None:
    net.hub = SecureSumHub.restore(net.context, net.hub.snapshot())


def test_a_hub_that_died_collects_again(net, data):
    net.upload(0, data)
    digest = net.hub.setup_digest
    hub_restarts(net)
    assert net.hub.setup_digest == digest
    net.hub.resume_attempt(0, net.sites["site-0"].model_tag(0, MODEL), 20)
    for name in net.names:
        net.hub.on_upload(name, memoryview(bytearray(net.sites[name].uploaded)))
    net.answer(net.hub.close(), net.names)
    assert net.opened(net.hub.result()).tolist() == ring_sum(data.values(), 32)
    with pytest.raises(ProtocolError, match="was used"):
        net.hub.resume_attempt(0)
    assert net.run(1, data).survivors == net.names


def test_a_hub_that_died_after_closing_adds_the_same_vectors(net, data):
    net.upload(0, {name: data[name] for name in net.names[1:]})
    net.answer(net.hub.close(), net.names)
    hub_restarts(net)
    net.hub.resume_attempt(0, survivors=reversed(net.names[1:]))
    for name in net.names[1:]:
        net.hub.on_upload(name, net.sites[name].uploaded)
    requests = net.hub.close()
    while requests:
        requests = net.answer(requests, net.names)
    result = net.hub.result()
    assert result.survivors == net.names[1:]
    assert net.opened(result).tolist() == ring_sum([data[name] for name in net.names[1:]], 32)


def test_nobody_else_is_added_after_a_restart_and_nobody_is_left_out(net, data):
    uploads = {name: net.sites[name].upload(0, data[name], MODEL) for name in net.names}
    for missing in (None, "site-2"):
        hub_restarts(net)
        net.hub.resume_attempt(0, survivors=net.names[:3])
        for name, upload in uploads.items():
            if name != missing:
                net.hub.on_upload(name, upload)
        assert "site-3" not in net.hub.uploaded
        if missing is None:
            net.hub.close()
        else:
            with pytest.raises(RoundBurnt, match="did not send it again"):
                net.hub.close()
    hub_restarts(net)
    with pytest.raises(ProtocolError, match="shorter than the minimum"):
        net.hub.resume_attempt(0, survivors=net.names[:2])
    with pytest.raises(ProtocolError, match="not on the roster"):
        net.hub.resume_attempt(0, survivors=[*net.names[:3], "stranger"])


def test_a_hub_is_restored_only_from_a_snapshot_of_its_epoch(net):
    good = net.hub.snapshot()
    kept = msgspec.msgpack.decode(good, type=HubSnapshot)
    twin = msgspec.msgpack.decode(Network(net.context).hub.snapshot(), type=HubSnapshot)
    replace = msgspec.structs.replace
    for wrong in (
        replace(kept, announcements=twin.announcements),
        replace(kept, headers=kept.headers[::-1]),
        replace(kept, share_hashes=kept.share_hashes[:-1]),
        replace(kept, share_hashes=[*kept.share_hashes[:-1], b""]),
        [],
    ):
        with pytest.raises(IntegrityError, match="what was kept of an epoch"):
            SecureSumHub.restore(net.context, msgspec.msgpack.encode(wrong))
    with pytest.raises(IntegrityError):
        SecureSumHub.restore(context(4, attempts=3, epoch=2), good)


def test_requests_can_be_sent_again_until_they_are_answered(net, data):
    assert net.hub.request_for("site-0") is None
    net.upload(0, {name: data[name] for name in net.names[1:]})
    assert net.hub.request_for("site-0") is None
    proposal = net.hub.close()
    assert [net.hub.request_for(name) for name in net.names] == list(proposal.values())
    net.answer(proposal, net.names[:2])
    assert [net.hub.request_for(name) is None for name in net.names] == [True, True, False, False]
    certified = net.answer(proposal, net.names[2:3])
    assert [net.hub.request_for(name) for name in net.names] == list(certified.values())
    net.answer(certified, net.names[:1])
    assert [net.hub.request_for(name) is None for name in net.names] == [True, False, False, False]
    net.answer(certified, net.names[1:3])
    assert net.hub.result() is not None
    assert net.hub.request_for("site-3") is None


def test_one_that_returned_is_counted_on_and_a_liar_is_not(net, data):
    net.hub.returned("site-0")  # nothing has begun
    net.upload(0, data)
    requests = net.hub.close()
    net.hub.lost("site-0")
    net.hub.returned("site-0")
    net.hub.lost("site-1")  # three are left
    with pytest.raises(RoundBurnt):
        net.hub.on_answer("site-2", b"")
    net.upload(1, data)
    requests = net.hub.close()
    with pytest.raises(ProtocolError):
        net.hub.on_answer("site-2", b"")
    net.hub.returned("site-2")
    with pytest.raises(RoundBurnt):
        net.hub.lost("site-0")
    assert net.answer(requests, net.names) is None
