"""Networks that do not learn from gradients: frozen ones, and moving averages of a student."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A network in evaluation mode, whatever the student does, that no optimizer sees; checkpoints hold it.

    Args:
        network: it is taken over, and frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        super().train(False)
        return self


class AveragedTeacher(Teacher):
    """The moving average of a student; it knows how many steps it has followed, so that resumed runs go on exactly.

    Args:
        network: a copy of the student, or of parts of it, under the student's names.
    """

    steps: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float, step: int) -> None:
        """Move towards the tensors of the same names in the student: decay * own + (1 - decay) * its. Buffers are taken
        over.

        Args:
            student: what it is an average of.
            decay: 1 moves nothing.
            step: of the optimizer, done.
        """
        theirs = dict(student.named_parameters())
        mine = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(mine.values()), [theirs[name].detach() for name in mine], 1 - decay)
        buffers = dict(student.named_buffers())
        for name, value in self.network.named_buffers():
            value.copy_(buffers[name])
        self.steps.fill_(step)
