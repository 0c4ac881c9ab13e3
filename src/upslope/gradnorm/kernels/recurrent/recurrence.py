"""One direction of one layer of a recurrent network, as one kernel: all steps, all its weights.

    a_t = W_x x_t + b_x (+) W_h h_{t-1} + b_h        dL_n/dW_x = sum_t g_nt x_nt^T
                                                     dL_n/dW_h = sum_t g_nt h_{n,t-1}^T
                                                     dL_n/db   = sum_t g_nt

with g_t the gradient of W_x x_t or of W_h h_{t-1} (backpropagation through time, Werbos 1990). g_t
is linear in the gradients of the state, with coefficients that are known in the forward pass. They
are kept in place of the gates, so that a step of the backward pass is one matrix product and a few
entrywise products.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.matrix_products import batched_products, linear
from upslope.gradnorm.core.per_sample_gradients import Dense, OuterProducts, PerSampleGradient
from upslope.gradnorm.core.tape import Kernel, Tape

sigmoid_slope = torch.ops.aten.sigmoid_backward.grad_input
"""(g, s) -> g * s * (1 - s)."""

tanh_slope = torch.ops.aten.tanh_backward.grad_input
"""(g, s) -> g * (1 - s^2)."""

Step = tuple[int, int, int]
"""t, and the rows of the states before and after it."""


class Layer(NamedTuple):
    """The weights of one direction of one layer with k gates.

    w_x: (k h, i), w_h: (k h, p), biases: (k h,), projection: (p, h); p = h without one.
    """

    w_x: Tensor
    w_h: Tensor
    b_x: Tensor | None
    b_h: Tensor | None
    projection: Tensor | None


class Gradients(NamedTuple):
    """The gradients that a backward pass through time gives.

    x, hidden: of W_x x_t and of W_h h_{t-1}, (t, n, k h). start: of the first states.
    outputs: of h_t, (t, n, p), where the layer has a projection.
    """

    x: Tensor
    hidden: Tensor
    start: tuple[Tensor, ...]
    outputs: Tensor | None = None


class Recurrence(Kernel):
    """All steps of a layer. x: (t, n, i), start: (n, p), and (n, h) for the cells of an LSTM.

    The output is the hidden states, (t + 1, n, p), with the start among them: first, or last where
    the steps are taken in `reverse`. An LSTM pads them to (t + 1, n, h) and adds its last cells,
    those after the last step of each sample.
    """

    dim = 1

    def __init__(self, tape: Tape, layer: Layer, reverse: bool, sizes: Sequence[int] | None = None):
        apart = tape.weights.apart
        self.layer = layer = layer._replace(
            w_h=apart(layer.w_h, layer.w_x), b_h=apart(layer.b_h, layer.b_x)
        )
        self.reverse, self.sizes = reverse, sizes
        """How many samples take each step, the first of the batch; None: all samples take all."""
        self.weights = tape.weights.select_weights(*layer)
        self.dtype = tape.options.dtype or layer.w_x.dtype
        self.scratch = tape.options.scratch
        self._last: tuple[Tensor, Gradients] | None = None
        """The last gradient of the output, and what the backward pass gave for it."""

    def apply(self, tape: Tape, x: Tensor, *start: Tensor) -> Tensor:
        """Return the output of the recurrence over x, on the tape."""
        return tape.use(self, x if tape.options.dtype is None else x.to(self.dtype), *start)

    @abstractmethod
    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        """Return the output, and keep what `_run_backward` needs.

        products: W_x x_t and biases, (t, n, k h); overwritten.
        """

    @abstractmethod
    def _run_backward(self, g: Tensor) -> Gradients:
        """Backpropagate through time, from the gradient of the output."""

    def _bias(self) -> Tensor | None:
        """Return the bias that is added to W_x x_t; a network has both biases or none."""
        b_x, b_h = self.layer.b_x, self.layer.b_h
        return None if b_x is None or b_h is None else b_x + b_h

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x, *start = inputs
        bias = self._bias()
        # It is added inside the product, which wants one type.
        bias = None if bias is None else bias.to(self.dtype)
        # The product in the type that the caller asked for (half precision, where it is faster);
        # the steps in the weights' own type, since their rounding errors accumulate over time.
        sums = linear(x, self.layer.w_x.to(self.dtype), bias).to(self.layer.w_h.dtype)
        # A start in half precision joins the steps in theirs.
        states = self._run(sums, tuple(s.to(sums.dtype) for s in start))
        # Detached, because the graph holds this kernel: holding the graph would leak both.
        self.states, self._version = states.detach(), states._version
        return states

    def _steps(self, count: int) -> Iterator[Step]:
        """Yield the steps in the order in which they are taken."""
        for t in reversed(range(count)) if self.reverse else range(count):
            yield (t, t + 1, t) if self.reverse else (t, t, t + 1)

    def _ending(self, t: int) -> slice:
        """Return the samples whose last step is t."""
        assert self.sizes is not None
        return slice(self.sizes[t + 1] if t + 1 < len(self.sizes) else 0, self.sizes[t])

    def _gradients(self, g: Tensor) -> Gradients:
        """Return the gradients, computed once per g: weights and inputs both need them."""
        if self._last is None or self._last[0] is not g:
            self._last = g, self._run_backward(g)
        return self._last[1]

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        gradients = self._gradients(g)
        self._last = None
        if not inputs[0].requires_grad:
            return (None, *gradients.start)
        return (
            linear(gradients.x.to(self.dtype), self.layer.w_x.to(self.dtype).mT),
            *gradients.start,
        )

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """See `Kernel`.

        Raises:
            SamplesNotSeparable: the model has written into the output.
        """
        if self.states._version != self._version:
            raise SamplesNotSeparable("the model writes into the output of a recurrent layer")
        layer, x, gradients = self.layer, inputs[0], self._gradients(g)
        rows = samples.rows(gradients.x)
        rows_h = rows if gradients.hidden is gradients.x else samples.rows(gradients.hidden)
        gram = self._gram(rows) if rows_h is rows else None
        before = self.states[1 : len(x) + 1] if self.reverse else self.states[: len(x)]
        for weight in self.weights:
            if weight is layer.w_x:
                yield weight, OuterProducts(samples.rows(x), rows.to(x.dtype), gram)
            elif weight is layer.w_h:
                states = before[..., : weight.shape[1]]
                yield weight, OuterProducts(samples.rows(states), rows_h, gram)
            elif weight is layer.projection:
                yield weight, self._projection_gradient(gradients, samples)
            else:
                yield weight, Dense((rows if weight is layer.b_x else rows_h).sum(dim=1))

    def _projection_gradient(self, gradients: Gradients, samples: Samples) -> PerSampleGradient:
        """Return the gradient of the projection; only an LSTM has one."""
        raise NotImplementedError

    def _gram(self, rows: Tensor) -> Tensor | None:
        """Return the Gram matrix of the gradients, (n, t, t), for w_x and w_h to share.

        None where one of them takes no ghost norm, where the types differ, or where it exceeds the
        scratch memory.
        """
        n, t, o = rows.shape
        matrices = (self.layer.w_x, self.layer.w_h)
        if self.dtype != rows.dtype or n * t * t * rows.element_size() > self.scratch:
            return None
        if any(t * (w.shape[1] + o) >= w.shape[1] * o for w in matrices):
            return None
        return batched_products(rows, rows.mT)


def by_gate(steps: Tensor, gates: int) -> list[tuple[Tensor, ...]]:
    """(t, n, k h) -> for each of k gates, t views (n, h)."""
    return [gate.unbind(0) for gate in steps.chunk(gates, dim=2)]


class Elman(Recurrence):
    """The recurrence h_t = tanh(a_t) of `nn.RNN`."""

    name = "rnn_tanh"

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        steps, w_h = len(products), self.layer.w_h.mT
        states = products.new_empty(steps + 1, *products.shape[1:])
        states[steps if self.reverse else 0] = start[0]
        self.slopes = products
        sums, rows = products.unbind(0), states.unbind(0)
        for t, before, after in self._steps(steps):
            self._activate(sums[t].addmm_(rows[before], w_h), rows[after])
        return states

    def _activate(self, a: Tensor, out: Tensor) -> None:
        """Write the activation function at `a` to `out`, and then its slope at `a` to `a`."""
        torch.tanh(a, out=out)
        torch.addcmul(out.new_ones(()), out, out, value=-1, out=a)

    def _run_backward(self, g: Tensor) -> Gradients:
        sums = torch.empty_like(self.slopes)
        rows, slopes, products = (s.unbind(0) for s in (g, self.slopes, sums))
        dh = rows[0 if self.reverse else -1]
        for t, before, _ in reversed([*self._steps(len(sums))]):
            torch.mul(dh, slopes[t], out=products[t])
            dh = torch.addmm(rows[before], products[t], self.layer.w_h)
        return Gradients(sums, sums, (dh,))


class ReluElman(Elman):
    """The recurrence h_t = relu(a_t) of `nn.RNN`."""

    name = "rnn_relu"

    def _activate(self, a: Tensor, out: Tensor) -> None:
        torch.clamp_min(a, 0, out=out)
        a.copy_(out > 0)
