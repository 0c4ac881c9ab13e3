"""Any operator without a kernel: run again, once for every sample's share of the gradient.

With g_n the output's gradient where sample n is, and zero elsewhere, dL_n/dW is the operator's own
vector-Jacobian product at g_n. Exact for every operator that autograd can differentiate; the price
is one backward pass of that operator per sample, batched by `vmap` where it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.gradnorm.layout import Inseparable, Samples
from upslope.gradnorm.parts import Part, chunks, squared_norms
from upslope.gradnorm.tape import Kernel, Tape


def replay(
    tape: Tape,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_sample: Callable[[Tensor], bool],
) -> Any:
    """Run `func` so that its weights' per-sample gradients can be found by replaying it.

    Raises:
        Inseparable: the operator works in place or has several outputs.
    """
    name = getattr(func, "__name__", str(func))
    leaves, spec = tree_flatten((args, kwargs))
    inputs = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and is_sample(leaf)]
    weights = [i for i, leaf in enumerate(leaves) if tape.weights.made_of(leaf)]
    if name.endswith("_") and not name.endswith("__"):
        raise Inseparable(f"`{name}` writes a weight into samples, and has no kernel")

    def run(tensors: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        filled = list(leaves)
        for i, tensor in zip((*inputs, *weights), (*tensors, *own), strict=True):
            filled[i] = tensor
        a, k = tree_unflatten(filled, spec)
        out = func(*a, **k)
        if not isinstance(out, Tensor):
            raise Inseparable(f"`{name}` has several outputs, and no kernel")
        return out

    kernel = Replay(name, run, tuple(leaves[i] for i in weights))
    return tape.use(kernel, *(leaves[i] for i in inputs))


class Replay(Kernel):
    """See the head of this file."""

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        weights: tuple[Tensor, ...],
    ):
        self.name = f"{name} (replayed)"
        self.run = run
        self.weights = weights

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`."""
        return self.run(inputs, [w.detach() for w in self.weights]).clone()

    def _graph(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        with torch.enable_grad():
            tensors = [x.detach().requires_grad_(differentiable(x)) for x in inputs]
            own = [w.detach().requires_grad_() for w in self.weights]
            return self.run(tensors, own), tensors, own

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """See `Kernel`."""
        out, tensors, _ = self._graph(inputs)
        asked = [x for x in tensors if x.requires_grad]
        pulled = iter(torch.autograd.grad(out, asked, g, allow_unused=True))
        return tuple(next(pulled) if x.requires_grad else None for x in tensors)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, Part]]:
        """See `Kernel`."""
        out, _, own = self._graph(inputs)
        for weight, leaf in zip(self.weights, own, strict=True):
            yield weight, ReplayPart(out, leaf, g, samples)


def differentiable(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are of a type that has gradients."""
    return tensor.is_floating_point() or tensor.is_complex()


@dataclass(frozen=True)
class ReplayPart:
    """The gradient of `leaf` from each sample's share of g, found when it is asked for."""

    out: Tensor
    leaf: Tensor
    g: Tensor
    samples: Samples

    def __len__(self) -> int:
        return self.samples.n

    def sqnorm(self, scratch: int) -> Tensor:
        """See `Part`."""
        each = self.g.element_size() * 2 * (self.g.numel() + self.leaf.numel())
        pieces = chunks(len(self), each, scratch)
        return torch.cat([squared_norms(self.dense(rows)) for rows in pieces])

    def dense(self, rows: slice) -> Tensor:
        """See `Part`."""
        if len(self) == 1:  # all of it, also where the output is a single number
            shares = [self.g][rows]
        else:
            owner = self.samples.owners(self.g)
            wanted = torch.arange(len(self), device=owner.device)[rows]
            shares = [torch.where(owner == i, self.g, 0) for i in wanted]
        if not shares:
            return self.leaf.new_empty(0, *self.leaf.shape)
        try:
            (out,) = torch.autograd.grad(
                self.out, self.leaf, torch.stack(shares), retain_graph=True, is_grads_batched=True
            )
            return out
        except RuntimeError:  # an operator that vmap cannot batch
            return torch.stack(
                [torch.autograd.grad(self.out, self.leaf, s, retain_graph=True)[0] for s in shares]
            )

    def plus(self, others: Sequence[Part]) -> Part | None:  # noqa: ARG002
        """See `Part`."""
        return None
