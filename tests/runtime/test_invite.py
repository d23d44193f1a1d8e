"""What a site says to an invitation that it declines."""

from __future__ import annotations

import pytest
from tests.runtime.invitations import hub, people, plan_of

from cloister.errors import CloisterError, ProtocolError
from cloister.runtime.invite import (
    Invitation,
    is_decline,
    is_greeting,
    make_decline,
    make_knock,
    read_decline,
)

_INSTANCE = bytes(range(16))
_REASON = "its owner's policy or budget refuses"


def decline() -> bytes:
    return make_decline(people()["north"], Invitation(hub(), plan_of(), 0, _INSTANCE), _REASON)


def read(
    datagram: bytes, *, study: bytes | None = None, instance: bytes = _INSTANCE
) -> tuple[str, str] | None:
    sites = {name: people()[name].public for name in ("north", "south", "west")}
    return read_decline(datagram, people()["hub"], sites, study or plan_of().digest, instance)


def test_the_hub_reads_who_declines_and_why() -> None:
    assert is_greeting(decline())
    assert read(decline()) == ("north", _REASON)
    assert _REASON.encode() not in decline()  # the network learns no reason


def test_one_of_before_says_nothing() -> None:
    assert read(decline(), instance=bytes(16)) is None
    assert is_decline(decline())


def test_a_knock_is_no_decline() -> None:
    knock = make_knock(people()["north"], "hub", bytes(16))
    assert not is_decline(knock)
    with pytest.raises(ProtocolError, match="something else than a decline"):
        read(knock)


def test_one_of_another_study_or_by_a_stranger_is_refused() -> None:
    with pytest.raises(CloisterError):
        read(decline(), study=bytes(32))
    invitation = Invitation(hub(), plan_of(), 0, _INSTANCE)
    with pytest.raises(ProtocolError, match="not in this study"):
        read(make_decline(people()["eve"], invitation, "no"))


@pytest.mark.parametrize("place", [-9, -300])
def test_a_changed_byte_is_found(place: int) -> None:
    data = bytearray(decline())
    data[place] ^= 1
    with pytest.raises(CloisterError):
        read(bytes(data))
