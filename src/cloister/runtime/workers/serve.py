"""The worker's side: it answers what its site asks, one thing at a time, until the site is gone.

In this order, each step refused out of turn:

1. `Meet`: who the site is; the worker answers with an identity made for this process and never written down,
   and a session opens between the two;
2. `Prepare`: what takes long is imported, then the walls go up. No row, no key and no code of a user's was
   here before;
3. `Open`, or `Inspect` where only the model's facts are wanted: the user's code, if the plan has any, runs
   for the first time, inside the walls;
4. `Train` and its like. The first opens the dataset, whose data keys are asked for one by one.

An error of ours goes back as class and text, any other as its class's name alone: its text may hold values.
What a user's code makes of that is not for this side to say; the site knows whether there is any, and does
not believe it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import Buffer, PublicIdentity, StreamRandom, sha256
from cloister.enclave.broker import Wanted
from cloister.errors import CloisterError, ProtocolError
from cloister.learning import Plan, parse_plan
from cloister.learning.privacy import PrivacyTerms
from cloister.privacy.mechanisms import IntegerGrid
from cloister.runtime.link import MAX_PAYLOAD
from cloister.runtime.worker import Worker, columns_of, make_worker, model_facts
from cloister.runtime.workers.answering import brokered, lent, met
from cloister.runtime.workers.channel import Channel, Gone
from cloister.runtime.workers.counting import counted
from cloister.runtime.workers.messages import (
    MAX_TEXT,
    Answer,
    BrokerSays,
    Confined,
    Count,
    Evaluate,
    EvidenceGiven,
    Facts,
    Failed,
    Imports,
    Inspect,
    Integers,
    Key,
    Open,
    Place,
    Prepare,
    PrivateSum,
    Question,
    Sums,
    Terms,
    Train,
    TrainPrivately,
    Vector,
    as_bytes,
    decode_question,
    encode_large,
)
from cloister.vault import Schema, open_manifest
from cloister.vault.handover import OpenDataKey, open_handed

__all__ = ["Confine", "serve"]

Confine = Callable[[list[Path]], tuple[Path, Mapping[str, bool | None]]]
"""Puts the walls up around this process, but for folders to read; returns the one folder it may write to, and
which walls stand, by name."""


def serve(sock: socket.socket, confine: Confine) -> None:
    """Answer until the other end closes the socket.

    Raises:
        ProtocolError, IntegrityError: the other end is not a site that speaks this protocol.
    """
    try:
        site, study, channel = met(sock)  # 1
        _Worker(channel, site, study, confine).run()
    except Gone:
        return


class _Worker:
    """One process's state."""

    def __init__(self, channel: Channel, site: PublicIdentity, study: bytes, confine: Confine) -> None:
        self._channel, self._site, self._study, self._confine = channel, site, study, confine
        self._scratch: Path | None = None
        self._plan: Plan | None = None
        self._local: Worker | None = None

    def run(self) -> None:
        while True:
            question = decode_question(self._channel.receive(MAX_PAYLOAD))
            try:
                answer = self._answered(question)
            except Gone:
                raise
            except CloisterError as error:
                answer = Failed(
                    type(error).__name__, *(_short(text) for text in (error.what, error.where, error.fix))
                )
            except MemoryError:
                said = "there is not enough memory for this work"
                answer = Failed("StorageError", said, _short(self._site.name), "Free some")
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends here, without its text
                answer = Failed(type(error).__name__[:64], "the work failed inside the worker", "", "")
            self._channel.send(encode_large(answer))
            self._channel.flush()

    def _answered(self, question: Question) -> Answer:
        match question:
            case Prepare():
                return self._prepare(question)  # 2
            case Inspect():
                return self._inspect(question)  # 3
            case Open():
                return self._open(question)  # 3
            case Train():
                trained = self._opened().train(self._floats(question.params), question.window)
                return Vector(as_bytes(trained))  # 4
            case TrainPrivately():
                params, privacy = self._floats(question.params), self._terms(question.terms)
                return Vector(as_bytes(self._opened().train_privately(params, privacy, question.window)))
            case PrivateSum():
                params, privacy = self._floats(question.params), self._terms(question.terms)
                found = self._opened().private_sum(params, question.clip, privacy, question.window)
                return Integers(as_bytes(found))
            case Evaluate():
                sums = self._opened().evaluate(self._floats(question.params))
                return Sums(None if sums is None else sums.tolist())
            case Count():
                if self._scratch is None or self._plan is not None:
                    raise _out_of_turn()
                return counted(question, self._site, lent(self._channel))
            case Key() | BrokerSays() | EvidenceGiven():
                raise _out_of_turn()

    def _prepare(self, question: Prepare) -> Confined:
        if self._scratch is not None:
            raise _out_of_turn()
        _import(question.imports)
        self._scratch, walls = self._confine([Path(each) for each in question.read])
        _use_threads(question.threads, torch=question.imports != "nothing")
        return Confined(dict(walls))

    def _inspect(self, question: Inspect) -> Facts:
        plan = self._agreed(question.plan)
        schema = msgspec.json.decode(question.schema, type=Schema)
        code, base = self._code(question.code), _folder(question.base)
        return Facts(model_facts(plan, schema, user_code=code, base=base, scratch=self._scratch))

    def _open(self, question: Open) -> Facts:
        plan = self._agreed(question.plan)
        seed, held_out = question.insecure_test_seed, question.held_out
        self._local = make_worker(
            plan,
            self._schema(question.rows),
            self._reader(plan, 0, question.rows),
            user_code=self._code(question.code),
            base=_folder(question.base),
            scratch=self._scratch,
            site=self._site.name,
            evaluation=None if held_out is None else self._reader(plan, 1, held_out),
            insecure_test_random=None if seed is None else StreamRandom(seed),
        )
        return Facts(self._local.facts)

    def _agreed(self, text: str) -> Plan:
        """Return the plan, which must be the one that the session is bound to."""
        if self._scratch is None or self._plan is not None:
            raise _out_of_turn()
        plan = parse_plan(text.encode())
        if plan.digest != self._study:
            raise ProtocolError("gave the worker another plan than it was started for")
        self._plan = plan
        return plan

    def _code(self, code: bytes | None) -> Path | None:
        if code is None or self._scratch is None:
            return None
        path = self._scratch / "model.py"
        path.write_bytes(code)
        return path

    def _schema(self, place: Place) -> Schema:
        return open_manifest(place.envelope, self._site).schema

    def _reader(self, plan: Plan, number: int, place: Place) -> Callable[[], pa.Table]:
        data_key = self._data_key(plan, number, place)

        def read() -> pa.Table:
            folder = Path(place.folder)
            with open_handed(
                folder, place.envelope, self._site, purpose=plan.study.purpose, data_key=data_key
            ) as dataset:
                return dataset.table(columns_of(plan))

        return read

    def _data_key(self, plan: Plan, number: int, place: Place) -> OpenDataKey:
        """Return what asks for data keys: the site, or the broker that keeps them."""
        if place.broker is None:
            return lent(self._channel, number)
        kek_id = open_manifest(place.envelope, self._site).kek_id
        wanted = Wanted(kek_id, sha256(place.envelope).hex(), plan.digest.hex(), plan.study.purpose)
        return brokered(self._channel, PublicIdentity.from_json(place.broker), wanted, number)

    def _opened(self) -> Worker:
        if self._local is None:
            raise _out_of_turn()
        return self._local

    def _floats(self, data: Buffer) -> NDArray[Any]:
        """Return parameters as the model holds them, where they lie; read-only."""
        single = self._opened().shape.single
        if len(data) % (4 if single else 8):
            raise ProtocolError("sent parameters that are no vector of the model's")
        dtype = np.dtype("<f4" if single else "<f8")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)

    def _terms(self, terms: Terms) -> PrivacyTerms:
        """Return what the worker needs of the epoch's terms; events and both epsilons stay outside."""
        plan = self._plan
        if plan is None or plan.privacy is None or terms.bits not in (16, 32):
            raise _out_of_turn()
        return PrivacyTerms(
            section=plan.privacy,
            grid=IntegerGrid(16 if terms.bits == 16 else 32, terms.clip_units),
            coordinates=terms.coordinates,
            sensitivity=terms.sensitivity,
            noise_multiplier=terms.noise_multiplier,
            share_variance=terms.share_variance,
            events_hub=(),
            events_colluders=(),
            block_attempts=plan.block_attempts,
            attempts=plan.attempts,
        )


def _folder(base: str | None) -> Path | None:
    return None if base is None else Path(base)


def _import(what: Imports) -> None:
    """Import what takes long, or may be out of reach later."""
    if what == "torch":
        import cloister.learning.torch  # noqa: F401
    elif what == "language":
        from cloister.runtime.languagebase import preload

        preload()


def _use_threads(count: int, *, torch: bool) -> None:
    """Let libraries compute with so many threads; a worker comes up with one."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has none

    threadpool_limits(limits=count)
    if torch:
        from cloister.learning.torch import use_threads

        use_threads(count)


def _short(text: str) -> str:
    return text[:MAX_TEXT]


def _out_of_turn() -> ProtocolError:
    return ProtocolError("asked a worker out of turn")
