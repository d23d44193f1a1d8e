"""What a plan will take: bytes on the wire, memory at hub and site, minutes. Estimates, from sizes alone.

With n sites, R attempts, d coordinates of b bits in a vector (v = d b / 8 bytes), p parameters as float64
(w = 8 p bytes):

    upload            v + 400: route, session, signature, set-up digest and tags, measured, rounded up
    outcome           v + 400 + 10 a site, for the names of who is in the sum
    set-up, sent      64 R + 32 + 500       announcement: a key and a commitment for each attempt
                      + (n - 1)(66 R + 28)  shares for each other site, 33 bytes each
                      + 64 n R + 32 n       hashes of all shares
    joining           3,500 sent, 2,800 n received: identity, roster, signatures; the manifest comes on top
    study keys        2,300 (n + 1) sent by one site, received by all
    hub               BASE + 5 v            accumulator, one upload, last outcome, its message and record
                      + 12 w                model: the server's four arrays, and a checkpoint being written;
                                            nothing where hub_view = "none"
                      + 64 n n R            hashes of all shares
                      + n LINK              what is under way to and from each site
    site              BASE + 6 v            vector, upload, its message and record, outcome, its message
                      + 12 w + 3 w          model and checkpoint as the hub's, local training
                      + 66 n R              shares of all members
                      + 16 rows columns     its rows as read and as numbers
                      + 24 d                integers and noise, where the plan claims privacy

The vector of a language model is float32 (w = 4 p bytes) and moved block by block:

    hub               BASE + w + 2 v        model, accumulator, a message; no w where hub_view = "none"
    site              BASE + 2 v + 10 w     model, update; in the worker parameters, gradient, Adam's moments
                      + 2 w for FedAdam's moments, + w for the sum of last models, where the plan has them
                                            (at the hub too)
                      + its base and one pass of rows through it (`runtime.baseforecast`)

A round takes as long as n uploads and n outcomes on the hub's link, masks, and four small messages one after
another; the time of local training is not in it. Memory of a module of the user's own while it trains is not
in it either. All parties hold what they need for one vector at a time, so nothing grows with rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto.shamir import SHARE_BYTES
from cloister.errors import InputError
from cloister.learning import Plan
from cloister.learning.language.layout import width_of
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.baseforecast import base_bytes
from cloister.runtime.workers.models import known_model
from cloister.vault import Schema

__all__ = ["Forecast", "Sizes", "forecast", "sizes_of"]

BASE: Final = 128 << 20
"""A process with its libraries before it does anything: 95 MiB measured, rounded up."""
LINK: Final = 1 << 20
"""A datagram with its copies for each site."""

_HEADER: Final = 400
_NAME: Final = 10
_KEY: Final = 32
_TAG: Final = 28
_SIGNED: Final = 500
_JOINING: Final = 3500
_MEMBER: Final = 2800
_SEALED_KEY: Final = 2300
_MASK_BYTES_A_SECOND: Final = 1e9
_MESSAGE_SECONDS: Final = 0.05
_MESSAGES: Final = 4


@dataclass(frozen=True)
class Sizes:
    """What a plan's model amounts to.

    Attributes:
        parameters: of the model.
        coordinates: integers in a vector: the parameters that a round moves; one more under an adaptive clip.
        terms: what `[privacy]` means for the plan's full roster; None where it claims nothing.
        single: whether parameters are float32, and moved block by block.
        base_bytes: what the base of a language model takes at a site, and a pass of rows through it.
    """

    parameters: int
    coordinates: int
    terms: PrivacyTerms | None
    single: bool = False
    base_bytes: int = 0


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring. Bytes, but for the last two.

    Attributes:
        upload_bytes: what a site sends for one attempt.
        outcome_bytes: what it receives for one.
        setup_bytes: what it sends for the secure sum once an epoch.
        study_sent_bytes: what it sends at most, in all attempts and one epoch, but for its manifest.
        study_received_bytes: what it receives at most.
        hub_memory_bytes: most that the hub's process holds.
        site_memory_bytes: most that a site's process holds.
        round_seconds: of one round over a link of the given speed, without local training.
        study_minutes: of all rounds.
    """

    upload_bytes: int
    outcome_bytes: int
    setup_bytes: int
    study_sent_bytes: int
    study_received_bytes: int
    hub_memory_bytes: int
    site_memory_bytes: int
    round_seconds: float
    study_minutes: float


def sizes_of(
    plan: Plan,
    schema: Schema,
    user_code: Path | None = None,
    *,
    base: Path | None = None,
    sandboxed: bool = True,
) -> Sizes:
    """Return the sizes of a plan's model, after checking that it starts where the plan pins it, if it does.

    Args:
        plan: the plan.
        schema: of the rows.
        user_code: the Python file of a module of the user's own, which whoever asks allows.
        base: folder of the base that a language model starts from.
        sandboxed: whether that file runs, and the base is read, in a walled worker, or in this process.

    Raises:
        PlanError, PolicyRefused, InputError, IntegrityError: as `known_model` and `PrivacyTerms.of`.
    """
    model = known_model(plan, schema, user_code=user_code, base=base, sandboxed=sandboxed)
    if plan.model.initial:
        model.require_pinned(plan)
    for window in model.windows:  # refused here: a range of values for tensors that the model has not
        plan.encoding(len(plan.sites), model.tensors, window)
    taken = 0 if base is None else base_bytes(plan, base)
    terms = None if plan.privacy is None else PrivacyTerms.of(plan, plan.params(len(plan.sites)), model)
    coordinates = width_of(model.windows) if terms is None else terms.coordinates
    return Sizes(model.size, coordinates, terms, model.single, taken)


def forecast(
    plan: Plan, sizes: Sizes, *, link_mbit: float = 100.0, rows: int = 0, columns: int = 0
) -> Forecast:
    """Return what a plan will take.

    Args:
        plan: the plan.
        sizes: of its model.
        link_mbit: speed of the hub's link each way, in 10^6 bits a second.
        rows: of the site; 0 where they are not known, and then they are not in its memory.
        columns: numbers in a row once it is read.

    Raises:
        InputError: no link has this speed.
    """
    if not (math.isfinite(link_mbit) and link_mbit > 0):
        raise InputError("the link's speed is not above 0", fix="Give megabits a second, such as 100")
    n, attempts = len(plan.sites), plan.attempts
    vector = sizes.coordinates * plan.aggregation.bits // 8
    upload, outcome = vector + _HEADER, vector + _HEADER + _NAME * n
    parcel, announcement = 2 * SHARE_BYTES * attempts, 2 * _KEY * attempts + _KEY + _SIGNED
    header = _KEY * n + _SIGNED
    setup = announcement + header + (n - 1) * (parcel + _TAG) + n * 2 * _KEY * attempts
    received = n * (announcement + header) + (n - 1) * (parcel + _TAG)
    answer = SHARE_BYTES * n + _HEADER
    request = (_NAME + 2 * _KEY + _NAME) * n + _HEADER
    keys = _SEALED_KEY * (n + 1)
    seconds = (
        n * (upload + outcome) * 8 / (link_mbit * 1e6)
        + (n + 1) * vector / _MASK_BYTES_A_SECOND
        + _MESSAGES * _MESSAGE_SECONDS
    )
    return Forecast(
        upload_bytes=upload,
        outcome_bytes=outcome,
        setup_bytes=setup,
        study_sent_bytes=_JOINING + keys + setup + attempts * (upload + answer),
        study_received_bytes=_MEMBER * n + keys + received + attempts * (outcome + request),
        hub_memory_bytes=_hub(plan, sizes, vector),
        site_memory_bytes=_site(plan, sizes, vector) + 16 * rows * columns,
        round_seconds=round(seconds, 3),
        study_minutes=round(plan.training.rounds * seconds / 60, 2),
    )


def _hub(plan: Plan, sizes: Sizes, vector: int) -> int:
    n = len(plan.sites)
    each, vectors = (4 * (1 + _states(plan)), 2) if sizes.single else (12 * 8, 5)
    model = each * sizes.parameters if plan.aggregation.hub_view == "sum" else 0
    return BASE + vectors * vector + model + n * n * 2 * _KEY * plan.attempts + n * LINK


def _site(plan: Plan, sizes: Sizes, vector: int) -> int:
    shares = len(plan.sites) * 2 * SHARE_BYTES * plan.attempts
    noise = 0 if plan.privacy is None else 24 * sizes.coordinates
    each, vectors = (4 * (10 + _states(plan)), 2) if sizes.single else (15 * 8, 6)
    return BASE + vectors * vector + each * sizes.parameters + shares + noise + sizes.base_bytes


def _states(plan: Plan) -> int:
    """Return how many vectors the server step keeps beside the model."""
    return 2 * (plan.training.algorithm == "fedadam") + (plan.training.average_last > 0)
