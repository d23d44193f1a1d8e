"""The secure sum against a malicious hub, c colluding sites, and sites that lie in the set-up."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg.network import MODEL, Network, context, identity, ring_sum, vectors

from cloister.crypto import SECRET_ACCESS, AgreementKey, apply_masks, combine, sha256
from cloister.errors import IntegrityError, PlanError, ProtocolError, RoundBurnt
from cloister.secagg import Encoding, Params, SecureSumSite, dealing, derivation, messages, setup
from cloister.secagg.masking import upload_keys

SIGMAS = 8.0  # of the chi-square statistic: false alarms are rarer than one in 10**9


def looks_uniform(data: bytes | memoryview) -> bool:
    """Chi-square over byte values."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - 255) < SIGMAS * np.sqrt(2 * 255)


def payload(message: bytes, net: Network) -> np.ndarray:
    upload = messages.decode(message, messages.Upload, net.context, None)
    return np.frombuffer(upload.vector, dtype=f"<u{net.context.bits // 8}")


def request(
    net: Network, attempt: int, survivors: list[str], signatures: list[messages.Signature] | None = None
) -> bytes:
    return messages.encode(messages.Request(net.hub.setup_digest, attempt, survivors, signatures or []))


def colluders_sign(
    net: Network, attempt: int, survivors: list[str], who: list[str]
) -> list[messages.Signature]:
    """Colluders sign whatever the hub likes, with their real keys and without asking their machines."""
    indices = tuple(net.context.roster.index(name) for name in survivors)
    statement = derivation.choice_statement(net.hub.setup_digest, attempt, indices)
    return [messages.Signature(name, identity(int(name[5:])).sign(statement)) for name in who]


def endorse(net: Network, name: str, attempt: int, survivors: list[str]) -> messages.Signature:
    reply = net.sites[name].answer(request(net, attempt, survivors))
    endorsed = messages.decode(reply, messages.Endorsement, net.context, name)
    return messages.Signature(name, endorsed.signature)


def held(net: Network, holder: str, dealer: int, attempt: int, *, of_seed: bool) -> bytes:
    """What a colluder knows: its own shares."""
    start = 66 * dealer + 33 * of_seed
    return bytes(net.sites[holder]._secrets.attempts[attempt]._held[start : start + 33])


@pytest.fixture
def net() -> Network:
    return Network(context(5))  # c = 1, t = m = 4


def uploaded(net: Network, size: int = 8, attempt: int = 0) -> dict[str, np.ndarray]:
    data = dict(zip(net.names, vectors(5, net.context.bits, size), strict=True))
    for name in net.names:
        net.sites[name].upload(attempt, data[name], MODEL)
    return data


# --- a hub that shows different things to different sites --------------------------------------------


def test_two_survivor_lists_neither_is_certified(net):
    uploaded(net)
    one, two = list(net.names[:4]), list(net.names[1:])
    bad = ["site-4"]  # the colluder
    for_one = [endorse(net, name, 0, one) for name in ("site-0", "site-1")] + colluders_sign(net, 0, one, bad)
    for_two = [endorse(net, name, 0, two) for name in ("site-2", "site-3")] + colluders_sign(net, 0, two, bad)
    for name, other, signatures in (
        ("site-0", one, for_one),
        ("site-1", two, for_two),
        ("site-2", two, for_two),
        ("site-3", one, for_one),
    ):
        with pytest.raises(ProtocolError):
            net.sites[name].answer(request(net, 0, other, signatures))
        with pytest.raises(ProtocolError):  # nor does anybody who chose one list sign the other
            net.sites[name].answer(request(net, 0, two if name in ("site-0", "site-1") else one))


def test_the_full_list_to_some_and_a_short_one_to_others(net):
    uploaded(net)
    full, short = list(net.names), list(net.names[:4])
    seeds = [net.sites[name].answer(request(net, 0, full)) for name in ("site-0", "site-1")]
    assert all(messages.decode(reply, messages.Shares, net.context, None) for reply in seeds)
    signatures = [endorse(net, name, 0, short) for name in ("site-2", "site-3")]
    signatures += colluders_sign(net, 0, short, ["site-4"])
    for name in ("site-0", "site-1", "site-2", "site-3"):
        with pytest.raises(ProtocolError):
            net.sites[name].answer(request(net, 0, short, signatures))
    # seeds: two honest answers and the colluder's share; keys: the colluder's share alone; both below t = 4
    assert len(seeds) + 1 < net.context.params.threshold


def test_an_upload_after_another_list_was_chosen_is_not_made(net):
    short = list(net.names[1:])
    net.sites["site-0"].answer(request(net, 0, short))
    with pytest.raises(ProtocolError, match="counts as dropped"):
        net.sites["site-0"].upload(0, vectors(1, 32, 8)[0], MODEL)


@st.composite
def campaigns(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]]]:
    n = draw(st.integers(3, 6))
    action = st.tuples(st.integers(0, 3), st.integers(0, n - 1), st.integers(0, 2))
    return n, draw(st.lists(action, min_size=10, max_size=60))


def play(n: int, actions: list[tuple[int, int, int]], draw_list: Callable[[int], list[str]]) -> None:
    """A hub that does what it likes in attempt 0, with c colluders; then count what it holds.

    Actions: 0 a site uploads; 1 a list is proposed to it; 2 it gets one with all signatures; 3 the full list.
    """
    net = Network(context(n, attempts=1))
    params, names = net.context.params, net.names
    colluders, honest = names[n - params.colluders :], names[: n - params.colluders]
    lists = [draw_list(i) for i in range(3)]
    signatures: list[dict[str, messages.Signature]] = [
        {s.signer: s for s in colluders_sign(net, 0, survivors, list(colluders))} for survivors in lists
    ]
    answered: dict[tuple[str, ...], set[str]] = {}
    vector = np.zeros(1, dtype=np.uint32)
    for kind, who, which in actions:
        if names[who] in colluders:
            continue
        site, survivors = net.sites[names[who]], lists[which]
        try:
            if kind == 0:
                site.upload(0, vector, MODEL)
            elif kind == 1:
                signatures[which][names[who]] = endorse(net, names[who], 0, survivors)
            else:
                survivors = list(names) if kind == 3 else survivors
                collected = [] if kind == 3 else list(signatures[which].values())
                reply = site.answer(request(net, 0, survivors, collected))
                messages.decode(reply, messages.Shares, net.context, None)
                answered.setdefault(tuple(survivors), set()).add(names[who])
        except ProtocolError:
            continue
    seeds, keys = Counter(), Counter()
    for survivors, by in answered.items():
        for target in names:
            (seeds if target in survivors else keys)[target] += len(by)
    c, t = params.colluders, params.threshold
    for target in honest:
        assert not (seeds[target] + c >= t and keys[target] + c >= t), "a mask was stripped"
    # lemma 2: honest sites answer for at most one short list
    assert len([survivors for survivors in answered if len(survivors) < n]) <= 1
    # lemma 3: what is learnt is one sum over at least m - c honest sites, or nothing
    unmasked = {target for target in honest if seeds[target] + c >= t}
    dropped = {target for target in honest if keys[target] + c >= t}
    if unmasked | dropped == set(honest):
        assert len(unmasked) >= max(params.minimum - c, 2)


@settings(max_examples=200, deadline=None)
@given(campaign=campaigns(), data=st.data())
def test_no_order_of_lies_reveals_both_secrets_or_two_lists(campaign, data):
    n, actions = campaign
    lie(n, actions, data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(campaign=campaigns(), data=st.data())
def test_no_order_of_lies_long(campaign, data):
    n, actions = campaign
    lie(n, actions, data)


def lie(n: int, actions: list[tuple[int, int, int]], data: st.DataObject) -> None:
    minimum = Params.derive(n).minimum
    names = [f"site-{i}" for i in range(n)]

    def draw_list(_: int) -> list[str]:
        size = data.draw(st.integers(max(minimum - 1, 1), n))
        return sorted(data.draw(st.permutations(names))[:size])

    play(n, actions, draw_list)


def test_every_split_of_the_honest_sites_between_two_lists_fails():
    """The counting argument itself, for every n, c and default t: two lists never both reach t."""
    for n in range(3, 101):
        for c in range(n - 1):
            t = Params.derive(n, colluders=c).threshold
            honest = n - c
            assert not any(first + c >= t and honest - first + c >= t for first in range(honest + 1))


# --- resends, replays, rosters, keys -----------------------------------------------------------------


def test_a_resend_that_differs_is_refused(net):
    data = uploaded(net)
    site = net.sites["site-0"]
    original = site.upload(0, data["site-0"], MODEL)
    for vector, model in ((data["site-1"], MODEL), (data["site-0"], MODEL * 2.0)):
        with pytest.raises(ProtocolError, match="another vector"):
            site.upload(0, vector, model)
    assert site.upload(0, data["site-0"], MODEL) == original


def test_a_replayed_round_is_refused(net):
    data = uploaded(net)
    result = net.run(0, data)
    requests = request(net, 0, list(result.survivors))
    uploaded(net, attempt=1)
    for name in net.names:
        with pytest.raises(ProtocolError, match="is over"):
            net.sites[name].answer(requests)
        with pytest.raises(ProtocolError, match="is over"):
            net.sites[name].upload(0, data[name], MODEL)
    with pytest.raises(ProtocolError, match="was used"):
        net.hub.begin(0)


def test_an_old_upload_does_not_count_in_a_new_attempt(net):
    data = uploaded(net)
    old = net.sites["site-0"].upload(0, data["site-0"], MODEL)
    net.hub.begin(1)
    with pytest.raises(ProtocolError, match="another set-up, attempt or site"):
        net.hub.on_upload("site-0", old)


def test_forged_announcements_name_their_sender():
    net = Network(context(4), set_up=False)
    announcements = net.announce()
    signed = messages.decode(announcements[1], messages.Signed, net.context, None)
    body = messages.decode(signed.payload, messages.Announcement, net.context, None)
    own = AgreementKey.generate()
    swapped = messages.encode(
        messages.Announcement(
            body.context,
            body.sender,
            own.public,
            body.attempt_keys,
            body.seed_commitments,
            body.epoch_key_commitment,
        )
    )
    forged = [
        messages.encode(
            messages.Signed(swapped, signed.signature)
        ),  # the hub's own key under the old signature
        messages.sign(identity(9), setup.ANNOUNCE, swapped),  # signed by somebody else
        messages.sign(identity(1), setup.DEAL, signed.payload),  # the right key under another label
        announcements[2],  # another member's
    ]
    for wrong in forged:
        site = SecureSumSite(net.context, identity(0))
        with pytest.raises(ProtocolError) as caught:
            site.deal([site.announce(), wrong, *announcements[2:]])
        assert caught.value.peer == "site-1"


def test_a_site_insists_on_its_own_announcement():
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    twin = SecureSumSite(net.context, identity(0))  # the same identity, restarted: other keys, good signature
    with pytest.raises(ProtocolError, match="in this site's name"):
        twin.deal(announcements)


def test_two_sets_of_announcements_are_noticed():
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    other = [announcements[0], SecureSumSite(net.context, identity(1)).announce(), announcements[2]]
    site = net.sites["site-0"]
    site.deal(announcements)
    with pytest.raises(ProtocolError, match="two sets of announcements"):
        site.deal(other)


def test_a_split_view_of_announcements_names_the_dealer_who_saw_another(monkeypatch):
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    other = [announcements[0], announcements[1], SecureSumSite(net.context, identity(2)).announce()]
    header = messages.decode(net.sites["site-1"].deal(other), messages.Deal, net.context, None).header
    deals = [
        messages.decode(net.sites[name].deal(announcements), messages.Deal, net.context, None)
        for name in ("site-0", "site-2")
    ]
    headers = [deals[0].header, header, deals[1].header]
    bundle = messages.encode(messages.Bundle(headers, [b"", b"", deals[1].sealed[0]]))
    with pytest.raises(ProtocolError, match="shown other announcements") as caught:
        net.sites["site-0"].finish_setup(bundle)
    assert caught.value.peer == "site-1"


def test_a_site_insists_on_its_own_deal():
    """Somebody with the identity dealt in this site's name, under the very same announcements."""
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    bundles = net.deal(announcements)
    read = messages.decode(bundles["site-0"], messages.Bundle, net.context, None)
    signed = messages.decode(read.headers[0], messages.Signed, net.context, None)
    body = messages.decode(signed.payload, messages.DealHeader, net.context, None)
    other = messages.DealHeader(
        body.context, body.sender, body.announcements, bytes(len(body.holder_digests))
    )
    header = messages.sign(identity(0), setup.DEAL, messages.encode(other))
    wrong = messages.Bundle([header, *read.headers[1:]], read.sealed)
    with pytest.raises(ProtocolError, match="another deal in this site's name"):
        net.sites["site-0"].finish_setup(messages.encode(wrong))


@pytest.mark.parametrize(
    "changes",
    [
        {"context": bytes(32)},
        {"sender": "site-2"},
        {"announcements": bytes(32)},
        {"holder_digests": bytes(32)},
    ],
)
def test_bad_deal_headers_are_refused_by_hub_and_sites(changes):
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    deal = messages.decode(net.sites["site-1"].deal(announcements), messages.Deal, net.context, None)
    signed = messages.decode(deal.header, messages.Signed, net.context, None)
    body = messages.decode(signed.payload, messages.DealHeader, net.context, None)
    fields = {name: getattr(body, name) for name in body.__struct_fields__} | changes
    header = messages.sign(identity(1), setup.DEAL, messages.encode(messages.DealHeader(**fields)))
    with pytest.raises(ProtocolError) as caught:
        net.hub.on_deal("site-1", messages.encode(messages.Deal(header, deal.sealed, deal.share_hashes)))
    assert caught.value.peer == "site-1"
    bundle = messages.decode(net.deal(announcements)["site-0"], messages.Bundle, net.context, None)
    headers = [bundle.headers[0], header, bundle.headers[2]]
    with pytest.raises(ProtocolError) as caught:
        net.sites["site-0"].finish_setup(messages.encode(messages.Bundle(headers, bundle.sealed)))
    assert caught.value.peer == "site-1"


def announcement_with(net: Network, number: int, **changes: bytes) -> bytes:
    signed = messages.decode(net.sites[f"site-{number}"].announce(), messages.Signed, net.context, None)
    raw = messages.decode(signed.payload, messages.Announcement, net.context, None)
    fields = {name: getattr(raw, name) for name in raw.__struct_fields__} | changes
    return messages.sign(identity(number), setup.ANNOUNCE, messages.encode(messages.Announcement(**fields)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempt_keys", bytes(64)),  # points of small order: everybody knows the shared secret
        ("share_key", bytes(32)),
        ("attempt_keys", bytes(range(32)) * 2),
        ("attempt_keys", bytes(32)),
        ("seed_commitments", bytes(96)),
        ("epoch_key_commitment", bytes(32)),
        ("context", bytes(32)),
    ],
)
def test_bad_keys_and_counts_are_refused_by_hub_and_sites(field, value):
    net = Network(context(3), set_up=False)
    good = [net.sites[name].announce() for name in net.names]
    bad = announcement_with(net, 1, **{field: value})
    with pytest.raises(ProtocolError) as caught:
        net.hub.on_announcement("site-1", bad)
    assert caught.value.peer == "site-1"
    with pytest.raises(ProtocolError) as caught:
        net.sites["site-0"].deal([good[0], bad, good[2]])
    assert caught.value.peer == "site-1"


def test_repeating_another_members_key_is_refused():
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    victim = messages.decode(announcements[0], messages.Signed, net.context, None)
    keys = messages.decode(victim.payload, messages.Announcement, net.context, None).attempt_keys
    copied = announcement_with(net, 2, attempt_keys=keys)
    with pytest.raises(ProtocolError, match="another member's key") as caught:
        net.sites["site-1"].deal([announcements[0], announcements[1], copied])
    assert caught.value.peer == "site-2"


def test_two_rosters_share_nothing():
    """Two overlapping rosters of one epoch: no message of one counts in the other, and no masks cancel."""
    first, second = context(4, members=(0, 1, 2, 3)), context(4, members=(0, 1, 2, 4))
    one, two = Network(first), Network(second)
    assert one.hub.setup_digest != two.hub.setup_digest
    announcement = Network(first, set_up=False).sites["site-0"].announce()
    with pytest.raises(ProtocolError, match="another plan, roster or epoch"):
        Network(second, set_up=False).hub.on_announcement("site-0", announcement)
    vector = np.zeros(50_000, dtype=np.uint32)
    for net in (one, two):
        net.hub.begin(0)
    upload = one.sites["site-0"].upload(0, vector, MODEL)
    with pytest.raises(ProtocolError, match="another set-up"):
        two.hub.on_upload("site-0", upload)
    for name in ("site-0", "site-1", "site-2"):
        two.sites[name].upload(0, vector, MODEL)
    survivors = ["site-0", "site-1", "site-2"]
    signatures = [endorse(two, name, 0, survivors) for name in survivors]
    with pytest.raises(ProtocolError):
        one.sites["site-0"].answer(request(one, 0, survivors, signatures))
    difference = payload(upload, one) - payload(two.sites["site-0"].upload(0, vector, MODEL), two)
    assert looks_uniform(difference.tobytes())


def test_short_lists_are_refused_even_with_every_signature(net):
    uploaded(net)
    short = list(net.names[:3])
    signatures = colluders_sign(net, 0, short, list(net.names))
    for name in net.names:
        for asked in (request(net, 0, short), request(net, 0, short, signatures)):
            with pytest.raises(ProtocolError, match="shorter than the minimum"):
                net.sites[name].answer(asked)


def test_signatures_do_not_move_between_set_ups_attempts_or_lists(net):
    uploaded(net, attempt=1)
    survivors = list(net.names[:4])
    other = Network(net.context)
    uploaded(other, attempt=1)
    foreign = [endorse(other, name, 1, survivors) for name in survivors]
    later = colluders_sign(net, 0, survivors, survivors)
    different = colluders_sign(net, 1, list(net.names[1:]), survivors)
    for signatures in (foreign, later, different):
        with pytest.raises(ProtocolError, match="does not verify"):
            net.sites["site-4"].answer(request(net, 1, survivors, signatures))


# --- models ------------------------------------------------------------------------------------------


def test_an_honest_hub_notices_another_model(net):
    data = uploaded(net)
    fresh = Network(net.context)
    fresh.hub.begin(0)
    fresh.hub.on_upload("site-0", fresh.sites["site-0"].upload(0, data["site-0"], MODEL))
    with pytest.raises(ProtocolError, match="another model") as caught:
        fresh.hub.on_upload("site-1", fresh.sites["site-1"].upload(0, data["site-1"], MODEL + 1e-9))
    assert caught.value.peer == "site-1"


@pytest.mark.parametrize("different", [1, 2, 4])
def test_masks_of_different_models_do_not_cancel(different):
    """A hub that gives one site (or some) another model, and hides it from its own checks, gets noise."""
    net = Network(context(5, attempts=1))
    data = {name: np.zeros(40_000, dtype=np.uint32) for name in net.names}
    net.hub.begin(0)
    for number, name in enumerate(net.names):
        message = net.sites[name].upload(0, data[name], MODEL if number >= different else MODEL + 1.0)
        upload = messages.decode(message, messages.Upload, net.context, None)
        lie_about_it = messages.Upload(upload.setup, 0, name, bytes(32), upload.vector)
        net.hub.on_upload(name, messages.encode(lie_about_it))
    net.answer(net.hub.close(), net.names)
    total = net.hub.result().total
    assert looks_uniform(total.tobytes())
    assert np.count_nonzero(total == 0) < 10


# --- sites that lie about shares ---------------------------------------------------------------------


def test_wrong_shares_at_set_up_name_the_dealer(monkeypatch):
    net = Network(context(4), set_up=False)
    announcements = net.announce()
    real = dealing.encrypt
    monkeypatch.setattr(
        dealing,
        "encrypt",
        lambda key, plain, aad: real(key, bytes([plain[0], plain[1] ^ 1]) + plain[2:], aad),
    )
    net.sites["site-2"].deal(announcements)
    monkeypatch.undo()
    bundles = net.deal(announcements)
    for name in ("site-0", "site-1", "site-3"):
        with pytest.raises(ProtocolError, match="not those whose hash was signed") as caught:
            net.sites[name].finish_setup(bundles[name])
        assert caught.value.peer == "site-2"
        assert net.sites[name]._secrets is None


def test_hashes_for_the_hub_that_differ_from_the_signed_ones_are_refused():
    net = Network(context(3), set_up=False)
    announcements = net.announce()
    deal = messages.decode(net.sites["site-1"].deal(announcements), messages.Deal, net.context, None)
    wrong = messages.Deal(deal.header, deal.sealed, bytes(len(deal.share_hashes)))
    with pytest.raises(ProtocolError, match="not those the dealer signed") as caught:
        net.hub.on_deal("site-1", messages.encode(wrong))
    assert caught.value.peer == "site-1"


@pytest.mark.parametrize(
    ("parcels", "dealer"),
    [
        (lambda of: [b"", of[0][2], of[0][1], of[0][3]], "site-1"),  # exchanged
        (lambda of: [b"", of[2][1], of[0][2], of[0][3]], "site-1"),  # meant for another
        (lambda of: [b"", of[1][0], of[0][2], of[0][3]], "site-1"),  # reflected: from this site to the dealer
        (lambda of: [b"", of[0][1][:-1], of[0][2], of[0][3]], "site-1"),
        (lambda of: [b"", of[0][1], of[0][2], b""], "site-3"),
    ],
)
def test_swapped_and_reflected_parcels_do_not_open(parcels, dealer):
    net = Network(context(4), set_up=False)
    bundles = net.deal(net.announce())
    read = [messages.decode(bundles[name], messages.Bundle, net.context, None) for name in net.names]
    wrong = messages.Bundle(read[0].headers, parcels([bundle.sealed for bundle in read]))
    with pytest.raises(ProtocolError, match="do not open") as caught:
        net.sites["site-0"].finish_setup(messages.encode(wrong))
    assert caught.value.peer == dealer


def test_a_wrong_epoch_key_names_the_first_member(monkeypatch):
    net = Network(context(3, view="none"), set_up=False)
    announcements = net.announce()
    first = net.sites["site-0"]
    honest = first._secrets.epoch_key
    first._secrets.epoch_key = bytes(32)
    first.deal(announcements)
    first._secrets.epoch_key = honest
    bundles = net.deal(announcements)
    with pytest.raises(ProtocolError, match="does not fit its commitment") as caught:
        net.sites["site-1"].finish_setup(bundles["site-1"])
    assert caught.value.peer == "site-0"


def test_wrong_shares_at_unmasking_name_their_sender(net):
    data = uploaded(net)
    net.upload(0, data)
    requests = net.hub.close()
    answer = messages.decode(
        net.sites["site-3"].answer(requests["site-3"]), messages.Shares, net.context, None
    )
    flipped = bytes([answer.shares[0], answer.shares[1] ^ 1]) + answer.shares[2:]
    for shares in (flipped, answer.shares[:-33], answer.shares[33:] + answer.shares[:33]):
        lying = messages.Shares(answer.setup, 0, "site-3", answer.choice, shares)
        with pytest.raises(ProtocolError) as caught:
            net.hub.on_answer("site-3", messages.encode(lying))
        assert caught.value.peer == "site-3"
    net.answer(requests, [name for name in net.names if name != "site-3"])
    assert net.hub.result().total.tolist() == ring_sum(data.values(), 32)


def test_keys_where_seeds_are_due_do_not_pass(net):
    """A site that mixes the two kinds of share is found out by position: each has its own hash."""
    data = uploaded(net)
    net.upload(0, data)
    net.hub.close()
    choice = sha256(derivation.choice_statement(net.hub.setup_digest, 0, tuple(range(5))))
    keys = net.sites["site-3"]._secrets.attempts[0].shares(frozenset(), 5)
    lying = messages.Shares(net.hub.setup_digest, 0, "site-3", choice, keys)
    with pytest.raises(ProtocolError, match="not the one that was dealt"):
        net.hub.on_answer("site-3", messages.encode(lying))


@pytest.mark.parametrize("drops", [False, True])
def test_shares_that_lie_on_no_polynomial_name_the_dealer(monkeypatch, drops):
    """Hashes and shares agree, so no holder can object; what is rebuilt is not what was announced."""
    net = Network(context(5), set_up=False)
    announcements = net.announce()
    real = dealing.split
    monkeypatch.setattr(
        dealing, "split", lambda secret, t, n, random: real(bytes(31) + b"\x01", t, n, random)
    )
    net.sites["site-2"].deal(announcements)
    monkeypatch.undo()
    net.finish_setup(net.deal(announcements))
    data = dict(zip(net.names, vectors(5, 32, 8), strict=True))
    if drops:
        del data["site-2"]
    with pytest.raises(RoundBurnt) as caught:
        net.run(0, data)
    assert caught.value.peer == "site-2"
    assert net.hub.result() is None


def test_a_member_that_signs_and_dies_burns_the_attempt_and_no_more():
    net = Network(context(5))  # t = 4
    data = dict(zip(net.names, vectors(5, 32, 8), strict=True))
    net.upload(0, {name: data[name] for name in net.names[:4]})
    certified = net.answer(net.hub.close(), net.names[:4])  # site-4 is gone; the four others sign
    assert certified is not None
    net.answer(certified, net.names[:3])
    net.hub.lost("site-4")
    assert net.hub.result() is None
    with pytest.raises(RoundBurnt):
        net.hub.lost("site-3")
    # the hub cannot try another list in this attempt
    for name in net.names[:3]:
        with pytest.raises(ProtocolError, match="another survivor list"):
            net.sites[name].answer(request(net, 0, [*net.names[:3], "site-4"]))
    assert net.run(1, data).total.tolist() == ring_sum(data.values(), 32)


# --- overflow ----------------------------------------------------------------------------------------


def test_a_plan_whose_sum_could_overflow_is_refused():
    with pytest.raises(PlanError):
        Encoding(16, 40_000, 1.0)
    with pytest.raises(PlanError):
        Encoding(16, 2**15, 1e-3)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_site_that_does_not_clamp_is_seen_in_the_sum(bits):
    net = Network(context(3, bits=bits))
    encoding = Encoding(bits, 3, 1.0)
    data = {name: encoding.encode(np.array([0.1, -0.1])) for name in net.names}
    data["site-1"] = np.array([2 ** (bits - 1) - 1, 5], dtype=f"u{bits // 8}")
    with pytest.raises(ProtocolError, match="outside what its sites can have sent"):
        encoding.decode_sum(net.run(0, data).total, 3)


# --- what the adversary holds ------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["sum", "none"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("fill", ["zeros", "ones", "ramp"])
def test_uploads_look_uniform_whatever_the_input(view, bits, fill):
    size = 60_000
    dtype = np.dtype(f"u{bits // 8}")
    vector = {
        "zeros": np.zeros(size, dtype),
        "ones": np.full(size, 2**bits - 1, dtype),
        "ramp": np.arange(size).astype(dtype),
    }[fill]
    net = Network(context(3, bits=bits, view=view, attempts=1))
    masked = [payload(net.sites[name].upload(0, vector, MODEL), net) for name in net.names]
    for one in masked:
        assert looks_uniform(one.tobytes())
    for one, two in itertools.combinations(masked, 2):
        assert looks_uniform((one - two).tobytes())
        assert looks_uniform((one + two).tobytes())


def test_the_statistic_would_notice():
    assert not looks_uniform(bytes(60_000))
    assert not looks_uniform(np.arange(60_000, dtype=np.uint32).tobytes())


def test_colluders_and_hub_cannot_strip_a_survivors_mask():
    """After an honest run with one drop-out, all that was not to be rebuilt stays below t shares."""
    net = Network(context(10))  # c = 3, t = m = 7
    c, t = net.context.params.colluders, net.context.params.threshold
    bad, target, dropped = list(net.names[-c:]), 0, 3
    data = dict(zip(net.names, vectors(10, 32, 30_000), strict=True))
    del data["site-3"]
    messages_seen = {name: net.sites[name].upload(0, data[name], MODEL) for name in data}
    net.run(0, data)
    # a survivor's key: nobody answered with it, c shares are all there are
    key_shares = {net.context.roster.index(b): held(net, b, target, 0, of_seed=False) for b in bad}
    seed_shares = {net.context.roster.index(b): held(net, b, dropped, 0, of_seed=True) for b in bad}
    assert len(key_shares) == len(seed_shares) == c < t
    guessed = key_shares | {holder: bytes(33) for holder in range(t - c)}
    with contextlib.suppress(IntegrityError):
        rebuilt = AgreementKey.from_bytes(combine(guessed, t))
        assert rebuilt.public != net.hub._setup.announced.attempt_key(target, 0)
    # what the adversary can take off: the self mask, and the masks with the dropped and the colluders
    site = net.sites["site-0"]
    own = site._secrets.attempts[0]
    keys = upload_keys(net.hub._setup, 0, site.model_tag(0, MODEL), 0, own.key, own.seed)
    partners = ["self", *net.names[1:]]
    known = {"self", net.names[dropped], *bad}
    partly = payload(messages_seen["site-0"], net).copy()
    strip(partly, [key for key, partner in zip(keys, partners, strict=True) if partner in known])
    assert looks_uniform((partly - data["site-0"]).tobytes())
    strip(partly, [key for key, partner in zip(keys, partners, strict=True) if partner not in known])
    assert np.array_equal(partly, data["site-0"])  # the masks with honest survivors were all that was left


def strip(vector: np.ndarray, keys: list[tuple[bytes, int]]) -> None:
    apply_masks(vector, [(key, -sign) for key, sign in keys])


@pytest.mark.parametrize("gone", [[], ["site-1"]])
def test_seed_and_key_shares_of_one_site_never_both_leave(gone):
    net = Network(context(5))
    data = dict(zip(net.names, vectors(5, 32, 8), strict=True))
    net.upload(0, {name: vector for name, vector in data.items() if name not in gone})
    requests: dict[str, bytes] | None = net.hub.close()
    kinds: dict[int, set[str]] = {dealer: set() for dealer in range(5)}
    while requests:
        further = None
        for name in net.names:
            reply = net.sites[name].answer(requests[name])
            for dealer in range(5):
                for of_seed in (False, True):
                    if held(net, name, dealer, 0, of_seed=of_seed) in reply:
                        kinds[dealer].add("seed" if of_seed else "key")
            further = net.hub.on_answer(name, reply) or further
        requests = further
    assert kinds == {dealer: {"key" if f"site-{dealer}" in gone else "seed"} for dealer in range(5)}


# --- hub_view none -----------------------------------------------------------------------------------


def test_under_hub_view_none_the_hub_gets_noise_and_the_sites_the_sum():
    net = Network(context(4, view="none"))
    data = {name: np.zeros(60_000, dtype=np.uint32) for name in net.names[:3]}
    result = net.run(0, data)
    assert looks_uniform(result.total.tobytes())
    assert not net.opened(result).any()
    shown = Network(context(4))
    assert not shown.run(0, data).total.any()  # whereas under hub_view sum it reads the sum


def test_under_hub_view_none_the_hub_never_holds_the_epoch_key():
    net = Network(context(4, view="none"), set_up=False)
    seen = [net.sites[name].announce() for name in net.names]
    announcements = net.announce()
    seen += [net.sites[name].deal(announcements) for name in net.names]
    bundles = net.deal(announcements)
    net.finish_setup(bundles)
    seen += bundles.values()
    data = dict(zip(net.names, vectors(4, 32, 40), strict=True))
    seen += [net.sites[name].upload(0, data[name], MODEL) for name in net.names]
    net.upload(0, data)
    requests = net.hub.close()
    seen += [net.sites[name].answer(requests[name]) for name in net.names]
    epoch_key = net.sites["site-1"]._secrets.epoch_key
    assert len(epoch_key) == 32
    for secret in (
        epoch_key,
        *(site._secrets.attempts[0].key.to_bytes(SECRET_ACCESS) for site in net.sites.values()),
    ):
        assert not any(secret in message for message in seen)


def test_under_hub_view_none_the_sum_opens_for_one_model_and_list_only():
    net = Network(context(4, view="none"))
    data = {name: np.zeros(40_000, dtype=np.uint32) for name in net.names}
    result = net.run(0, data)
    site = net.sites["site-0"]
    assert looks_uniform(site.open_sum(0, net.names, result.total, MODEL + 1.0).tobytes())
    assert looks_uniform(site.open_sum(1, net.names, result.total, MODEL).tobytes())
    with pytest.raises(ProtocolError, match="other survivors"):
        site.open_sum(0, net.names[:3], result.total, MODEL)
