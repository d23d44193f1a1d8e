"""One site on two processes: what they train is what one process trains, whether the base lies in parts or not."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.crypto import Identity, StreamRandom  # noqa: E402
from cloister.errors import InputError, IntegrityError, PlanError, StorageError  # noqa: E402
from cloister.learning.torch.language.private import LanguagePrivate  # noqa: E402
from cloister.learning.torch.language.ranks import RankedLearner  # noqa: E402
from cloister.learning.torch.language.rankwire import Call, arrays_of, examples_of, receive, send  # noqa: E402
from cloister.runtime.languageworker import LanguageWorker  # noqa: E402

Bases = dict[str, Path]


def ranked(
    path: Path, scratch: Path, *, classes: int = 0, ranks: int = 2, shard: bool = False, **changes: Any
) -> Any:
    return RankedLearner(
        made.section(classes),
        made.language(path, **changes),
        path,
        scratch=scratch,
        ranks=ranks,
        device="cpu",
        shard=shard,
    )


@pytest.fixture
def closing() -> Iterator[list[RankedLearner]]:
    learners: list[RankedLearner] = []
    yield learners
    for each in learners:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "classes", "shard", "changes"),
    [
        ("llama", 0, False, {"method": "lora"}),
        ("llama", 0, True, {"rows_per_pass": 2, "checkpointing": True}),
        ("llama", 3, True, {"method": "lora-alternating"}),
        ("bert", 2, False, {"method": "full", "rows_per_pass": 2}),
    ],
)
def test_two_processes_train_what_one_trains(
    bases: Bases,
    tmp_path: Path,
    closing: list[RankedLearner],
    base: str,
    classes: int,
    shard: bool,
    changes: dict[str, Any],
) -> None:
    one, two = (
        made.learner(bases[base], classes=classes, **changes),
        ranked(bases[base], tmp_path, classes=classes, shard=shard, **changes),
    )
    closing.append(two)
    assert two.fixed == one.fixed
    assert two.tensors == one.tensors
    if shard:
        whole, held = (
            sum(
                each.to_local().numel() if hasattr(each, "to_local") else each.numel()
                for name, each in learner.module.base.named_parameters()
                if "lora_" not in name
            )
            for learner in (one, two)
        )
        assert held < 0.51 * whole
    examples, held_out = made.rows(13, classes=classes), made.rows(3, classes=classes, seed=9)
    config = made.training(batch=5)
    loose = 1e-5
    start = one.initial(7)
    for window in one.windows:
        alone, shared = (
            each.train(
                start, examples, config, window, insecure_test_random=StreamRandom.from_seed(5, "order")
            )
            for each in (one, two)
        )
        np.testing.assert_allclose(shared, alone, atol=loose)
        assert not np.array_equal(shared, start)
        start = alone
        for rows in (examples, held_out, examples):
            np.testing.assert_allclose(
                two.losses(start, rows), one.losses(start, rows), rtol=loose, atol=loose
            )
            sums = two.evaluation_sums(start, rows), one.evaluation_sums(start, rows)
            np.testing.assert_allclose(*sums, rtol=1e-4)
    if classes:
        np.testing.assert_allclose(two.predict(start, examples), one.predict(start, examples), atol=loose)
    else:
        assert two.generate(start, [[5, 6], [7, 8, 9]], 4) == one.generate(start, [[5, 6], [7, 8, 9]], 4)
    with pytest.raises(PlanError, match="diverged"):
        two.train(start, examples, made.training(learning_rate=1000.0, l2=1000.0, local_steps=20))
    assert np.isfinite(two.losses(one.initial(7), examples)).all()  # and goes on
    bad = one.initial(7)
    bad[0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        two.losses(bad, examples)
    assert np.isfinite(two.losses(one.initial(7), examples)).all()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_sentence(
    bases: Bases, tmp_path: Path, closing: list[RankedLearner]
) -> None:
    two = ranked(bases["llama"], tmp_path, shard=True)
    closing.append(two)
    process = two._processes[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    with pytest.raises(StorageError, match="processes has ended"):
        two.losses(two.initial(7), made.rows())
    with pytest.raises(InputError, match="have ended"):
        two.losses(two.initial(7), made.rows())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_end_with_the_learner(bases: Bases, tmp_path: Path) -> None:
    two = ranked(bases["llama"], tmp_path)
    process: subprocess.Popen[bytes] = two._processes[0]
    assert process.poll() is None
    two.close()
    assert process.poll() is not None
    two.close()
    gc.collect()


@pytest.mark.slow
def test_processes_listen_on_loopback_whatever_other_jobs_are_told(
    bases: Bases, tmp_path: Path, closing: list[RankedLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")
    two = ranked(bases["llama"], tmp_path)
    closing.append(two)
    found = [address for pid in (os.getpid(), two._processes[0].pid) for address in addresses(pid)]
    assert found
    assert set(found) == {"0100007F"}


def addresses(pid: int) -> list[str]:
    """Local addresses of a process's TCP sockets, as the kernel writes them; any of IPv6 is one too many."""
    held = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
    lines = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    return [line[1].split(":")[0] for line in lines if f"socket:[{line[9]}]" in held]


@pytest.mark.slow
def test_a_base_that_is_another_is_said_before_anything_is_shared(bases: Bases, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="base model here is not the one"):
        ranked(bases["llama"], tmp_path, base="0" * 64)


def test_what_cannot_be_shared_out(bases: Bases, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one process shares nothing"):
        ranked(bases["llama"], tmp_path, ranks=1)
    for changes in ({"method": "full"}, {"quantised": "nf4"}):
        with pytest.raises(InputError, match="only a frozen base"):
            ranked(bases["llama"], tmp_path, shard=True, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_call_and_its_rows_come_through_a_pipe(tmp_path: Path) -> None:
    rows = made.rows(classes=3)
    params = np.arange(5, dtype=np.float32)
    order = np.zeros((0, 4), np.int64)
    with (tmp_path / "pipe").open("wb") as stream:
        for fresh in (True, False):
            before = arrays_of(rows) if fresh else []
            send(stream, Call(method="steps", rows=0, fresh=fresh, pad=3), [*before, params, order])
        stream.write(b"\0\0")
    with (tmp_path / "pipe").open("rb") as stream:
        first, second = receive(stream), receive(stream)
        assert first is not None
        assert second is not None
        found = examples_of(first[1][:4], first[0].pad)
        assert all(np.array_equal(a, b) for a, b in zip(arrays_of(found), arrays_of(rows), strict=True))
        assert found.pad == 3
        for _, arrays in (first, second):
            assert np.array_equal(arrays[-2], params)
            assert arrays[-1].shape == (0, 4)
        assert receive(stream) is None


@pytest.mark.slow
def test_single_rows_are_not_clipped_over_parts_of_a_base(
    bases: Bases, tmp_path: Path, closing: list[RankedLearner]
) -> None:
    two = ranked(bases["llama"], tmp_path, shard=True)
    closing.append(two)
    with pytest.raises(InputError, match="clipped in one process"):
        LanguagePrivate(two, made.rows())


@pytest.mark.slow
def test_a_sites_worker_on_two_processes(bases: Bases, tmp_path: Path) -> None:
    """The worker starts them itself and ends them; what it trains is what one process trains."""
    from tests.runtime import languageparties as parties

    folder = bases["llama"]
    members = parties.parties(tmp_path / "sites", "causal-lm", [6, 6, 6], folder)
    plan = parties.plan_for(Identity.generate("hub"), members, "causal-lm", folder)
    found = []
    for ranks in (1, 2):
        worker = LanguageWorker(
            plan,
            parties.schema("causal-lm"),
            lambda: parties.table("causal-lm", 6, 0),
            folder,
            site="north",
            device="cpu",
            ranks=ranks,
            insecure_test_random=StreamRandom.from_seed(3, "order"),
        )
        with contextlib.closing(worker):
            found.append(worker.train(worker.initial))
            started = [each.pid for each in getattr(worker._loaded(), "_processes", [])]
            assert len(started) == ranks - 1
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in started)
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert np.abs(found[0]).max() > 0
