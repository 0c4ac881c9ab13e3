"""One layer of a recurrent network, as one kernel: all steps, all its weights.

    a_t = W_x x_t + b_x (+) W_h h_{t-1} + b_h        dL_n/dW_x = sum_t g_nt x_nt^T
                                                     dL_n/dW_h = sum_t g_nt h_{n,t-1}^T
                                                     dL_n/db   = sum_t g_nt

with g_t the gradient of W_x x_t or of W_h h_{t-1} (backpropagation through time, Werbos 1990). g_t
is linear in the gradients of the state, with coefficients that are known in the forward pass. They
are kept in place of the gates, so that a step of the backward pass is one matrix product and a few
entrywise products.

Both directions of a layer take their steps together: one operator acts on a step of each. In memory
each direction keeps its steps in the order of time, (d, t, n, k); `in_steps` pairs them.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import (
    Dense,
    OuterProducts,
    PerSampleGradient,
)
from upslope.gradnorm.core.layouts.layout import Samples, SamplesNotSeparable
from upslope.gradnorm.core.matrix_products import (
    batched_products,
    linear,
    prefers_onednn,
    prepare_product,
)
from upslope.gradnorm.core.uses.tape import Kernel, Tape

sigmoid_slope = torch.ops.aten.sigmoid_backward.grad_input
"""(g, s) -> g * s * (1 - s)."""

tanh_slope = torch.ops.aten.tanh_backward.grad_input
"""(g, s) -> g * (1 - s^2)."""


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

    x, hidden: of W_x x_t and of W_h h_{t-1}, (d, t, n, k h). start: of the first states,
    (n, p) of one direction and (2, n, p) of both. outputs: of h_t, (d, t, n, p), where the layer
    has a projection.
    """

    x: Tensor
    hidden: Tensor
    start: tuple[Tensor, ...]
    outputs: Tensor | None = None


class Recurrence(Kernel):
    """All steps of a layer in d directions.

    x: (t, n, i), or (d, t, n, i) where each direction has its own. start: (d, n, p), and (d, n, h)
    for the cells of an LSTM.

    The output is the hidden states after each step, (t, n, d p). An LSTM pads them to (t, n, d h)
    and adds its last cells, those after the last step of each sample, as one row more.
    """

    dim = 1
    kept: ClassVar[tuple[str, ...]] = ("states", "_output", "_last")

    def __init__(self, tape: Tape, layers: Sequence[Layer], sizes: Sequence[int] | None = None):
        self.layers = layers = tell_weights_apart(tape, layers)
        self.w_h = join_directions([layer.w_h for layer in layers])
        self.sizes = sizes
        """How many samples take each step, the first of the batch; None: all samples take all."""
        self.flips = len(layers) == 2 and sizes is None
        """Whether the second direction goes from the last step to the first. Packed sequences have
        the steps in the order in which they are taken."""
        select = tape.weights.select_weights
        self.weights = select(*(weight for layer in layers for weight in layer))
        self.wanted = {id(weight) for weight in self.weights}
        self.scratch = tape.options.scratch
        self._last: tuple[Tensor, Gradients] | None = None
        """The last gradient of the output, and what the backward pass gave for it."""

    def apply(self, tape: Tape, x: Tensor, *start: Tensor) -> Tensor:
        """Return the output of the recurrence over x, on the tape."""
        return tape.use(self, x, *start)

    @abstractmethod
    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        """Return the output, and keep what `_run_backward` needs.

        products: W_x x_t and biases, (d, t, n, k h); overwritten. start: those of a step.

        Returns:
            (d, t + 1, n, p), the start among them: first, or, in a second direction that `flips`,
            behind the steps. One row more for an LSTM.
        """

    def _run_at_once(self, x: Tensor, start: Sequence[Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return what `_run` does, by one operator that takes all steps, where there is one."""
        return None

    @abstractmethod
    def _run_backward(self, g: Tensor) -> Gradients:
        """Backpropagate through time. g: the gradient of the output, (d, t, n, p), as `_run`'s."""

    def _bias(self, layer: Layer) -> Tensor | None:
        """Return the bias that is added to W_x x_t; a network has both biases or none."""
        b_x, b_h = layer.b_x, layer.b_h
        return None if b_x is None or b_h is None else b_x + b_h

    def _products(self, x: Tensor) -> Tensor:
        """Return W_x x_t and biases, (d, t, n, k h)."""
        sums = self.w_h.new_empty(len(self.layers), *x.shape[-3:-1], self.layers[0].w_x.shape[0])
        rows: dict[int, Tensor] = {}
        for out, x_d, layer in zip(sums, self._inputs(x), self.layers, strict=True):
            if id(x_d) not in rows:  # both directions may have the same
                rows[id(x_d)] = x_d.flatten(0, 1)
            _put_product(out.flatten(0, 1), rows[id(x_d)], layer.w_x, self._bias(layer))
        return sums

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        x, *start = inputs
        states = self._run_at_once(x, start)
        if states is None:
            sums = self._products(x)
            # A start in half precision joins the steps in theirs.
            start = [s.to(sums.dtype) for s in start]
            states = self._run(sums, tuple(s[0] if len(s) == 1 else s for s in start))
        self.states = states
        # No view, so that the tape hands on this very tensor, and writes to it are counted.
        one = len(self.layers) == 1
        output = states[0, 1:].data if one else self._join(states, x.shape[-3])
        # Detached, because the graph holds this kernel: holding the graph would leak both.
        self._output, self._version = output.detach(), output._version
        return output

    def _join(self, states: Tensor, steps: int) -> Tensor:
        """(2, t + 1, n, p) -> (t, n, 2 p): both directions, without the start.

        An LSTM has its cells in one row more.
        """
        _, rows, n, p = states.shape
        first, second = states
        output = states.new_empty(rows - 1, n, 2 * p)
        output[..., :p] = first[1:]
        start = steps if self.flips else 0
        output[:start, :, p:] = second[:start]
        output[start:, :, p:] = second[start + 1 :]
        return output

    def _inputs(self, x: Tensor) -> Sequence[Tensor]:
        """Return the input of each direction, (t, n, i)."""
        return x.unbind(0) if x.dim() == 4 else [x] * len(self.layers)

    def _in_steps(self, steps: Tensor) -> Sequence[Tensor]:
        """Return the steps of all directions in the order in which they are taken."""
        return in_steps(steps, self.flips)

    def _ending(self, t: int) -> tuple[Any, ...]:
        """Return the index of the samples whose last step is t."""
        assert self.sizes is not None
        after = self.sizes[t + 1] if t + 1 < len(self.sizes) else 0
        return (..., slice(after, self.sizes[t]), slice(None))

    def _gradients(self, g: Tensor) -> Gradients:
        """Return the gradients, computed once per g: weights and inputs both need them."""
        if self._last is None or self._last[0] is not g:
            by_direction = _stack(g.chunk(len(self.layers), dim=2))
            self._last = g, self._run_backward(by_direction)
        return self._last[1]

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs; see `Kernel`."""
        gradients = self._gradients(g)
        self._last = None
        x, one = inputs[0], len(self.layers) == 1
        start = [s[None] if one else s for s in gradients.start]
        if not x.requires_grad:
            return (None, *start)
        products = [
            linear(g_x, layer.w_x.mT) for g_x, layer in zip(gradients.x, self.layers, strict=True)
        ]
        if x.dim() == 4:
            return (torch.stack(products), *start)
        return (products[0] if one else products[0].add_(products[1]), *start)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """See `Kernel`.

        Raises:
            SamplesNotSeparable: the model has written into the output.
        """
        # The states of both directions were copied to the output, those of one are its memory.
        if len(self.layers) == 1 and self._output._version != self._version:
            raise SamplesNotSeparable("the model writes into the output of a recurrent layer")
        gradients = self._gradients(g)
        for direction, x in enumerate(self._inputs(inputs[0])):
            for weight, part in self._direction_gradients(direction, x, gradients, samples):
                if weight is not None and id(weight) in self.wanted:
                    yield weight, part()

    def _direction_gradients(
        self, direction: int, x: Tensor, gradients: Gradients, samples: Samples
    ) -> Iterator[tuple[Tensor | None, Callable[[], PerSampleGradient]]]:
        """Yield each weight of one direction, and a function that returns its gradients."""
        layer, rows = self.layers[direction], samples.rows(gradients.x[direction])
        rows_h = rows
        if gradients.hidden is not gradients.x:
            rows_h = samples.rows(gradients.hidden[direction])
        # Copied once, not by each that reads them: rows far apart miss the caches.
        rows, is_shared = rows.contiguous(), rows_h is rows
        rows_h = rows if is_shared else rows_h.contiguous()
        gram = self._gram(rows, layer) if is_shared else None
        sums = functools.cache(lambda rows: rows.sum(dim=1))
        begin = 1 if direction and self.flips else 0
        before = self.states[direction, begin : begin + len(x), :, : layer.w_h.shape[1]]
        yield layer.w_x, lambda: OuterProducts(samples.rows(x), rows.to(x.dtype), gram)
        yield layer.w_h, lambda: OuterProducts(samples.rows(before), rows_h, gram)
        yield layer.b_x, lambda: Dense(sums(rows))
        yield layer.b_h, lambda: Dense(sums(rows_h))
        yield (
            layer.projection,
            lambda: self._projection_gradient(gradients, direction, samples),
        )

    def _projection_gradient(
        self, gradients: Gradients, direction: int, samples: Samples
    ) -> PerSampleGradient:
        """Return the gradient of the projection; only an LSTM has one."""
        raise NotImplementedError

    def _gram(self, rows: Tensor, layer: Layer) -> Tensor | None:
        """Return the Gram matrix of the gradients, (n, t, t), for w_x and w_h to share.

        None where one of them takes no ghost norm, where the types differ, or where it exceeds the
        scratch memory.
        """
        n, t, o = rows.shape
        matrices = (layer.w_x, layer.w_h)
        if layer.w_x.dtype != rows.dtype or n * t * t * rows.element_size() > self.scratch:
            return None
        if any(t * (w.shape[1] + o) >= w.shape[1] * o for w in matrices):
            return None
        return batched_products(rows, rows.mT)


def tell_weights_apart(tape: Tape, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, with a view in place of each weight that another place has as well.

    One that stands in two places has a gradient for each (`Weights.apart`).
    """
    weights: dict[int, Tensor] = {}

    def tell_apart(weight: Any) -> Any:
        before = weights.get(id(weight))
        if weight is not None:
            weights[id(weight)] = weight
        return tape.weights.apart(weight, before)

    return [Layer(*map(tell_apart, layer)) for layer in layers]


def join_directions(weights: Sequence[Tensor]) -> Tensor:
    """Return the weights of both directions as one tensor, or the only one as it is."""
    return weights[0] if len(weights) == 1 else torch.stack([*weights])


def _stack(directions: Sequence[Tensor]) -> Tensor:
    """(...) of each direction -> (d, ...)."""
    return directions[0][None].contiguous() if len(directions) == 1 else torch.stack([*directions])


def _put_product(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write x W^T + b to `out`, (rows, o). x: (rows, i), weight: (o, i), bias: (o,)."""
    if out.dtype != x.dtype or prefers_onednn(x.numel() * weight.shape[0], x, weight):
        out.copy_(linear(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.mT, out=out)
    else:
        torch.addmm(bias, x, weight.mT, out=out)


def rows_before(rows: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradient of the state before each step; that of the start is part of no output."""
    return [rows[0].new_zeros(1), *rows[:-1]]


def in_steps(steps: Tensor, flips: bool) -> Sequence[Tensor]:
    """(d, t, ...) -> t views in the order in which the steps are taken.

    One direction: (...). Two: (2, ...), the first's step from the start and, where the second
    `flips`, its step as far from the end; with the directions one after the other in memory, the
    distance between the two is always positive, so that a view has them both.
    """
    if len(steps) == 1:
        return steps[0].unbind(0)
    if not flips:
        return steps.unbind(1)
    count, size = steps.shape[1], (2, *steps.shape[2:])
    (between, stride, *others), begin = steps.stride(), steps.storage_offset()
    last = between + (count - 1) * stride
    return [
        steps.as_strided(size, (last - 2 * t * stride, *others), begin + t * stride)
        for t in range(count)
    ]


class Elman(Recurrence):
    """The recurrence h_t = tanh(a_t) of `nn.RNN`."""

    name = "rnn_tanh"
    kept = (*Recurrence.kept, "slopes")

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        _, steps, n, width = products.shape
        states = products.new_empty(len(products), steps + 1, n, width)
        self.slopes = products
        sums, rows = self._in_steps(products), self._in_steps(states)
        rows[0].copy_(start[0])
        add_product = prepare_product(self.w_h, n)
        for t in range(steps):
            self._activate(add_product(rows[t], sums[t]), rows[t + 1], sums[t])
        return states

    def _activate(self, a: Tensor, out: Tensor, slope: Tensor) -> None:
        """Write the activation function at `a` to `out`, and its slope at `a` to `slope`."""
        torch.tanh(a, out=out)
        torch.addcmul(out.new_ones(()), out, out, value=-1, out=slope)

    def _run_backward(self, g: Tensor) -> Gradients:
        sums = torch.empty_like(self.slopes)
        rows, slopes, products = (self._in_steps(s) for s in (g, self.slopes, sums))
        dh, before = rows[-1], rows_before(rows)
        add_product = prepare_product(self.w_h.mT, g.shape[2])
        for t in reversed(range(len(products))):
            torch.mul(dh, slopes[t], out=products[t])
            dh = add_product(products[t], before[t])
        return Gradients(sums, sums, (dh,))


class ReluElman(Elman):
    """The recurrence h_t = relu(a_t) of `nn.RNN`."""

    name = "rnn_relu"

    def _activate(self, a: Tensor, out: Tensor, slope: Tensor) -> None:
        torch.clamp_min(a, 0, out=out)
        slope.copy_(out > 0)
