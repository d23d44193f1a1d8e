"""Gradients of single rows written a second time: autograd on one unpadded row after the other."""

from __future__ import annotations

import numpy as np
import torch

from cloister.crypto import StreamRandom
from cloister.learning.language.layout import Window
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["clipped", "moved", "row_gradients"]


def moved(learner: LanguageLearner, scale: float = 0.05) -> np.ndarray:
    """Return parameters of which none is zero, float32[d]."""
    random = StreamRandom.from_seed(3, "moved")
    return learner.initial(7) + np.float32(scale) * random.normal(learner.size).astype(np.float32)


def row_gradients(
    learner: LanguageLearner, params: np.ndarray, examples: Examples, window: Window
) -> np.ndarray:
    """Return float64[n, w]: the gradient of each row's own loss by the window."""
    learner.load(params)
    learner.vector.select(window)
    names = [name for name, each in learner.vector.names.items() if each.requires_grad]
    found = []
    for row in range(len(examples)):
        ids = torch.from_numpy(examples.ids[examples.starts[row] : examples.starts[row + 1]]).long()[None]
        with learner.passes.autocast():
            if learner.classes:
                scores = learner.module(ids, torch.ones_like(ids, dtype=torch.bool))
                label = torch.tensor([int(examples.labels[row])])
                loss = torch.nn.functional.cross_entropy(scores.float(), label)
            else:
                counted = examples.counted[examples.starts[row] : examples.starts[row + 1]]
                logits = learner.module(ids, torch.ones_like(ids, dtype=torch.bool))[0].float()
                at = torch.from_numpy(np.flatnonzero(counted))
                logs = torch.log_softmax(logits, -1)
                loss = -sum(logs[i - 1, ids[0, i]] for i in at.tolist()) / max(1, len(at))
        gradients = torch.autograd.grad(loss, [learner.vector.names[name] for name in names])
        found.append(torch.cat([each.flatten() for each in gradients]).double().numpy())
    return np.array(found)


def clipped(gradients: np.ndarray, clip: float) -> np.ndarray:
    """Return the gradients, each at most `clip` long."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients * np.minimum(1.0, clip / np.maximum(norms, 1e-300))
