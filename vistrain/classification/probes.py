"""Probes: what classes can be told by from features that no longer learn.

Neighbours as in arXiv 1805.01978, section 3.4 (zhirongw/lemniscate.pytorch, whose licence is not stated), written from
the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def vote(
    features: Tensor, bank: Tensor, labels: Tensor, num_classes: int, neighbours: int, temperature: float
) -> Tensor:
    """Class shares of the nearest neighbours' votes.

    Args:
        features: `[B, F]`, of length 1.
        bank: `[N, F]`, of length 1.
        labels: `[N]` int64.
        num_classes: K.
        neighbours: how many vote; all, if there are fewer.
        temperature: weights are exp(similarity / temperature).

    Returns:
        `[B, K]`, sums of 1.
    """
    near = (features @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    weights = (near.values / temperature).softmax(1)
    shares = features.new_zeros(len(features), num_classes)
    return shares.scatter_add_(1, labels[near.indices], weights)


class LinearProbe:
    """Multinomial logistic regression on standardised features, solved by L-BFGS.

    Args:
        features: `[N, F]`.
        labels: `[N]` int64.
        num_classes: K.
        decay: weight of the squared coefficients.
        steps: of L-BFGS.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, decay: float = 1e-4, steps: int = 100
    ) -> None:
        found = features.detach().float()
        self.mean, self.deviation = found.mean(0), found.std(0, unbiased=False).clamp(min=1e-6)
        scaled = (found - self.mean) / self.deviation
        with torch.inference_mode(False), torch.enable_grad():
            scaled, truth = scaled.clone(), labels.clone()
            self.weight = torch.zeros(num_classes, scaled.shape[1] + 1, device=scaled.device, requires_grad=True)
            solver = torch.optim.LBFGS([self.weight], max_iter=steps, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                solver.zero_grad()
                value = F.cross_entropy(self._logits(scaled), truth) + decay * self.weight[:, :-1].square().sum()
                value.backward()
                return value

            solver.step(loss)
        self.weight = self.weight.detach()

    def __call__(self, features: Tensor) -> Tensor:
        """Probabilities `[B, K]` of features `[B, F]`."""
        return self._logits((features.float() - self.mean) / self.deviation).softmax(1)

    def _logits(self, scaled: Tensor) -> Tensor:
        return F.linear(scaled, self.weight[:, :-1], self.weight[:, -1])
