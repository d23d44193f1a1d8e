"""One more process of a site: opens the same base and does what the first one says, until its stdin ends.

    python -m cloister.learning.torch.language.rankprocess

It is started by `ranks.RankedLearner` and by nobody else. First on stdin stands an `Opening`; then come
calls. On stdout it says once that it is ready, or why it ended, in one line of JSON; what it computes leaves
it through torch.distributed alone. A call that fails for all processes alike (training diverged) ends
nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import torch

from cloister.crypto import StreamRandom
from cloister.errors import CloisterError, InputError, PlanError
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.torch.language.build import Built, device_of
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.learner import LanguageLearner
from cloister.learning.torch.language.rankwire import Call, Opening, Report, examples_of, receive
from cloister.learning.torch.language.team import Team

__all__ = ["do", "join", "main", "sharded"]

_PATIENCE: Final = timedelta(minutes=30)


def join(opening: Opening, device: torch.device) -> Team:
    """Enter the group of processes; returns when all have.

    Raises:
        InputError: there are more processes than GPUs.
        RuntimeError: torch cannot connect them.
    """
    if device.type == "cuda":
        if opening.size > torch.cuda.device_count():
            raise InputError(
                f"{opening.size} processes need as many GPUs, and there are {torch.cuda.device_count()}",
                fix="Start fewer",
            )
        torch.cuda.set_device(opening.rank)
    for library in ("GLOO", "NCCL"):  # whatever other jobs of this user are told: nobody here authenticates
        os.environ[f"{library}_SOCKET_IFNAME"] = "lo"
    store = torch.distributed.FileStore(opening.store, opening.size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=opening.rank,
        world_size=opening.size,
        timeout=_PATIENCE,
    )
    return Team(opening.rank, opening.size)


def sharded(built: Built, device: torch.device) -> None:
    """Share a frozen base out among the processes, layer by layer (FSDP2); adapters and head stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    module = built.module
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    whole = {each for name, each in module.base.named_parameters() if ".lora_" in name}
    for each in whole:
        each.data = each.data.to(device)
    for layer in list(module.base.modules()):
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(module.base, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    if module.classes:
        module.head.to(device)
    for name, buffer in list(module.named_buffers(recurse=False)):
        module.register_buffer(name, buffer.to(device))


def do(learner: LanguageLearner, call: Call, arrays: list[Any], examples: Examples | None) -> None:
    """Call what the first process calls."""
    if call.method == "generate":
        random = StreamRandom(bytes.fromhex(call.key))
        LanguageLearner.generate(
            learner,
            arrays[0],
            call.prompts,
            call.most,
            temperature=call.temperature,
            insecure_test_random=random,
        )
    elif examples is None:
        raise InputError("a call came without rows")
    elif call.method == "steps":
        if call.training is None:
            raise InputError("steps came without their settings")
        LanguageLearner.steps(learner, arrays[0], examples, call.training, call.window, arrays[1])
    else:
        getattr(LanguageLearner, call.method)(learner, arrays[0], examples)


def main(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Be one of the processes; return the exit status."""
    try:
        length = int.from_bytes(stdin.read(8), "big")
        opening = msgspec.json.decode(stdin.read(length), type=Opening)
        torch.set_num_threads(opening.threads)
        device = device_of(opening.device)
        with contextlib.closing(PlainFolder(Path(opening.base))) as files:
            _say(stdout, Report())
            team = join(opening, device)
            learner = LanguageLearner(
                opening.model,
                opening.language,
                files,
                scratch=Path(opening.scratch),
                device=opening.device,
                team=team,
                spread=(lambda built: sharded(built, device)) if opening.shard else None,
            )
        sent: list[Examples] = []
        while (received := receive(stdin)) is not None:
            call, arrays = received
            if call.fresh:
                count = len(arrays) - (2 if call.method == "steps" else 1)
                sent[call.rows :] = [examples_of(arrays[:count], call.pad)]
                arrays = arrays[count:]
            with contextlib.suppress(PlanError, InputError):  # the first process meets and reports the same
                do(learner, call, arrays, sent[call.rows] if call.rows >= 0 else None)
    except CloisterError as error:
        _say(stdout, Report(error.what, error.where, error.fix))
        return 1
    except (RuntimeError, OSError, ValueError, msgspec.MsgspecError) as error:
        _say(stdout, Report(f"a process of this site failed with {type(error).__name__}"))
        return 1
    return 0


def _say(stdout: IO[bytes], report: Report) -> None:
    with contextlib.suppress(OSError):
        stdout.write(msgspec.json.encode(report) + b"\n")
        stdout.flush()


if __name__ == "__main__":
    _status = main(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout.flush()
    os._exit(_status)  # torch's threads may wait for processes that are gone
