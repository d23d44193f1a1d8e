"""A base and what reads it, as one module: our own head over the tokens' mean, or the base's own next tokens.

Rows are padded at their right. A row's result depends on no other row's content and on no padding, but for
rounding:

- a causal base gets no mask at all: a token never looks to its right, where padding is;
- an encoder gets a mask of its tokens. Which kernel computes attention may depend on whether anything is
  masked; where rows must have the same bits whatever stands beside them, pad every row by one token or more;
- the module stays in evaluation mode: dropout does nothing.

Packed rows are given their tokens' places, by which transformers keeps texts apart. A base that takes no
places (Bloom, say) reads a packed row as one text.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["LanguageModule"]


class LanguageModule(nn.Module):
    """A language model that is trained.

    Args:
        base: transformers' model: with its output layer for next tokens, without for classes.
        classes: of the label; 0 for a model of next tokens.
        hidden: numbers that the base has for each token.
        encoder: whether tokens look to their right.

    Attributes:
        base: as given.
        encoder: whether tokens look to their right.
        head: Linear(hidden, classes), where there are classes; its start is zero.
        centre, spread: float32[hidden], what the head takes off a text's vector and divides it by; see
            `standing`.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, base: nn.Module, *, classes: int, hidden: int, encoder: bool) -> None:
        super().__init__()
        self.classes, self.encoder = classes, encoder
        device = next(base.parameters()).device
        if classes:  # before the base, so that it comes first among the parameters
            self.head = nn.Linear(hidden, classes, device="meta").to_empty(device=device)
            for each in self.head.parameters():
                nn.init.zeros_(each)
            self.register_buffer("centre", torch.zeros(hidden, device=device))
            self.register_buffer("spread", torch.ones(hidden, device=device))
        self.base = base
        known = inspect.signature(base.forward).parameters
        self._cache = {"use_cache": False} if "use_cache" in known or not encoder else {}
        self._keeps, self._places = "logits_to_keep" in known, "position_ids" in known
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Return scores, or the logits of next tokens.

        Args:
            ids: int64[b, T].
            mask: bool[b, T], whether a token is one of the row.
            places: int64[b, T], of packed rows: each token's place in its own text.

        Returns:
            float32[b, classes], or [b, T, vocabulary].
        """
        return self.scores(ids, mask, places) if self.classes else self._output(ids, places).logits

    def scores(self, ids: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Return float32[b, classes]: the head over the row's vector, from which the centre is taken off."""
        pooled = self.pooled(ids, mask, places)
        with torch.autocast(ids.device.type, enabled=False):
            found: Tensor = self.head((pooled - self.centre) / self.spread)
        return found

    def pooled(self, ids: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Return float32[b, hidden]: the mean of the row's tokens in the last layer."""
        options: dict[str, Any] = {"attention_mask": mask.long()} if self.encoder else {}
        states = self._output(ids, places, **options).last_hidden_state.float()
        inside = mask[:, :, None].float()
        mean: Tensor = (states * inside).sum(1) / inside.sum(1).clamp(min=1.0)
        return mean

    def token_losses(
        self, ids: Tensor, counted: Tensor, *, keep: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Return float32[b]: each row's losses, in nats, added up over the tokens that count.

        Args:
            ids: int64[b, T].
            counted: bool[b, T]; the first column never counts, for nothing comes before it.
            keep: int64[k], ascending, columns from 0 to T - 2 after which some row's token counts: only there
                are logits computed. None for all of them.
            places: as `forward` has it.
        """
        if keep is None:
            keep = torch.arange(ids.shape[1] - 1, device=ids.device)
        if self._keeps:
            logits = self._output(ids, places, logits_to_keep=keep).logits
        else:
            logits = self._output(ids, places).logits[:, keep]
        follow = keep + 1
        wanted = ids[:, follow].masked_fill(~counted[:, follow], -100)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape).sum(1)

    def checkpoint_layers(self) -> None:
        """Let the base's layers forget their activations and compute them again on the way back.

        transformers' own switch works in training mode alone, where dropout would be on.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        for layer in self.base.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = _Checkpointed(layer.forward)

    def _output(self, ids: Tensor, places: Tensor | None, **options: Any) -> Any:
        if places is not None and self._places:
            options["position_ids"] = places
        return self.base(input_ids=ids, return_dict=True, **self._cache, **options)


class _Checkpointed:
    """A layer's forward that keeps its inputs alone while gradients are taken."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **options)
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False, **options)
