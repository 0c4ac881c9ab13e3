"""One network of the table that sets our price beside that of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upslope.gradnorm import label_free

SEED = 0


@label_free
def loss(outputs: Tensor) -> Tensor:
    """Return the cross-entropy with the first class, the mean of positions, (n,).

    outputs: logits, (n, classes, ...). Not the entropy, which is flat at the nearly uniform
    posterior of a network with random weights, so that errors would be those of rounding alone.
    """
    losses = outputs.logsumexp(dim=1) - outputs[:, 0]
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses


@dataclass(frozen=True)
class Entry:
    """make: a fresh module. draw: from n to inputs, a tensor or a tuple.

    batch: samples per step. memory_format: the channels-last format of its inputs, if it has one.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int], Any]
    batch: int = 8
    memory_format: torch.memory_format | None = None

    def model(self) -> nn.Module:
        """Return the network in evaluation mode, with the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.make()
            for parameter in model.parameters():
                # Biases and scales start at 0 and 1, which hides faults.
                if parameter.dim() < 2:
                    parameter.data.add_(0.05 * torch.randn_like(parameter))
            _settle(model, self.draw(4))
        return model.eval()

    def inputs(self) -> Any:
        """Return one batch, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + 1)
            return self.draw(self.batch)


def _settle(model: nn.Module, inputs: Any) -> None:
    """Give batch normalisation the statistics of a batch: else activations vanish with depth."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(*((inputs,) if isinstance(inputs, Tensor) else inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def images(*shape: int) -> Callable[[int], Tensor]:
    """Return what draws standard normal samples of this shape."""
    return lambda n: torch.randn(n, *shape)


def words(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    """Return what draws sequences of words."""
    return lambda n: torch.randint(3, vocabulary, (n, length))


class Logits(nn.Module):
    """A network of `transformers` that takes its input by this name; returns its logits.

    Of logits for every position, (n, positions, classes), the classes go to dimension 1.
    """

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(**{self.name: x}).logits
        return logits.transpose(1, 2) if logits.dim() == 3 else logits
