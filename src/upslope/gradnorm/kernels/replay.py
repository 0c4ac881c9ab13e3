"""Operators without a kernel: differentiated once for every sample's share of the gradient.

With g_n the output's gradient where sample n is, and zero elsewhere, dL_n/dW is the operator's own
vector-Jacobian product at g_n. Exact for every operator that autograd can differentiate; the price
is one backward pass of that operator per sample, batched by `vmap` where it can be. Called by
`intercept` where no kernel applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.gradnorm.core.chunks import chunks
from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.gradients.sums_of_squares import squared_norms
from upslope.gradnorm.core.layouts.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.uses.tape import Kernel, Tape


def replay(
    tape: Tape,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_sample: Callable[[Tensor], bool],
) -> Any:
    """Run `func`, and record it for one backward pass per sample.

    is_sample: whether a tensor depends on the samples.

    Raises:
        SamplesNotSeparable: the operator works in place or has several outputs.
    """
    name = getattr(func, "__name__", str(func))
    leaves, spec = tree_flatten((args, kwargs))
    inputs = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and is_sample(leaf)]
    weights = [i for i, leaf in enumerate(leaves) if tape.weights.is_weight(leaf)]
    if name.endswith("_") and not name.endswith("__"):
        raise SamplesNotSeparable(f"`{name}` writes a weight into samples, and has no kernel")

    # The operator must not hold its inputs: their graph holds the tape, and the tape holds it.
    places = {*inputs, *weights}
    constants = [None if i in places else leaf for i, leaf in enumerate(leaves)]

    def run(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        leaf_values = list(constants)
        for i, tensor in zip((*inputs, *weights), (*tensors, *values), strict=True):
            leaf_values[i] = tensor
        a, k = tree_unflatten(leaf_values, spec)
        out = func(*a, **k)
        if not isinstance(out, Tensor):
            raise SamplesNotSeparable(f"`{name}` has several outputs, and no kernel")
        return out

    kernel = Replay(name, run, tuple(leaves[i] for i in weights))
    rows = tape.use(kernel, *(leaves[i] for i in inputs))
    return rows[0] if kernel.is_scalar else rows


class Replay(Kernel):
    """An operator that is run again, with a graph, in the backward pass."""

    is_replayed = True

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        weights: tuple[Tensor, ...],
    ):
        self.name = f"{name} (replayed)"
        self.run = run
        self.weights = weights
        self.is_scalar = False
        """Whether the output is a single number, which goes on as a row of one: without a dimension
        no layout could say whose it is."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        out = self.run(inputs, [w.detach() for w in self.weights])
        self.is_scalar = out.dim() == 0
        return out.reshape(out.shape or (1,)).clone()

    def _graph(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the output with its graph, and the leaves for inputs and weights."""
        with torch.enable_grad():
            tensors = [x.detach().requires_grad_(differentiable(x)) for x in inputs]
            weights = [w.detach().requires_grad_() for w in self.weights]
            out = self.run(tensors, weights)
            return out.reshape(out.shape or (1,)), tensors, weights

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        out, tensors, _ = self._graph(inputs)
        differentiable_inputs = [x for x in tensors if x.requires_grad]
        gradients = iter(torch.autograd.grad(out, differentiable_inputs, g, allow_unused=True))
        return tuple(next(gradients) if x.requires_grad else None for x in tensors)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        out, _, leaves = self._graph(inputs)
        for weight, leaf in zip(self.weights, leaves, strict=True):
            yield weight, ReplayedGradient(out, leaf, g, samples)


def differentiable(tensor: Tensor) -> bool:
    """Return whether a tensor is of a type that has gradients."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(frozen=True)
class ReplayedGradient(PerSampleGradient):
    """The gradients of `leaf` from each sample's share of g, computed when they are needed."""

    out: Tensor
    leaf: Tensor
    g: Tensor
    samples: Samples

    def __len__(self) -> int:
        return self.samples.n

    def squared_norms(self, scratch: int) -> Tensor:
        """Return the squared norms; see `PerSampleGradient`."""
        bytes_per_sample = self.g.element_size() * 2 * (self.g.numel() + self.leaf.numel())
        return torch.cat(
            [
                squared_norms(self.materialize(rows))
                for rows in chunks(len(self), bytes_per_sample, scratch)
            ]
        )

    def materialize(self, rows: slice) -> Tensor:
        """Return the gradients themselves; see `PerSampleGradient`."""
        if len(self) == 1:  # all of g; an output that is a scalar has no dimension of samples
            shares = [self.g][rows]
        else:
            owner = self.samples.owners(self.g)
            numbers = torch.arange(len(self), device=owner.device)[rows]
            shares = [torch.where(owner == i, self.g, 0) for i in numbers]
        if not shares:
            return self.leaf.new_empty(0, *self.leaf.shape)
        try:
            gradients = self._pull_back(torch.stack(shares), is_grads_batched=True)
        except RuntimeError:
            # vmap cannot batch some operators, and says so by a RuntimeError. Any other error comes
            # again from the loop below.
            one_by_one = [g for share in shares if (g := self._pull_back(share)) is not None]
            gradients = torch.stack(one_by_one) if one_by_one else None
        # None where the operator takes the weight and uses nothing of it.
        return (
            self.leaf.new_zeros(len(shares), *self.leaf.shape) if gradients is None else gradients
        )

    def _pull_back(self, share: Tensor, *, is_grads_batched: bool = False) -> Tensor | None:
        (gradient,) = torch.autograd.grad(
            self.out, self.leaf, share,
            retain_graph=True, allow_unused=True, is_grads_batched=is_grads_batched,
        )  # fmt: skip
        return gradient

    def cost(self) -> tuple[str, float]:
        """Return what the passes of one sample cost; see `PerSampleGradient`."""
        return "", 3.0 * self.leaf.numel() * len(self)
