"""What a plan trains of a base, as one float32 vector.

Order of the vector, by method:

    lora              head, then every B
    lora-alternating  every A, then head, then every B; even rounds move head and B, odd ones A and head
    full              head, then every parameter of the base

Layers stand in the base's own order; the head (weight, bias) is a text-classifier's and starts at zero. A is
what the seed draws, under "lora" for good: then it is no part of the vector, and `fixed` names it together
with base, tokenizer and scale, none of which any party can have otherwise.

With `weights=False` there are no numbers in the base, on torch's meta device: sizes, start and digests are
the same (but for the start of "full", which is the base itself), and whatever computes is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Head, SoftmaxHead, TokensHead
from cloister.learning.language.adapter import draw_a
from cloister.learning.language.layout import Tensor
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.sections import LanguageSection, ModelSection
from cloister.learning.torch.language.base import open_base
from cloister.learning.torch.language.build import Built, build, device_of
from cloister.learning.torch.language.passing import Passes
from cloister.learning.torch.language.standing import RECIPE, stand
from cloister.learning.torch.language.team import ALONE, Team
from cloister.learning.torch.language.training import memory_errors
from cloister.learning.torch.language.vector import ParameterVector, Single

__all__ = ["LanguageParameters"]


class LanguageParameters:
    """What a plan trains of a base.

    Args:
        section: `[model]`.
        language: `[language]`.
        files: of the base; read here, and never again.
        scratch: a folder, best in memory, for the tokenizer's files while it is loaded.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        weights: whether to read the base's numbers.
        team: the processes that share rows (`ranks`).
        spread: shares the base out among them, from the CPU to their devices; None leaves it whole.

    Attributes:
        words: the base's tokenizer.
        places: the most tokens that the base was made for.
        module: base and head; in evaluation mode.
        layers: of the base that have adapters, by name.
        windows: what rounds move, in turn.
        passes: how rows go through the module.

    Raises:
        PlanError: plan and base do not fit each other.
        InputError: the base cannot be loaded, or the machine cannot compute with it.
        IntegrityError: base or tokenizer is not the one that the plan names.
    """

    single = True
    sharded = False

    def __init__(
        self,
        section: ModelSection,
        language: LanguageSection,
        files: ModelFiles,
        *,
        scratch: Path,
        device: str = "cpu",
        weights: bool = True,
        team: Team = ALONE,
        spread: Callable[[Built], None] | None = None,
    ) -> None:
        opened = open_base(section, language, files, scratch)
        self.section, self.language, self._weights = section, language, weights
        self.words, self._ends, self.places = opened.words, opened.ends, opened.places
        place = device_of(device)
        with self._memory():
            first = place if spread is None else torch.device("cpu")
            built = build(section, language, files, opened, device=first, weights=weights)
            if spread is not None:
                spread(built)
            self._vector = ParameterVector(built.trained)
        self.module, self.layers, self.windows = built.module, built.layers, built.windows
        self._frozen = built.frozen
        self.passes = Passes(
            self.module,
            place,
            bfloat16=language.precision == "bfloat16",
            most=language.rows_per_pass,
            team=team,
        )
        self.fixed = self._settle()
        self._start = self._vector.read() if weights and language.method == "full" else None
        if weights and language.method != "full":
            self._vector.load(self.initial(section.seed))
        if weights and section.classes:
            with self._memory(), self.passes.autocast():
                stand(self.module, self.words, self.vocabulary, section.seed)
        if weights:
            self._read_a_longest_row(place)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind}, {self.size} parameters>"

    @property
    def kind(self) -> Literal["causal-lm", "text-classifier"]:
        """Of the plan's model."""
        return "text-classifier" if self.classes else "causal-lm"

    @property
    def classes(self) -> int:
        """Of the label; 0 for next tokens."""
        return self.section.classes

    @property
    def size(self) -> int:
        """Number of trainable parameters, d."""
        return self._vector.size

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The vector's tensors in its order; adapters by the names that peft's files have."""
        return self._vector.tensors

    @property
    def frozen(self) -> tuple[Tensor, ...]:
        """What belongs to a release and is no part of the vector: A under method "lora"."""
        return tuple(Tensor(name, tuple(a.shape)) for name, a in self._frozen.items())

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: those with two axes or more; bool[d]."""
        return self._vector.penalised

    @property
    def vector(self) -> ParameterVector:
        """The module's trainable parameters."""
        return self._vector

    @property
    def vocabulary(self) -> int:
        """Tokens that the base has vectors for."""
        base: Any = self.module.base
        return int(base.get_input_embeddings().weight.shape[0])

    @property
    def inputs(self) -> int:
        """Tokens of a row at most."""
        return self.language.context

    @property
    def head(self) -> Head:
        """How scores become a loss and a prediction."""
        return SoftmaxHead(self.classes) if self.classes else TokensHead()

    def initial(self, seed: int) -> Single:
        """Return the start, float32[d]: zeros, A as `seed` draws it, or the base itself with method "full".

        Raises:
            InputError: the start is the base, and its numbers were not read.
        """
        if self.language.method == "full":
            if self._start is None:
                raise InputError("the start of method 'full' is the base itself", fix="Load its weights")
            return self._start.copy()
        start = np.zeros(self.size, dtype=np.float32)
        for tensor in self.tensors:
            if tensor.name.endswith(".lora_A.weight"):
                drawn = draw_a(seed, tensor.name, tensor.shape)
                start[self._vector.slices[tensor.name]] = drawn.reshape(-1)
        return start

    def load(self, params: NDArray[np.floating[Any]]) -> None:
        """Set the module's parameters to float[d].

        Raises:
            InputError: the vector has another length, or holds numbers that are not finite; or the base's
                numbers were not read.
        """
        if not self._weights:
            raise InputError("the base was opened without its numbers", fix="Load its weights")
        self._vector.load(params)

    def _settle(self) -> str:
        """Draw A where it stands still; return the digest of all that no party can have otherwise."""
        state = hashlib.sha256(b"cloister/language-fixed/v1")
        scale = float(self.language.alpha / max(1, self.language.rank)).hex()
        for part in (self.language.base, self.language.tokenizer, self.language.method, scale):
            state.update(f"|{part}".encode())
        if self.classes:  # centre and spread by what they follow from: whoever rounds otherwise is no liar
            state.update(f"|{RECIPE}|{self.section.seed}".encode())
        for name, a in self._frozen.items():
            drawn = draw_a(self.section.seed, name, tuple(a.shape))
            state.update(f"|{name}|{tuple(a.shape)}|".encode() + drawn.astype("<f4").tobytes())
            if self._weights:
                with torch.no_grad():
                    a.copy_(torch.from_numpy(drawn))
        return state.hexdigest()

    @torch.no_grad()
    def _read_a_longest_row(self, device: torch.device) -> None:
        """Let the base read as many tokens as the context has, of nobody: a base may have fewer places than
        it says, and is refused for that here and not at somebody's row."""
        base: Any = self.module.base
        pad = getattr(base.config.get_text_config(), "pad_token_id", None)
        ids = torch.full((1, self.language.context), int(pad == 0), device=device)
        everything = torch.ones_like(ids, dtype=torch.bool)
        try:
            with self._memory(), self.passes.autocast():
                if self.classes:
                    self.module.pooled(ids, everything)
                else:
                    self.module.token_losses(ids, everything, keep=torch.zeros_like(ids[0, :1]))
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"the base cannot read rows of {self.language.context} tokens",
                where="[language] context",
                fix="Write less: some bases have fewer places than their configuration says",
            ) from error

    def _memory(self) -> contextlib.AbstractContextManager[None]:
        rows = self.language.rows_per_pass
        lower = f"rows_per_pass (now {rows})" if rows else "rows_per_pass (now the whole batch)"
        more = "" if self.language.checkpointing else ", write checkpointing = true"
        return memory_errors(f"Lower [language] {lower} or context{more}, or use a smaller base")
