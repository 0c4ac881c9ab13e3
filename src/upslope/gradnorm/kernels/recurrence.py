"""One direction of one layer of a recurrent network, as one kernel: all steps, all its weights.

    a_t = W_x x_t + b_x (+) W_h h_{t-1} + b_h        dL_n/dW_x = sum_t g_nt x_nt^T
                                                     dL_n/dW_h = sum_t g_nt h_{n,t-1}^T
                                                     dL_n/db   = sum_t g_nt

with g_t the gradient of W_x x_t or of W_h h_{t-1} (backpropagation through time, Werbos
1990). g_t is linear in the gradients of the state, with coefficients that the forward pass knows:
it keeps these in place of the gates, so that a step back is one matrix product and a few products
entry by entry.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.layout import Inseparable, Samples
from upslope.gradnorm.parts import Dense, Outer, Part
from upslope.gradnorm.products import linear, products
from upslope.gradnorm.tape import Kernel, Tape

sigmoid_slope = torch.ops.aten.sigmoid_backward.grad_input
"""(g, s) -> g * s * (1 - s)."""
tanh_slope = torch.ops.aten.tanh_backward.grad_input
"""(g, s) -> g * (1 - s^2)."""

Step = tuple[int, int, int]
"""t, and the rows of the states before and after it."""


class Layer(NamedTuple):
    """w_x: (k h, i), w_h: (k h, p), biases: (k h,), projection: (p, h); p = h without one."""

    w_x: Tensor
    w_h: Tensor
    b_x: Tensor | None
    b_h: Tensor | None
    projection: Tensor | None


class Pulled(NamedTuple):
    """Gradients of W_x x_t and W_h h_{t-1}, (t, n, k h), of the start, and of h_t, (t, n, p)."""

    x: Tensor
    hidden: Tensor
    start: tuple[Tensor, ...]
    outputs: Tensor | None = None


class Recurrence(Kernel):
    """x: (t, n, i), start: (n, p), and (n, h) for the cells of an LSTM.

    Puts out the hidden states, (t + 1, n, p), with the start among them: first, or last where the
    steps are taken in `reverse`. An LSTM pads them to (t + 1, n, h) and adds its last cells, those
    after each sample's own last step.
    """

    dim = 1

    def __init__(self, tape: Tape, own: Layer, reverse: bool, sizes: Sequence[int] | None = None):
        self.own, self.reverse = own, reverse
        self.sizes = sizes
        """How many samples take each step, the first ones; None: all of them take all."""
        self.weights = tape.weights.asked(*own)
        self.dtype = tape.means.dtype or own.w_x.dtype
        self.scratch = tape.means.scratch
        self._pulled: tuple[Tensor, Pulled] | None = None

    def of(self, tape: Tape, x: Tensor, *start: Tensor) -> Tensor:
        """The recurrence over x, on the tape."""
        return tape.use(self, x if tape.means.dtype is None else x.to(self.dtype), *start)

    @abstractmethod
    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        """The output; keeps what `_back` needs. products: W_x x_t and biases, to be written to."""

    @abstractmethod
    def _back(self, g: Tensor) -> Pulled:
        """Back through time, from the gradient of the output."""

    def _bias(self) -> Tensor | None:
        """What is added to W_x x_t."""
        b_x, b_h = self.own.b_x, self.own.b_h
        return None if b_x is None or b_h is None else b_x + b_h

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`."""
        x, *start = inputs
        bias = self._bias()
        bias = None if bias is None else bias.to(self.dtype)
        sums = linear(x, self.own.w_x.to(self.dtype), bias).to(self.own.w_h.dtype)
        states = self._run(sums, tuple(s.to(sums.dtype) for s in start))
        # Detached: what is kept must not keep the graph that keeps it.
        self.states, self._version = states.detach(), states._version
        return states

    def _steps(self, count: int) -> Iterator[Step]:
        """The steps in the order that they are taken."""
        for t in reversed(range(count)) if self.reverse else range(count):
            yield (t, t + 1, t) if self.reverse else (t, t, t + 1)

    def _ending(self, t: int) -> slice:
        """The samples whose last step is t."""
        assert self.sizes is not None
        return slice(self.sizes[t + 1] if t + 1 < len(self.sizes) else 0, self.sizes[t])

    def _moved(self, g: Tensor) -> Pulled:
        """`_back`, once for each g: the parts and the gradients of the inputs both need it."""
        if self._pulled is None or self._pulled[0] is not g:
            self._pulled = g, self._back(g)
        return self._pulled[1]

    def pull(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """See `Kernel`."""
        pulled = self._moved(g)
        self._pulled = None
        if not inputs[0].requires_grad:
            return (None, *pulled.start)
        return (linear(pulled.x.to(self.dtype), self.own.w_x.to(self.dtype).mT), *pulled.start)

    def parts(self, g: Tensor, *inputs: Tensor, samples: Samples) -> Iterator[tuple[Tensor, Part]]:
        """See `Kernel`.

        Raises:
            Inseparable: the model has written into the output.
        """
        if self.states._version != self._version:
            raise Inseparable("the model writes into the output of a recurrent layer")
        own, x, pulled = self.own, inputs[0], self._moved(g)
        rows = samples.rows(pulled.x)
        rows_h = rows if pulled.hidden is pulled.x else samples.rows(pulled.hidden)
        gram = self._gram(rows) if rows_h is rows else None
        before = self.states[1 : len(x) + 1] if self.reverse else self.states[: len(x)]
        for weight in self.weights:
            if weight is own.w_x:
                yield weight, Outer(samples.rows(x), rows.to(x.dtype), gram)
            elif weight is own.w_h:
                states = before[..., : weight.shape[1]]
                yield weight, Outer(samples.rows(states), rows_h, gram)
            elif weight is own.projection:
                yield weight, self._projected(pulled, samples)
            else:
                yield weight, Dense((rows if weight is own.b_x else rows_h).sum(dim=1))

    def _projected(self, pulled: Pulled, samples: Samples) -> Part:
        """The gradient of the projection, in the one that has it: an LSTM."""
        raise NotImplementedError

    def _gram(self, rows: Tensor) -> Tensor | None:
        """The gradients' Gram matrix, (n, t, t), where both matrices want it and it is small."""
        n, t, o = rows.shape
        matrices = (self.own.w_x, self.own.w_h)
        if self.dtype != rows.dtype or n * t * t * rows.element_size() > self.scratch:
            return None
        if any(t * (w.shape[1] + o) >= w.shape[1] * o for w in matrices):
            return None
        return products(rows, rows.mT)


def by_gate(steps: Tensor, gates: int) -> list[tuple[Tensor, ...]]:
    """(t, n, k h) -> k times t views, (n, h)."""
    return [gate.unbind(0) for gate in steps.chunk(gates, dim=2)]


def tanh_like(like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, out) -> tanh(x) = 2 sigmoid(2 x) - 1: on CPUs torch takes three times as long for it.

    To the last digits of one. The numbers are tensors, or each call would convert them.
    """
    one, two = like.new_tensor(1.0), like.new_tensor(2.0)
    return lambda x, out: torch.mul(x, two, out=out).sigmoid_().mul_(two).sub_(one)
