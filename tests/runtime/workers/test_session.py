"""What a site takes from a worker, and what not: a worker that is honest until it is asked for work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.parties import PURPOSE, parties, plan_for, schema
from tests.runtime.workers.twins import Scripted, inside

from cloister.crypto import Identity
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    StorageError,
)
from cloister.learning import plan_model
from cloister.learning.facts import ModelFacts
from cloister.runtime import LocalWorker, Party
from cloister.runtime.workers.messages import (
    Confined,
    Facts,
    Failed,
    Integers,
    KeyWanted,
    Open,
    Question,
    Sums,
    Train,
    Vector,
    as_bytes,
)
from cloister.runtime.workers.proxy import SandboxedWorker, inspected
from cloister.runtime.workers.session import Session

HUB = Identity.generate("hub")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Party]:
    return parties(tmp_path_factory.mktemp("members"), [40, 25, 30])


def scripted(members: list[Party], says: Callable[[Question], Any]) -> tuple[SandboxedWorker, Scripted]:
    """Return a proxy whose worker opens honestly and then answers as `says`."""
    plan = plan_for(HUB, members)
    facts = ModelFacts.of(plan, plan_model(plan, schema())[1])
    start = Scripted(lambda question: Facts(facts) if isinstance(question, Open) else says(question))
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    return SandboxedWorker(plan, members[0].identity, start, handed), start


def test_a_worker_in_another_thread_trains_as_one_in_this(members: list[Party], tmp_path: Path) -> None:
    from cloister.crypto import StreamRandom

    plan, vault = plan_for(HUB, members), members[0].vault
    worker = SandboxedWorker(
        plan,
        members[0].identity,
        inside(tmp_path),
        vault.hand_over("train", purpose=PURPOSE),
        held_out=vault.hand_over("test", purpose=PURPOSE),
        insecure_test_seed=bytes(32),
    )
    with vault.open("train", purpose=PURPOSE) as train, vault.open("test", purpose=PURPOSE) as test:
        local = LocalWorker(
            plan,
            train.schema,
            train.table,
            evaluation=test.table,
            insecure_test_random=StreamRandom(bytes(32)),
        )
        trained = local.train(local.initial)
        for _ in range(2):
            assert np.array_equal(worker.train(worker.initial), trained)
            assert np.array_equal(worker.evaluate(trained), local.evaluate(trained))  # type: ignore[arg-type]
            trained = local.train(local.initial)
    assert worker.shape.size == local.shape.size
    assert np.array_equal(worker.shape.penalised, local.shape.penalised)
    assert type(worker.shape.head) is type(local.shape.head)
    assert len(worker._session.key_digest) == 32
    worker.close()
    worker.close()


def test_without_held_out_rows_there_is_nothing_to_evaluate(members: list[Party], tmp_path: Path) -> None:
    plan = plan_for(HUB, members)
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    worker = SandboxedWorker(plan, members[0].identity, inside(tmp_path), handed)
    assert worker.evaluate(worker.initial) is None
    worker.close()


@pytest.mark.parametrize(
    "answer",
    [
        Vector(memoryview(bytes(16))),
        Vector(memoryview(bytes(32))),
        Vector(as_bytes(np.array([1.0, np.nan, 0.0]))),
        Vector(as_bytes(np.array([1.0, np.inf, 0.0]))),
        Integers(memoryview(bytes(24))),
        Sums([1.0]),
        Confined({}),
        b"\xc1",
        b"",
        msgspec.msgpack.encode(["Vector"]),
        msgspec.msgpack.encode(["Open", b"", None, None, None, None]),
        msgspec.msgpack.encode(["Vector", bytes(24), 1]),
    ],
    ids=lambda answer: str(type(answer).__name__),
)
def test_an_answer_that_is_none_ends_the_worker(members: list[Party], answer: Any) -> None:
    worker, start = scripted(members, lambda question: answer)
    with pytest.raises(ProtocolError):
        worker.train(worker.initial)
    assert start.twin is not None
    assert start.twin.closed
    with pytest.raises(ProtocolError, match="worker"):
        worker.train(worker.initial)
    assert sum(isinstance(question, Train) for question in start.asked) == 1


def test_an_answer_larger_than_the_model_never_comes(members: list[Party]) -> None:
    worker, _ = scripted(members, lambda question: Vector(memoryview(bytes(64 << 20))))
    with pytest.raises(ProtocolError, match="over the limit"):
        worker.train(worker.initial)


def test_a_worker_that_dies_is_one_sentence(members: list[Party]) -> None:
    worker, _ = scripted(members, lambda question: None)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="the worker ended before its work was done"):
            worker.train(worker.initial)


def test_keys_are_lent_while_rows_are_needed_and_no_others(members: list[Party]) -> None:
    for question in (KeyWanted(1, b"x" * 60), KeyWanted(0, b"not a key of this dataset at all")):
        worker, start = scripted(members, lambda asked, question=question: question)
        with pytest.raises((ProtocolError, IntegrityError)):
            worker.train(worker.initial)
        assert start.twin is not None
        assert start.twin.closed


def test_keys_are_not_lent_before_there_is_work(members: list[Party]) -> None:
    plan = plan_for(HUB, members)
    start = Scripted(lambda question: KeyWanted(0, b"x" * 60))
    with pytest.raises(ProtocolError, match="nothing it was asked needs"):
        SandboxedWorker(
            plan, members[0].identity, start, members[0].vault.hand_over("train", purpose=PURPOSE)
        )


def test_keys_are_lent_as_often_as_there_are_columns(members: list[Party]) -> None:
    import msgspec.json

    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    material = next(handed.folder.glob("_KEY*")).read_bytes()
    entry = msgspec.json.decode(next(iter(msgspec.json.decode(material).values())))
    import base64

    wrapped = base64.b64decode(entry["wrappedDEK"])
    worker, start = scripted(members, lambda question: KeyWanted(0, wrapped))
    with pytest.raises(ProtocolError, match="more keys than its rows have"):
        worker.train(worker.initial)
    assert 4 < len(start.asked) < 40


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("PlanError", PlanError), ("PolicyRefused", PolicyRefused), ("InputError", InputError)],
)
def test_an_error_inside_is_the_same_error_outside(
    members: list[Party], kind: str, raised: type[CloisterError]
) -> None:
    worker, _ = scripted(members, lambda question: Failed(kind, "what is wrong\x1b[2J\n", "here", "Mend it"))
    for _ in range(2):  # it goes on
        with pytest.raises(raised, match=r"what is wrong \[2J  \(here\)\. Mend it\."):
            worker.train(worker.initial)


def test_another_error_inside_is_its_name_alone(members: list[Party]) -> None:
    worker, _ = scripted(members, lambda question: Failed("ValueError", "the work failed", "", ""))
    with pytest.raises(ProtocolError, match=r"the work failed \(ValueError\)"):
        worker.train(worker.initial)


def test_a_worker_without_memory_says_whose_it_is(
    members: list[Party], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LocalWorker, "train", full)
    plan, vault = plan_for(HUB, members), members[0].vault
    handed = vault.hand_over("train", purpose=PURPOSE)
    worker = SandboxedWorker(plan, members[0].identity, inside(tmp_path), handed)
    with pytest.raises(StorageError, match=f"not enough memory.*{members[0].identity.name}"):
        worker.train(np.zeros(worker.facts.size))
    worker.close()


def test_what_code_says_of_rows_is_not_passed_on(members: list[Party]) -> None:
    start = Scripted(lambda question: Failed("PlanError", "row 7 is 1234567", "", ""))
    session = Session(start, members[0].identity, bytes(32), code=True)
    with pytest.raises(PlanError, match="row 7"):  # there were no rows yet
        session.ask(Train(memoryview(b"")))
    lenders = [object()]
    with pytest.raises(PlanError) as error:
        session.ask(Train(memoryview(b"")), lenders=lenders)  # type: ignore[arg-type]
    assert "1234567" not in str(error.value)
    with pytest.raises(PlanError) as error:  # nor later, when a question needs none
        session.ask(Train(memoryview(b"")))
    assert "1234567" not in str(error.value)
    session.close()


def test_a_model_that_is_not_the_pinned_one_is_refused(members: list[Party]) -> None:
    plan = plan_for(HUB, members)
    facts = ModelFacts.of(plan, plan_model(plan, schema())[1])
    other = msgspec.structs.replace(facts, start=as_bytes(np.ones(facts.size)).tobytes())
    start = Scripted(lambda question: Facts(other))
    with pytest.raises(PlanError, match="another initial model"):
        SandboxedWorker(
            plan, members[0].identity, start, members[0].vault.hand_over("train", purpose=PURPOSE)
        )
    assert start.twin is not None
    assert start.twin.closed


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"size": 1 << 39},
        {"start": bytes(8)},
        {"weights": b""},
        {"error": float("nan")},
        {"error": -1.0},
        {"loss": "softmax"},
        {"classes": 3},
    ],
)
def test_facts_that_contradict_each_other_are_none(members: list[Party], change: dict[str, Any]) -> None:
    plan = plan_for(HUB, members)
    facts = ModelFacts.of(plan, plan_model(plan, schema())[1])
    stated = msgspec.to_builtins(Facts(facts), builtin_types=(bytes,))
    stated[1] |= change
    start = Scripted(lambda question: msgspec.msgpack.encode(stated))
    with pytest.raises((InputError, ProtocolError)):
        inspected(plan, schema(), start, None)


def test_the_float_error_is_of_the_plans_sums_alone(members: list[Party]) -> None:
    plan = plan_for(HUB, members)
    facts = ModelFacts.of(plan, plan_model(plan, schema())[1])
    with pytest.raises(InputError, match="float error"):
        facts.float_bound(1)
    assert "3 parameters" in repr(facts)
    assert facts.inputs == 2


def test_facts_of_a_plan_need_no_rows(members: list[Party], tmp_path: Path) -> None:
    plan = plan_for(HUB, members)
    found = inspected(plan, schema(), inside(tmp_path), None)
    assert found.pin == plan.model.initial
    assert np.array_equal(found.initial, LocalWorker(plan, schema(), lambda: None).initial)  # type: ignore[arg-type,return-value]


def test_another_owners_rows_and_another_purpose_are_refused(members: list[Party], tmp_path: Path) -> None:
    plan = plan_for(HUB, members)
    with pytest.raises(PolicyRefused):
        members[0].vault.hand_over("train", purpose="something else")
    theirs = members[1].vault.hand_over("train", purpose=PURPOSE)
    with pytest.raises(IntegrityError):
        SandboxedWorker(plan, members[0].identity, inside(tmp_path), theirs)


def test_a_file_that_is_exchanged_after_it_was_shown_is_refused(tmp_path: Path) -> None:
    members = parties(tmp_path, [40, 25, 30])
    plan = plan_for(HUB, members)
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    worker = SandboxedWorker(plan, members[0].identity, inside(tmp_path), handed)
    data = handed.folder / "data.parquet"
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)
    with pytest.raises(IntegrityError, match="altered"):
        worker.train(worker.initial)
    worker.close()


def test_out_of_turn_is_refused(members: list[Party], tmp_path: Path) -> None:
    plan = plan_for(HUB, members)
    session = Session(inside(tmp_path), members[0].identity, plan.digest)
    with pytest.raises(ProtocolError):
        session.ask(Train(memoryview(bytes(24))))
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    from cloister.runtime.workers.proxy import _place

    other = plan_for(HUB, members, training={"rounds": 9})
    with pytest.raises(ProtocolError):  # another plan than the session is bound to
        session.ask(Open(other.to_toml(), None, _place(handed), None, None))
    assert isinstance(
        session.ask(Open(plan.to_toml(), None, _place(handed), None, None), most=1 << 20), Facts
    )
    with pytest.raises(ProtocolError):
        session.ask(Open(plan.to_toml(), None, _place(handed), None, None))
    session.close()
