"""Which token is drawn: against probabilities worked out on their own, with the same numbers each time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cloister.inference.application import Sampling  # noqa: E402
from cloister.inference.language.drawing import KEYWORD, Draw, Drawing, drawn  # noqa: E402

DRAWS = 20_000


def dice(seed: int = 1) -> Callable[[int], bytes]:
    """The same numbers in every run."""
    return random.Random(seed).randbytes  # noqa: S311 - a test wants the same numbers again


def frequencies(logits: list[float], **sampling: float) -> dict[int, float]:
    draw = Draw(Sampling(max_tokens=1, **sampling), insecure_test_random=dice())  # type: ignore[arg-type]
    row = torch.tensor(logits)
    counts = Counter(drawn(row, draw) for _ in range(DRAWS))
    return {token: count / DRAWS for token, count in counts.items()}


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
        deviation = math.sqrt(probability * (1 - probability) / DRAWS)
        assert found.get(token, 0.0) == pytest.approx(probability, abs=4 * deviation + 1e-6)


def test_a_large_vocabulary() -> None:
    """What is drawn from thousands by top-p is among the likeliest that reach it, and all of those are drawn."""
    logits = [-0.001 * token for token in range(3000)]
    found, wanted = frequencies(logits, top_p=0.3), expected(logits, top_p=0.3)
    assert set(found) <= set(wanted)
    assert len(wanted) > 300
    assert len(found) == len(wanted)
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
    sampled = Draw(
        Sampling(max_tokens=1, temperature=3.0, logprobs=True),
        insecure_test_random=lambda count: bytes(count),
    )
    processor = Drawing()
    processor.prepare_tensor_args([FakeRequest(greedy), FakeRequest(silent), FakeRequest(sampled)])
    scores = torch.tensor([[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 5.0], [9.0, 9.0, 9.0]])
    told = torch.log_softmax(scores, -1)
    after = processor(scores.clone(), torch.zeros(4, dtype=torch.int32))
    assert after[:3].argmax(-1).tolist() == [1, 0, 0]  # drawn with 0
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
