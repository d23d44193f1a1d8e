"""Which token is drawn: against probabilities worked out on their own, with uniform numbers from a grid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cloister.inference.application import Sampling  # noqa: E402
from cloister.inference.language.drawing import KEYWORD, Draw, Drawing, drawn  # noqa: E402

GRID = 4000


def grid() -> Callable[[int], bytes]:
    """Numbers 0, 1/GRID, 2/GRID, ... as 8 bytes each."""
    numbers = iter(range(GRID))
    return lambda count: int(next(numbers) / GRID * 2**64).to_bytes(count, "big")


def frequencies(logits: list[float], **sampling: float) -> dict[int, float]:
    draw = Draw(Sampling(max_tokens=1, **sampling), insecure_test_random=grid())  # type: ignore[arg-type]
    row = torch.tensor(logits)
    counts = Counter(drawn(row, draw) for _ in range(GRID))
    return {token: count / GRID for token, count in counts.items()}


def expected(
    logits: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> dict[int, float]:
    weights = sorted(((math.exp(x / temperature), token) for token, x in enumerate(logits)), reverse=True)
    weights = weights[: top_k or None]
    total = sum(weight for weight, _ in weights)
    kept, reached = [], 0.0
    for weight, token in weights:
        kept.append((weight, token))
        reached += weight / total
        if reached >= top_p:
            break
    total = sum(weight for weight, _ in kept)
    return {token: weight / total for weight, token in kept}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"top_p": 0.999},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.8},
    ],
)
def test_probabilities(sampling: dict[str, float]) -> None:
    logits = [0.3, -1.0, 2.0, 1.5, -4.0, 0.0, 1.1]
    found, wanted = frequencies(logits, **sampling), expected(logits, **sampling)  # type: ignore[arg-type]
    assert set(found) <= set(wanted)
    for token, probability in wanted.items():
        assert found.get(token, 0.0) == pytest.approx(probability, abs=2 / GRID)


def test_a_large_vocabulary() -> None:
    """Top-p reaches beyond the tokens that are looked at first."""
    flat = [0.0] * 3000
    draw = Draw(Sampling(max_tokens=1, top_p=0.9), insecure_test_random=grid())
    assert len({drawn(torch.tensor(flat), draw) for _ in range(GRID)}) in (2700, 2701)
    peaked = [0.0] * 3000
    peaked[7] = 20.0
    assert frequencies(peaked, top_p=0.9) == {7: 1.0}


@pytest.mark.parametrize(
    "logits", [[math.nan] * 5, [math.inf, 0.0], [-math.inf, -math.inf], [0.0, -math.inf]]
)
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_broken_model_draws_something(logits: list[float], top_p: float) -> None:
    draw = Draw(Sampling(max_tokens=1, top_p=top_p, temperature=0.1))
    assert 0 <= drawn(torch.tensor(logits), draw) < len(logits)


class FakeRequest:
    def __init__(self, draw: Draw) -> None:
        self.state = self
        self.logit_processor_kwargs = {KEYWORD: draw}


def test_rows_of_a_batch() -> None:
    greedy = Draw(Sampling(max_tokens=1, temperature=0, logprobs=True))
    silent = Draw(Sampling(max_tokens=1, temperature=0))
    sampled = Draw(Sampling(max_tokens=1, temperature=3.0, logprobs=True), insecure_test_random=grid())
    processor = Drawing()
    processor.prepare_tensor_args([FakeRequest(greedy), FakeRequest(silent), FakeRequest(sampled)])
    scores = torch.tensor([[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 5.0], [9.0, 9.0, 9.0]])
    told = torch.log_softmax(scores, -1)
    after = processor(scores.clone(), torch.zeros(4, dtype=torch.int32))
    assert after[:3].argmax(-1).tolist() == [1, 0, 0]  # the grid begins with 0
    assert torch.equal(after[:2], scores[:2])
    assert torch.equal(after[3], scores[3])  # its prompt is not read to its end
    assert greedy.logprobs == pytest.approx([float(told[0, 1])])
    assert silent.logprobs == []
    assert sampled.logprobs == pytest.approx([float(told[2, 0])])


def test_log_probabilities_are_always_numbers() -> None:
    for row in ([math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]):
        draw = Draw(Sampling(max_tokens=1, temperature=0, logprobs=True))
        processor = Drawing()
        processor.prepare_tensor_args([FakeRequest(draw)])
        processor(torch.tensor([row]), torch.zeros(1, dtype=torch.int32))
        assert -9999.0 <= draw.logprobs[0] <= 0.0


def test_tokens_are_drawn_with_the_systems_randomness() -> None:
    row = torch.zeros(1 << 16)
    tokens = [drawn(row, Draw(Sampling(max_tokens=1))) for _ in range(8)]
    torch.manual_seed(0)
    again = [drawn(row, Draw(Sampling(max_tokens=1))) for _ in range(8)]
    assert tokens != again
    assert 0 <= Draw(Sampling(max_tokens=1), insecure_test_random=lambda count: b"\xff" * count).uniform() < 1
