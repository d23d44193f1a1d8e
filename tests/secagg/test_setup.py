from __future__ import annotations

import pytest
from tests.secagg.network import MODEL, Network, context, identity, vectors

from cloister.errors import InputError, ProtocolError
from cloister.secagg import SecureSumHub, SecureSumSite, messages


@pytest.fixture
def fresh() -> Network:
    return Network(context(4, view="none"), set_up=False)


def test_hub_and_sites_end_with_one_digest(fresh):
    fresh.finish_setup(fresh.deal(fresh.announce()))
    digests = {site.setup_digest for site in fresh.sites.values()} | {fresh.hub.setup_digest}
    assert len(digests) == 1
    other = Network(fresh.context)
    assert other.hub.setup_digest not in digests


def test_messages_asked_for_again_are_the_same_bytes(fresh):
    site = fresh.sites["site-1"]
    assert site.announce() == site.announce()
    announcements = fresh.announce()
    assert site.deal(announcements) == site.deal(announcements)
    assert fresh.hub.on_announcement("site-1", site.announce()) is None
    fresh.deal(announcements)
    assert fresh.hub.on_deal("site-1", site.deal(announcements)) is None


def test_the_order_of_steps_is_kept(fresh):
    site, hub = fresh.sites["site-1"], fresh.hub
    with pytest.raises(ProtocolError, match="out of turn"):
        site.finish_setup(b"")
    with pytest.raises(ProtocolError, match="not complete"):
        site.upload(0, vectors(1, 32, 3)[0], MODEL)
    with pytest.raises(ProtocolError, match="not complete"):
        site.answer(b"")
    with pytest.raises(ProtocolError, match="not complete"):
        hub.begin(0)
    with pytest.raises(ProtocolError, match="before all had announced"):
        hub.on_deal("site-1", b"")
    bundles = fresh.deal(fresh.announce())
    fresh.finish_setup(bundles)
    with pytest.raises(ProtocolError, match="out of turn"):
        site.finish_setup(bundles["site-1"])
    with pytest.raises(ProtocolError, match="is complete"):
        site.deal([])
    assert site.setup_digest == hub.setup_digest  # the refusals changed nothing
    with pytest.raises(ProtocolError, match="no attempt has begun"):
        hub.close()


def test_a_wrong_set_up_ends_the_epoch_and_erases(fresh):
    bundles = fresh.deal(fresh.announce())
    site = fresh.sites["site-1"]
    with pytest.raises(ProtocolError):
        site.finish_setup(bundles["site-2"])
    for step in (lambda: site.finish_setup(bundles["site-1"]), lambda: site.deal([])):
        with pytest.raises(ProtocolError, match="erased"):
            step()
    assert site._secrets is None


def test_the_share_key_is_erased_with_the_set_up(fresh):
    fresh.finish_setup(fresh.deal(fresh.announce()))
    for site in fresh.sites.values():
        assert site._secrets._share_key is None
        assert site._deal is None


def test_the_epoch_key_is_one_for_all_and_only_under_hub_view_none(fresh):
    fresh.finish_setup(fresh.deal(fresh.announce()))
    keys = {site._secrets.epoch_key for site in fresh.sites.values()}
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    plain = Network(context(4))
    assert {site._secrets.epoch_key for site in plain.sites.values()} == {b""}


def test_end_erases_and_may_be_called_again():
    net = Network(context(3))
    site = net.sites["site-0"]
    held = [attempt._held for attempt in site._secrets.attempts]
    site.end()
    site.end()
    assert all(not any(buffer) for buffer in held)
    with pytest.raises(ProtocolError, match="erased"):
        site.upload(0, vectors(1, 32, 3)[0], MODEL)


def test_an_identity_outside_the_roster_cannot_take_part():
    with pytest.raises(InputError, match="not on the roster"):
        SecureSumSite(context(3), identity(7))


def test_every_site_gets_its_parcels_and_no_other(fresh):
    bundles = fresh.deal(fresh.announce())
    parcels = [
        parcel
        for index, name in enumerate(fresh.names)
        for dealer, parcel in enumerate(
            messages.decode(bundles[name], messages.Bundle, fresh.context, None).sealed
        )
        if dealer != index
    ]
    assert len(set(parcels)) == len(parcels) == 12


def test_a_hub_of_another_epoch_takes_nothing(fresh):
    other = SecureSumHub(context(4, view="none", epoch=2))
    with pytest.raises(ProtocolError, match="another plan, roster or epoch"):
        other.on_announcement("site-0", fresh.sites["site-0"].announce())


def test_test_randomness_reaches_keys_and_seeds():
    def counting(start: int):
        state = [start]

        def draw(count: int) -> bytes:
            state[0] += 1
            return state[0].to_bytes(count, "big")

        return draw

    ctx = context(3)
    keys = [
        SecureSumSite(ctx, identity(0), insecure_test_random=counting(n)).announce() for n in (1, 1, 1000)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert SecureSumSite(ctx, identity(0)).announce() != SecureSumSite(ctx, identity(0)).announce()
