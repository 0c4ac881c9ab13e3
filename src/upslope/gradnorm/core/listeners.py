"""Reductions of per-sample gradients, taken while a backward pass shows them use by use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import Layout, Samples, SamplesNotSeparable
from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient, squared_norms
from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.core.weights import Uses, Weights, combined


class Reduction(Protocol):
    """What is wanted of the gradient of one parameter: one row per sample."""

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """(n, ...), from all uses of the parameter `name`."""
        ...

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """(m, ...), from the gradients themselves, (m, *parameter.shape)."""
        ...


class SquaredNorms:
    """Squared Frobenius norms, (n,)."""

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        return combined(weights, name, uses, scratch)

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:  # noqa: ARG002
        """Reduce gradients that are formed already; see `Reduction`."""
        return squared_norms(gradients)


class LayoutUnknown(SamplesNotSeparable):
    """A gradient reached a use whose layout is not known: none had reached it before."""


class ReducingListener:
    """Reduces the gradient of each parameter as soon as it is complete.

    A parameter with a single use is reduced at once, so that its activations can go.
    """

    def __init__(self, tape: Tape, n: int, layouts: Mapping[int, Layout], reduction: Reduction):
        self.tape, self.n, self.layouts, self.reduction = tape, n, layouts, reduction
        self._found: dict[str, Tensor] = {}
        self._pending: dict[str, list[tuple[Tensor, PerSampleGradient]]] = {}
        self.reached = False
        """Whether the backward pass came to some use of a weight, be it with zeros."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Take in the gradient that reached one use; see `Listener`."""
        self.reached = True
        kernel = self.tape.kernels[index]
        layout = kernel.layout or self.layouts.get(index)
        if layout is None and self.n > 1:
            if bool(g.any()):
                raise LayoutUnknown(
                    f"a gradient reached `{kernel.name}` that had reached it in no batch before"
                )
            return  # a use that no gradient has reached yet, nor does now
        samples = Samples(self.n, layout or Layout())
        weights = self.tape.weights
        for weight, part in kernel.weight_gradients(g, *inputs, samples=samples):
            names = weights.sources(weight)
            # Reduced at once, its operands can go before the next layer is reached.
            if len(names) == 1 and self.tape.uses_of[names[0]] == 1 and weights.isometric(weight):
                self._found[names[0]] = self._reduced(names[0], [(weight, part)])
            else:
                for name in names:
                    self._pending.setdefault(name, []).append((weight, part))

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """name -> (n, ...), for every parameter that a gradient reached."""
        for name, uses in self._pending.items():
            self._found[name] = self._reduced(name, uses)
        self._pending.clear()
        return self._found

    def _reduced(self, name: str, uses: Uses) -> Tensor:
        return self.reduction.of_uses(self.tape.weights, name, uses, self.tape.options.scratch)
