from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tests.secagg.network import MODEL, Network, context, vectors

from cloister.errors import InputError, ProtocolError
from cloister.secagg import messages, model_digest


@pytest.fixture
def net() -> Network:
    return Network(context(4, attempts=5))  # t = m = 3


def request(
    net: Network, attempt: int, survivors: list[str], signatures: list[messages.Signature] | None = None
) -> bytes:
    return messages.encode(messages.Request(net.hub.setup_digest, attempt, survivors, signatures or []))


def signed(net: Network, attempt: int, survivors: list[str], signers: list[str]) -> list[messages.Signature]:
    """Honest endorsements of a list, through the sites' own answers."""
    asked = request(net, attempt, survivors)
    replies = [
        messages.decode(net.sites[s].answer(asked), messages.Endorsement, net.context, s) for s in signers
    ]
    return [messages.Signature(reply.sender, reply.signature) for reply in replies]


VECTOR = vectors(1, 32, 9)[0]
THREE = ["site-0", "site-1", "site-2"]


def test_the_vector_is_masked_and_left_alone(net):
    before = VECTOR.copy()
    upload = messages.decode(net.sites["site-0"].upload(0, VECTOR, MODEL), messages.Upload, net.context, None)
    assert np.array_equal(VECTOR, before)
    masked = np.frombuffer(upload.vector, dtype="<u4")
    assert not np.any(masked == VECTOR)
    assert upload.model == model_digest(MODEL)


def test_the_same_upload_again_is_byte_identical(net):
    site = net.sites["site-0"]
    first = site.upload(0, VECTOR, MODEL)
    assert site.upload(0, VECTOR.copy(), MODEL.copy()) == first
    assert site.upload(0, VECTOR, MODEL.tobytes()) == first  # the same model in another form


def test_another_upload_in_one_attempt_is_refused(net):
    site = net.sites["site-0"]
    first = site.upload(0, VECTOR, MODEL)
    for vector, model in ((VECTOR + np.uint32(1), MODEL), (VECTOR, MODEL + 1.0), (VECTOR[:-1], MODEL)):
        with pytest.raises(ProtocolError, match="another vector"):
            site.upload(0, vector, model)
    assert site.upload(0, VECTOR, MODEL) == first


def test_attempts_only_move_forward_and_erase(net):
    site = net.sites["site-0"]
    held = [attempt._held for attempt in site._secrets.attempts]
    site.upload(2, VECTOR, MODEL)
    assert [any(buffer) for buffer in held] == [False, False, True, True, True]
    assert [attempt._key is None for attempt in site._secrets.attempts] == [True, True, False, False, False]
    assert [any(attempt._seed) for attempt in site._secrets.attempts] == [False, False, True, True, True]
    for attempt in (0, 1):
        with pytest.raises(ProtocolError, match="is over"):
            site.upload(attempt, VECTOR, MODEL)
        with pytest.raises(ProtocolError, match="is over"):
            site.answer(request(net, attempt, ["site-1", "site-2", "site-3"]))
    site.upload(3, VECTOR, MODEL)
    with pytest.raises(ProtocolError, match="not one of the epoch"):
        site.upload(5, VECTOR, MODEL)


def test_a_refused_upload_does_not_move_on(net):
    site = net.sites["site-0"]
    first = site.upload(0, VECTOR, MODEL)
    with pytest.raises(InputError):
        site.upload(1, VECTOR.astype(np.uint16), MODEL)
    with pytest.raises(InputError):
        site.upload(1, VECTOR, MODEL.astype(np.float16))
    assert site.upload(0, VECTOR, MODEL) == first


@pytest.mark.parametrize(
    "wrong", [VECTOR.astype(np.uint64), VECTOR.astype(np.int32), VECTOR.reshape(3, 3), VECTOR[:0]]
)
def test_only_ring_vectors_are_uploaded(net, wrong):
    with pytest.raises(InputError):
        net.sites["site-0"].upload(0, wrong, MODEL)


def test_the_full_list_is_answered_at_once_if_this_site_uploaded(net):
    site = net.sites["site-0"]
    asked = request(net, 0, list(net.names))
    with pytest.raises(ProtocolError, match="did not upload"):
        site.answer(asked)
    site.upload(0, VECTOR, MODEL)
    answer = messages.decode(site.answer(asked), messages.Shares, net.context, None)
    assert len(answer.shares) == 4 * 33
    assert site.answer(asked) == messages.encode(answer)


def test_a_list_with_this_site_in_it_needs_its_upload_in_that_attempt(net):
    site = net.sites["site-0"]
    site.upload(0, VECTOR, MODEL)
    with pytest.raises(ProtocolError, match="did not upload"):
        site.answer(request(net, 1, THREE))
    assert site.answer(request(net, 0, THREE))  # the refusal did not move it on


def test_a_site_missing_from_a_list_may_sign_and_uploads_no_more(net):
    site = net.sites["site-3"]
    endorsed = messages.decode(site.answer(request(net, 0, THREE)), messages.Endorsement, net.context, None)
    assert endorsed.sender == "site-3"
    with pytest.raises(ProtocolError, match="counts as dropped"):
        site.upload(0, VECTOR, MODEL)
    site.upload(1, VECTOR, MODEL)


def test_a_site_that_uploaded_and_is_left_out_does_not_send_again(net):
    site = net.sites["site-3"]
    site.upload(0, VECTOR, MODEL)
    site.answer(request(net, 0, THREE))
    with pytest.raises(ProtocolError, match="counts as dropped"):
        site.upload(0, VECTOR, MODEL)


def test_one_choice_an_attempt(net):
    site = net.sites["site-3"]
    site.upload(0, VECTOR, MODEL)
    first = site.answer(request(net, 0, THREE))
    for other in (list(net.names), ["site-0", "site-1", "site-3"]):
        with pytest.raises(ProtocolError, match="another survivor list"):
            site.answer(request(net, 0, other))
    assert site.answer(request(net, 0, THREE)) == first
    site.upload(1, VECTOR, MODEL)
    assert site.answer(request(net, 1, list(net.names)))


@pytest.mark.parametrize(
    "survivors",
    [
        ["site-1", "site-2"],
        ["site-1", "site-2", "site-2"],
        ["site-2", "site-1", "site-3"],
        ["site-1", "site-2", "stranger"],
        [],
        ["site-1", "site-2", "site-3", "site-3"],
    ],
)
def test_malformed_lists_are_refused(net, survivors):
    site = net.sites["site-0"]
    with pytest.raises(ProtocolError):
        site.answer(request(net, 0, survivors))
    assert site._choice is None
    assert site._attempt == -1


def test_a_certified_list_is_answered_by_one_who_did_not_sign(net):
    for name in THREE:
        net.sites[name].upload(0, VECTOR, MODEL)
    certified = request(net, 0, THREE, signed(net, 0, THREE, THREE))
    answer = messages.decode(net.sites["site-3"].answer(certified), messages.Shares, net.context, None)
    held = net.sites["site-3"]._secrets.attempts[0]._held
    for dealer in range(4):
        pair = bytes(held[66 * dealer : 66 * dealer + 66])
        wanted = pair[33:] if dealer < 3 else pair[:33]
        assert answer.shares[33 * dealer : 33 * dealer + 33] == wanted
    with pytest.raises(ProtocolError, match="counts as dropped"):
        net.sites["site-3"].upload(0, VECTOR, MODEL)


def test_certification_needs_t_good_signatures_of_different_members(net):
    for name in THREE:
        net.sites[name].upload(0, VECTOR, MODEL)
        net.sites[name].upload(1, VECTOR, MODEL)
    good = signed(net, 1, THREE, THREE)
    other_attempt = Network(net.context)
    forged = messages.Signature("site-2", good[0].signature)
    target = net.sites["site-3"]
    for signatures in (
        good[:2],
        [good[0], good[1], good[1]],
        [good[0], good[1], forged],
        [good[0], good[1], messages.Signature("stranger", good[2].signature)],
        [*good, messages.Signature("site-3", bytes(64))],
    ):
        with pytest.raises(ProtocolError):
            target.answer(request(net, 1, THREE, signatures))
    for name in THREE:
        other_attempt.sites[name].upload(1, VECTOR, MODEL)
    with pytest.raises(ProtocolError, match="does not verify"):
        target.answer(request(net, 1, THREE, signed(other_attempt, 1, THREE, THREE)))
    with pytest.raises(ProtocolError, match="does not verify"):
        target.answer(request(net, 2, THREE, good))
    assert target._choice is None
    assert target.answer(request(net, 1, THREE, good))


def test_requests_of_another_set_up_are_refused(net):
    other = Network(net.context)
    with pytest.raises(ProtocolError, match="another set-up"):
        net.sites["site-3"].answer(request(other, 0, THREE))


def test_open_sum_keeps_to_the_choice():
    net = Network(context(4, view="none"))
    data = dict(zip(THREE, vectors(3, 32, 9), strict=True))
    result = net.run(0, data)
    site = net.sites["site-0"]
    before = result.total.copy()
    assert site.open_sum(0, THREE, result.total, MODEL).tolist() == sum(data.values()).tolist()
    assert np.array_equal(result.total, before)
    for survivors in (list(net.names), ["site-0", "site-1"], ["site-0", "site-1", "stranger"]):
        with pytest.raises(ProtocolError):
            site.open_sum(0, survivors, result.total, MODEL)
    with pytest.raises(InputError):
        site.open_sum(0, THREE, result.total.astype(np.uint16), MODEL)


def test_the_model_tag_hides_the_model_where_the_hub_may_not_see_it():
    shown, hidden = Network(context(3)), Network(context(3, view="none"))
    assert shown.sites["site-0"].model_tag(0, MODEL) == model_digest(MODEL)
    tags = {site.model_tag(0, MODEL) for site in hidden.sites.values()}
    assert len(tags) == 1
    assert model_digest(MODEL) not in tags
    assert hidden.sites["site-0"].model_tag(1, MODEL) not in tags
    assert Network(hidden.context).sites["site-0"].model_tag(0, MODEL) not in tags


def test_machines_and_secrets_are_neither_printed_nor_pickled(net):
    site = net.sites["site-0"]
    for thing in (site, site._secrets, site._secrets.attempts[0], site._secrets.attempts[0].key):
        assert "secret" in repr(thing)
        assert bytes(site._secrets.attempts[0].seed).hex() not in repr(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)
