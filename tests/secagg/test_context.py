from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from tests.secagg.network import context, identity

from cloister.errors import InputError, PlanError, ProtocolError
from cloister.secagg import EpochContext, Params, Roster


def test_any_difference_gives_another_digest():
    base = context(4)
    variants = [
        base,
        dataclasses.replace(base, plan_digest=bytes(32)),
        dataclasses.replace(base, epoch=2),
        dataclasses.replace(base, attempts=3),
        dataclasses.replace(base, bits=16),
        dataclasses.replace(base, hub_view="none"),
        dataclasses.replace(base, params=Params.derive(4, noise_minimum=4)),
        dataclasses.replace(base, params=Params.derive(4, colluders=2)),
        dataclasses.replace(base, roster=Roster(base.roster.members[::-1])),
        context(4, members=(0, 1, 2, 4)),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert context(4).digest == base.digest


def test_a_roster_lists_every_site_once():
    zero, one = identity(0).public, identity(1).public
    with pytest.raises(InputError, match="share a name"):
        Roster((zero, zero))
    with pytest.raises(InputError, match="share a signing key"):
        Roster((zero, SimpleNamespace(name="other", signing=zero.signing, fingerprint="another")))
    roster = Roster((zero, one))
    assert (len(roster), roster.names, roster.index("site-1")) == (2, ("site-0", "site-1"), 1)
    with pytest.raises(ProtocolError) as caught:
        roster.index("stranger")
    assert caught.value.peer == "stranger"


@pytest.mark.parametrize(
    "wrong",
    [
        {"plan_digest": b"short"},
        {"attempts": 0},
        {"attempts": 65536},
        {"epoch": -1},
        {"bits": 24},
        {"hub_view": "all"},
        {"params": Params.derive(5)},
    ],
)
def test_contexts_that_do_not_fit_are_refused(wrong):
    good = context(4)
    fields = {field.name: getattr(good, field.name) for field in dataclasses.fields(good)}
    with pytest.raises((PlanError, InputError)):
        EpochContext(**{**fields, **wrong})


def test_survivor_lists():
    ctx = context(5)  # m = 4
    assert ctx.check_survivors(["site-0", "site-1", "site-3", "site-4"]) == (0, 1, 3, 4)
    assert ctx.check_survivors(ctx.roster.names) == (0, 1, 2, 3, 4)
    for wrong in (
        ["site-0", "site-1", "site-2"],
        [],
        ["site-1", "site-0", "site-3", "site-4"],
        ["site-0", "site-1", "site-1", "site-4"],
        ["site-0", "site-1", "site-2", "stranger"],
        ["site-0"] * 6,
    ):
        with pytest.raises(ProtocolError):
            ctx.check_survivors(wrong)


@pytest.mark.parametrize("attempt", [-1, 2, 10**9])
def test_attempts_of_the_epoch(attempt):
    with pytest.raises(ProtocolError):
        context(3, attempts=2).check_attempt(attempt)
