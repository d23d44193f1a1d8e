"""The hub's side of the secure sum: it relays the set-up, adds uploads, unmasks the sum. A pure machine.

    hub = SecureSumHub(context)
    hub.on_announcement(site, message)      # of every site; the last one returns what goes to all
    hub.on_deal(site, message)              # of every site; the last one returns a bundle for each
    hub.begin(0)
    hub.on_upload(site, message)            # until all came or the caller's deadline passed
    requests = hub.close()                  # for every site
    hub.on_answer(site, message)            # may return further requests
    hub.result()                            # the sum, once t sites answered with shares

Nothing here protects the sites: they protect themselves (`site.py`). What the hub checks lets it finish
with a right sum and name who prevents it. Deadlines belong to the caller, who says `lost(site)` of those it
has given up on, and `burn()` when it gives up altogether. A message that is refused raises and changes
nothing that others have contributed.

A hub that died goes on from its snapshot, which `restore` checks again, and from what its caller wrote down
of the attempt: `resume_attempt` collects it anew. Whoever uploaded or answered sends the same bytes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloister.crypto import Buffer, sha256
from cloister.errors import ProtocolError
from cloister.secagg.context import EpochContext
from cloister.secagg.derivation import DIGEST_BYTES
from cloister.secagg.messages import Bundle, Deal, decode, encode
from cloister.secagg.restore import HubSnapshot, decode_hub_snapshot, encode_hub_snapshot, restored_setup
from cloister.secagg.round import Round, RoundSum
from cloister.secagg.setup import (
    Announcements,
    Setup,
    holder_digests,
    read_announcement,
    read_announcements,
    read_header,
    set_up,
)

__all__ = ["SecureSumHub"]


class SecureSumHub:
    """The hub in one epoch.

    Args:
        context: the epoch.
    """

    def __init__(self, context: EpochContext) -> None:
        self._context = context
        self._announcements: dict[str, bytes] = {}
        self._announced: Announcements | None = None
        self._deals: dict[str, Deal] = {}
        self._deal_digests: dict[str, bytes] = {}
        self._share_hashes: list[bytes] = []
        self._setup: Setup | None = None
        self._round: Round | None = None

    # --- set-up -----------------------------------------------------------------------------------

    def on_announcement(self, sender: str, message: bytes) -> list[bytes] | None:
        """Take a site's announcement.

        Returns:
            All announcements in roster order, for every site, once the last one is in; else None.

        Raises:
            ProtocolError: naming who announced something wrong, or something else than before.
        """
        read_announcement(self._context, sender, message)
        if self._announcements.get(sender, message) != message:
            raise ProtocolError("a site announced twice, differently", peer=sender, fix="Begin a new epoch")
        if sender in self._announcements:
            return None
        self._announcements[sender] = message
        if len(self._announcements) < len(self._context.roster):
            return None
        ordered = _in_order(self._context, self._announcements)
        self._announced = read_announcements(self._context, ordered)
        return ordered

    def on_deal(self, sender: str, message: bytes) -> dict[str, bytes] | None:
        """Take a site's deal.

        Returns:
            The bundle of every site, once the last deal is in; else None.

        Raises:
            ProtocolError: naming whose deal is wrong, or was another before.
        """
        if self._announced is None:
            raise ProtocolError("a deal came before all had announced", peer=sender)
        digest = sha256(message)
        if sender in self._deal_digests:
            if self._deal_digests[sender] != digest:
                raise ProtocolError("a site dealt twice, differently", peer=sender, fix="Begin a new epoch")
            return None
        self._deals[sender] = self._read_deal(self._announced, sender, message)
        self._deal_digests[sender] = digest
        if len(self._deals) < len(self._context.roster):
            return None
        return self._finish_setup(self._announced)

    def _read_deal(self, announced: Announcements, sender: str, message: bytes) -> Deal:
        """Check header, number of parcels, and that the share hashes are those the header stands for."""
        deal = decode(message, Deal, self._context, sender)
        header = read_header(announced, sender, deal.header)
        n = len(self._context.roster)
        if len(deal.sealed) != n or len(deal.share_hashes) != n * 2 * self._context.attempts * DIGEST_BYTES:
            raise ProtocolError("a deal has the wrong number of parcels or hashes", peer=sender)
        if holder_digests(deal.share_hashes, n) != header.holder_digests:
            raise ProtocolError("the share hashes are not those the dealer signed", peer=sender)
        return deal

    def _finish_setup(self, announced: Announcements) -> dict[str, bytes]:
        names = self._context.roster.names
        deals = [self._deals[name] for name in names]
        headers = [deal.header for deal in deals]
        self._setup = set_up(announced, headers)
        self._share_hashes = [deal.share_hashes for deal in deals]
        self._deals.clear()
        return {
            name: encode(Bundle(headers, [deal.sealed[receiver] for deal in deals]))
            for receiver, name in enumerate(names)
        }

    @property
    def setup_digest(self) -> bytes:
        """32 bytes, equal at all who were shown the same set-up."""
        return self._ready().digest

    # --- after a restart --------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return what `restore` needs of a finished set-up; nothing in it is secret."""
        setup = self._ready()
        return encode_hub_snapshot(
            HubSnapshot(list(setup.announced.signed), list(setup.signed_headers), self._share_hashes)
        )

    @classmethod
    def restore(cls, context: EpochContext, snapshot: Buffer) -> SecureSumHub:
        """Return the hub as it was after the set-up, with no attempt begun.

        Raises:
            IntegrityError: the snapshot is not one of this epoch.
        """
        kept = decode_hub_snapshot(snapshot, context)
        hub = cls(context)
        hub._setup = restored_setup(context, kept)
        hub._announced = hub._setup.announced
        hub._announcements = dict(zip(context.roster.names, kept.announcements, strict=True))
        hub._share_hashes = kept.share_hashes
        return hub

    def resume_attempt(
        self,
        attempt: int,
        model_tag: bytes | None = None,
        size: int | None = None,
        survivors: Iterable[str] | None = None,
    ) -> None:
        """Open an attempt anew that had begun before a restart; uploads are sent again.

        Args:
            attempt: its number.
            model_tag: as for `begin`.
            size: as for `begin`.
            survivors: whose vectors had been closed over, in any order; only these count then, and `close`
                burns the attempt unless all of them are in. None where it had not been closed.

        Raises:
            ProtocolError: the set-up is not complete, the list cannot have been closed over, or the attempt
                is used or unknown.
        """
        chosen = None
        if survivors is not None:
            chosen = self._context.check_survivors(sorted(survivors, key=self._context.roster.index))
        self._open(attempt, model_tag, size, chosen)

    # --- rounds -----------------------------------------------------------------------------------

    def begin(self, attempt: int, *, model_tag: bytes | None = None, size: int | None = None) -> None:
        """Open an attempt; the one before it, finished or not, is given up.

        Args:
            attempt: its number, higher than any before.
            model_tag: what every upload must carry; None takes the first upload's, which lets one site shut
                others out.
            size: elements of every vector; None takes the first upload's, likewise.

        Raises:
            ProtocolError: the set-up is not complete, or the attempt is used or unknown.
        """
        self._open(attempt, model_tag, size, None)

    def _open(
        self, attempt: int, model_tag: bytes | None, size: int | None, chosen: tuple[int, ...] | None
    ) -> None:
        setup = self._ready()
        self._context.check_attempt(attempt)
        if self._round is not None and attempt <= self._round.attempt:
            raise ProtocolError(f"attempt {attempt} was used", fix="Attempts only move forward")
        if self._round is not None:
            self._round.burn()
        self._round = Round(setup, self._share_hashes, attempt, model_tag=model_tag, size=size, chosen=chosen)

    def on_upload(self, sender: str, message: Buffer) -> None:
        """Add a site's vector; see `Round.on_upload`."""
        self._current().on_upload(sender, message)

    @property
    def uploaded(self) -> frozenset[str]:
        """Names of the sites whose vectors are in."""
        return self._current().uploaded

    def close(self) -> dict[str, bytes]:
        """Fix the survivors and return a request for every site; see `Round.close`."""
        return self._current().close()

    def lost(self, member: str) -> None:
        """Note that a site will not answer in this attempt; see `Round.lost`."""
        self._current().lost(member)

    def returned(self, member: str) -> None:
        """Note that a site that was lost is back; see `Round.returned`."""
        if self._round is not None:
            self._round.returned(member)

    def request_for(self, member: str) -> bytes | None:
        """Return the request that a site has still to answer, to be sent to it again; None where there is
        none."""
        return None if self._round is None else self._round.request_for(member)

    def on_answer(self, sender: str, message: bytes) -> dict[str, bytes] | None:
        """Take a site's answer; see `Round.on_answer`."""
        return self._current().on_answer(sender, message)

    def result(self) -> RoundSum | None:
        """Return the attempt's sum, or None where it is not finished."""
        return self._current().result

    def burn(self) -> None:
        """Give the attempt up."""
        self._current().burn()

    def _ready(self) -> Setup:
        if self._setup is None:
            raise ProtocolError("the set-up of this epoch is not complete", fix="Finish it first")
        return self._setup

    def _current(self) -> Round:
        if self._round is None:
            raise ProtocolError("no attempt has begun", fix="Call begin first")
        return self._round


def _in_order(context: EpochContext, messages: Mapping[str, bytes]) -> list[bytes]:
    return [messages[name] for name in context.roster.names]
