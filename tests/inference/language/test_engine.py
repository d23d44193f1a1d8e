"""The engine: what `generate` says, for many at once, who come, leave, and want more than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.inference.language.models import (  # noqa: E402
    GREETING,
    HELLO,
    TOOL,
    TOOL_ARGUMENTS,
    TOOL_CALL,
    TOOL_QUESTION,
)

from cloister.errors import CloisterError, InputError, StorageError  # noqa: E402
from cloister.inference.application import LanguageEngine, Piece, Sampling  # noqa: E402
from cloister.inference.language.batching import EngineStopped  # noqa: E402
from cloister.inference.language.load import load_engine  # noqa: E402
from cloister.inference.language.tools import ToolCall  # noqa: E402
from cloister.learning.modelfiles.files import PlainFolder  # noqa: E402

BOUND = 60.0
GREEDY = Sampling(max_tokens=24, temperature=0)


@contextlib.contextmanager
def loaded(path: Path, scratch: Path, kv_tokens: int = 512) -> Iterator[Any]:
    files = PlainFolder(path)
    try:
        yield load_engine(files, name="m", kv_tokens=kv_tokens, threads=1, scratch=scratch)
    finally:
        files.close()


def run(path: Path, scratch: Path, use: Callable[[Any], Awaitable[None]], kv_tokens: int = 512) -> None:
    """Load a model, use it, close it; all within a bound."""

    async def bounded() -> None:
        with loaded(path, scratch, kv_tokens) as engine:
            try:
                async with asyncio.timeout(BOUND):
                    await use(engine)
            finally:
                await engine.aclose()

    asyncio.run(bounded())


async def said(engine: LanguageEngine, prompt: list[int], sampling: Sampling = GREEDY) -> list[Piece]:
    return [piece async for piece in engine.generate(prompt, sampling)]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def prompts(count: int) -> list[list[int]]:
    return [[3 + (7 * i + j * j) % 300 for j in range(3 + (i * 5) % 40)] for i in range(count)]


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Callable[[list[int], int], list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)

    def reference(prompt: list[int], most: int) -> list[int]:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=most,
            do_sample=False,
        )
        return [int(token) for token in out[0][len(prompt) :]]

    return reference


async def tokens_of(engine: Any, prompt: list[int], most: int) -> list[int]:
    """Token ids, below the text: a tiny random model says little that is text."""
    from cloister.inference.language.drawing import Draw

    out: list[int] = []
    async for new, _ in engine._batcher.tokens(prompt, most, Draw(Sampling(max_tokens=most, temperature=0))):
        out += new
    return out


def test_equal_to_generate_for_twenty_at_once(tiny: Path, tmp_path: Path, reference: Any) -> None:
    async def use(engine: Any) -> None:
        asked = prompts(20)
        found = await asyncio.gather(*(tokens_of(engine, prompt, 24) for prompt in asked))
        assert found == [reference(prompt, 24) for prompt in asked]
        assert engine._batcher.open == 0

    run(tiny, tmp_path, use)


def test_equal_where_the_cache_is_far_too_small_for_all(tiny: Path, tmp_path: Path, reference: Any) -> None:
    """Requests wait, and are set back and computed again; each gets what it would have got alone."""

    async def use(engine: Any) -> None:
        asked = prompts(12)
        assert sum(len(prompt) + 60 for prompt in asked) > 4 * 192
        found = await asyncio.gather(*(tokens_of(engine, prompt, 60) for prompt in asked))
        assert found == [reference(prompt, 60) for prompt in asked]

    run(tiny, tmp_path, use, kv_tokens=192)


def test_joins_and_leaves(tiny: Path, tmp_path: Path, reference: Any) -> None:
    async def use(engine: Any) -> None:
        whole = engine._batcher.free_blocks

        async def visitor(index: int, prompt: list[int]) -> None:
            await asyncio.sleep(0.005 * (index % 7))
            stream = engine.generate(prompt, Sampling(max_tokens=200, temperature=1.0))
            if index % 3 == 0:
                await stream.aclose()  # never begun
                return
            async for _ in stream:
                break
            await stream.aclose()

        async def guest(index: int, prompt: list[int]) -> None:
            await asyncio.sleep(0.01 * (index % 5))
            assert await tokens_of(engine, prompt, 30) == reference(prompt, 30)

        some = prompts(20)
        await asyncio.gather(
            *(visitor(i, prompt) for i, prompt in enumerate(some)),
            *(guest(i, prompt) for i, prompt in enumerate(some)),
        )
        assert engine._batcher.open == 0
        while (
            engine._batcher.free_blocks != whole
        ):  # the thread hears of the last cancellation with its next step
            await asyncio.sleep(0.01)
        assert engine._batcher._manager.output_router.result_handlers == {}

    run(tiny, tmp_path, use)


def test_cancelling_makes_room_for_those_who_were_set_back(
    tiny: Path, tmp_path: Path, reference: Any
) -> None:
    """Without the correction in `batching._Scheduler` the second request waits for ever.

    Five blocks of 32 tokens: both requests take two, the first takes the fifth, and the second is set back.
    """

    async def use(engine: Any) -> None:
        scheduler = engine._batcher._manager.batch_processor.scheduler
        forward = engine._loaded.model.forward

        alone, handed_over, go_on = threading.Event(), threading.Event(), threading.Event()

        def held(*args: Any, **kwargs: Any) -> Any:
            if alone.is_set():
                handed_over.wait(BOUND)  # so that the second comes before the first needs its third block
            alone.set()
            if scheduler.block_new_requests:
                go_on.wait(BOUND)  # the second stays set back until the first is cancelled
            return forward(*args, **kwargs)

        engine._loaded.model.forward = held
        prompt = list(range(50, 83))
        first = engine.generate(list(range(3, 37)), Sampling(max_tokens=60, temperature=0))
        await anext(first)
        second = asyncio.create_task(tokens_of(engine, prompt, 60))
        while engine._batcher.open < 2:
            await asyncio.sleep(0)
        handed_over.set()
        while not scheduler.block_new_requests:
            await asyncio.sleep(0.005)
        assert list(scheduler.active_requests) == ["1"]
        assert list(scheduler.waiting_requests) == ["2"]
        await first.aclose()
        go_on.set()
        assert await second == reference(prompt, 60)

    run(tiny, tmp_path, use, kv_tokens=160)


def test_task_cancellation_frees(tiny: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        whole = engine._batcher.free_blocks
        task = asyncio.create_task(said(engine, [5, 6, 7], Sampling(max_tokens=250)))
        while engine._batcher.free_blocks == whole:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        while engine._batcher.free_blocks != whole:
            await asyncio.sleep(0.01)

    run(tiny, tmp_path, use)


def test_conversations_tools_and_stop_texts(tool: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        assert (engine.takes_tools, engine.embeds, engine.generates) == (True, True, True)
        greeting = engine.chat_prompt([{"role": "user", "content": GREETING}])
        pieces = await said(engine, greeting)
        assert text(pieces) == HELLO
        assert pieces[-1].finish == "stop"
        assert all(piece.finish is None for piece in pieces[:-1])
        total = sum(piece.tokens for piece in pieces)

        asked = engine.chat_prompt([{"role": "user", "content": TOOL_QUESTION}], [TOOL])
        answer = text(await said(engine, asked, Sampling(max_tokens=80, temperature=0)))
        assert answer == TOOL_CALL
        assert engine.tool_parser().feed(answer) == [ToolCall("weather", TOOL_ARGUMENTS)]

        short = await said(engine, greeting, Sampling(max_tokens=3, temperature=0))
        assert short[-1].finish == "length"
        assert sum(piece.tokens for piece in short) == 3
        assert HELLO.startswith(text(short))

        stopped = await said(engine, greeting, Sampling(max_tokens=50, temperature=0, stop=("are you", "x")))
        assert text(stopped) == "Hello. How "
        assert stopped[-1].finish == "stop"
        assert sum(piece.tokens for piece in stopped) < total
        assert engine._batcher.open == 0

    run(tool, tmp_path, use)


def test_log_probabilities(tool: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        prompt = engine.chat_prompt([{"role": "user", "content": GREETING}])
        pieces = await said(engine, prompt, Sampling(max_tokens=50, temperature=0, logprobs=True))
        told = [one for piece in pieces for one in piece.logprobs]
        assert [len(piece.logprobs) for piece in pieces] == [piece.tokens for piece in pieces]
        assert "".join(one.token for one in told) == HELLO + "<|im_end|>"
        model = engine._loaded.model
        ids = await tokens_of(engine, prompt, 50)
        with engine._batcher.paused(), torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)[range(len(ids)), ids]
        assert [one.logprob for one in told] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert (await said(engine, prompt))[0].logprobs == ()

    run(tool, tmp_path, use)


def test_log_probabilities_survive_being_set_back(tiny: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        sampling = Sampling(max_tokens=60, temperature=0, logprobs=True)
        alone = await said(engine, [9] * 30, sampling)
        crowd = await asyncio.gather(*(said(engine, [9] * 30, sampling) for _ in range(8)))
        for pieces in crowd:
            told = [one.logprob for piece in pieces for one in piece.logprobs]
            assert len(told) == sum(piece.tokens for piece in pieces)
            assert told == pytest.approx([one.logprob for piece in alone for one in piece.logprobs], abs=1e-4)

    run(tiny, tmp_path, use, kv_tokens=160)


def test_refusals(tiny: Path, bert: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        assert engine.context == 256
        for prompt, sampling in [
            ([], GREEDY),
            ([1] * 250, GREEDY),
            ([1, -1], GREEDY),
            ([1, 1 << 30], GREEDY),
            ([1], Sampling(max_tokens=0)),
            ([1], Sampling(max_tokens=1, temperature=-1)),
            ([1], Sampling(max_tokens=1, stop=("",))),
        ]:
            with pytest.raises(InputError):
                engine.generate(prompt, sampling)
        for wrong in ([[]], [[1 << 30]], [[1] * 257], [[1]] * 3000):
            with pytest.raises(InputError):
                await engine.embed(wrong)
        with pytest.raises(InputError, match="chat template"):
            engine.chat_prompt([{"role": "user", "content": "x"}], [{}])
        with pytest.raises(InputError, match="encoded"):
            engine.text_prompt("\ud800")
        assert engine.text_prompt("Hello")

    run(tiny, tmp_path, use)

    async def encoder(engine: Any) -> None:
        with pytest.raises(InputError, match="does not generate"):
            engine.generate([1], GREEDY)
        with pytest.raises(InputError, match="no chat template"):
            engine.chat_prompt([{"role": "user", "content": "x"}])

    run(bert, tmp_path, encoder)


def test_a_cache_smaller_than_the_models_context(tiny: Path, tmp_path: Path, reference: Any) -> None:
    async def use(engine: Any) -> None:
        assert engine.context == 64
        prompt = list(range(3, 35))
        assert await tokens_of(engine, prompt, 32) == reference(prompt, 32)
        with pytest.raises(InputError, match="together more than 64"):
            engine.generate(prompt, Sampling(max_tokens=33))

    run(tiny, tmp_path, use, kv_tokens=64)


def test_too_many(tiny: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        engine._most = 2
        streams = [engine.generate([3, 4], Sampling(max_tokens=200)) for _ in range(3)]
        await anext(streams[0])
        await anext(streams[1])
        with pytest.raises(StorageError, match="too many"):
            engine.generate([3, 4], GREEDY)
        with pytest.raises(StorageError, match="too many"):
            await anext(streams[2])
        for stream in streams:
            await stream.aclose()
        assert await said(engine, [3, 4])

    run(tiny, tmp_path, use)


def test_a_fatal_error_reaches_everybody(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: Any) -> None:
        first, waiting = engine.generate([3, 4], Sampling(max_tokens=200)), []
        await anext(first)
        waiting = [asyncio.create_task(said(engine, [3, 4, 5], Sampling(max_tokens=200))) for _ in range(5)]

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("secret 1234")

        engine._loaded.model.forward = broken
        for task in waiting:
            with pytest.raises(EngineStopped):
                await task
        with pytest.raises(EngineStopped) as told:
            async for _ in first:
                pass
        assert "1234" not in str(told.value)
        assert isinstance(told.value, CloisterError)
        while engine.running:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineStopped):
            engine.generate([3, 4], GREEDY)
        with pytest.raises(EngineStopped):
            await engine.embed([[3]])

    with caplog.at_level(logging.DEBUG):
        run(tiny, tmp_path, use)
    assert "1234" not in caplog.text


def test_a_thread_that_dies_silently_is_noticed(tiny: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        engine._batcher._manager._run_generation_loop = lambda: None
        with pytest.raises(EngineStopped):
            await said(engine, [3, 4])
        assert not engine.running

    run(tiny, tmp_path, use)


def test_closing_ends_what_is_open(tiny: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        stream = engine.generate([3, 4], Sampling(max_tokens=250))
        await anext(stream)
        closing = asyncio.create_task(engine.aclose())
        with pytest.raises(EngineStopped):
            async for _ in stream:
                pass
        await closing
        await engine.aclose()
        with pytest.raises(EngineStopped):
            engine.generate([3], GREEDY)

    run(tiny, tmp_path, use)


def test_a_slow_reader_gets_larger_pieces(tool: Path, tmp_path: Path) -> None:
    async def use(engine: Any) -> None:
        stream = engine.generate(engine.chat_prompt([{"role": "user", "content": GREETING}]), GREEDY)
        pieces = [await anext(stream)]
        await asyncio.sleep(1.0)
        pieces += [piece async for piece in stream]
        assert text(pieces) == HELLO
        assert len(pieces) <= 3

    run(tool, tmp_path, use)


def test_nothing_is_logged_or_shown(
    tool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    async def use(engine: Any) -> None:
        prompt = engine.chat_prompt([{"role": "user", "content": GREETING}])
        pieces = await said(engine, prompt)
        assert "Hello" not in repr(pieces) + repr(engine) + repr(engine._loaded)
        await engine.aclose()

    with caplog.at_level(logging.DEBUG):
        run(tool, tmp_path, use)
    assert [record for record in caplog.records if record.name != "asyncio"] == []
    out, err = capfd.readouterr()
    assert out == err == ""


@pytest.mark.parametrize("kind", ["tiny", "bert"])
def test_embeddings(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    model = transformers.AutoModel.from_pretrained(path)
    asked = [*prompts(9), [5]]
    wanted = []
    with torch.inference_mode():
        for prompt in asked:
            pooled = model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
            wanted.append((pooled / pooled.norm()).tolist())

    async def use(engine: Any) -> None:
        found = await engine.embed(asked)
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        assert await engine.embed([]) == []

    run(path, tmp_path, use)


def test_embedding_beside_generating(tiny: Path, tmp_path: Path, reference: Any) -> None:
    async def use(engine: Any) -> None:
        alone = await engine.embed([[3, 4, 5]])
        some = prompts(6)
        found, *vectors = await asyncio.gather(
            asyncio.gather(*(tokens_of(engine, prompt, 40) for prompt in some)),
            *(engine.embed([[3, 4, 5]]) for _ in range(6)),
        )
        assert found == [reference(prompt, 40) for prompt in some]
        assert all(one[0] == pytest.approx(alone[0], abs=1e-5) for one in vectors)

    run(tiny, tmp_path, use)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_other_poolings(pooling: str, bert: Path) -> None:
    from cloister.inference.language.vectors import embedded

    model = transformers.AutoModel.from_pretrained(bert)
    asked = [[5, 6, 7], [8]]
    found = embedded(model, asked, pooling)  # type: ignore[arg-type]
    with torch.inference_mode():
        for prompt, vector in zip(asked, found, strict=True):
            hidden = model(torch.tensor([prompt])).last_hidden_state[0][0 if pooling == "cls" else -1]
            assert vector == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-4)
