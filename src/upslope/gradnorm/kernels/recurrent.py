"""Recurrent networks, step by step: the equations of `nn.LSTM`, `nn.GRU` and `nn.RNN`.

The products with the input need no recursion and are one `linear` of all steps. Those with the
hidden state, h_t W^T + b, come one by one, but their gradients g_t are wanted together, for

    dL_n/dW = sum_t g_nt h_nt^T        dL_n/db = sum_t g_nt

So a kernel puts out zeros for all steps, which are added to the products, and hears all g_t at
once; what autograd differentiates inside has the weights as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.kernels.linear import linear
from upslope.gradnorm.layout import Samples
from upslope.gradnorm.parts import Dense, Outer, Part
from upslope.gradnorm.tape import Kernel, Tape

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]
"""From the input's and the hidden state's products to the next state; its first is the output."""


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, dim=-1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (rx, zx, nx), (rh, zh, nh) = x.chunk(3, dim=-1), h.chunk(3, dim=-1)
    r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
    n = torch.tanh(nx + r * nh)
    return ((1 - z) * n + z * state[0],)


def _tanh(x: Tensor, h: Tensor, _: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, _: State) -> State:
    return (torch.relu(x + h),)


class Recurrence(Kernel):
    """Zeros added to h_t W^T + b for every step t. weight: (o, h), bias: (o,); out: (t, n, o)."""

    name = "recurrence"

    def __init__(self, tape: Tape, weight: Tensor, bias: Tensor | None, shape: Sequence[int]):
        self.weight, self.bias, self.shape = weight, bias, tuple(shape)
        self.weights = tape.weights.asked(weight, bias)
        self.states: list[Tensor] = []
        """h_t for every step, (n, h) each: filled in as the recurrence goes."""

    def forward(self, *_: Tensor) -> Tensor:
        """See `Kernel`."""
        return self.weight.new_zeros(()).expand(self.shape)

    def pull(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG002
        """See `Kernel`."""
        return ()

    def parts(self, g: Tensor, *_: Tensor, samples: Samples) -> Iterator[tuple[Tensor, Part]]:
        """See `Kernel`."""
        rows = samples.rows(g)
        for weight in self.weights:
            if weight is self.weight:
                states = torch.stack([h.detach() for h in self.states])  # (t, n, h)
                yield weight, Outer(samples.rows(states), rows)
            else:
                yield weight, Dense(rows.sum(dim=1))


def _product(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = linear(tape, x, weight, bias)
    return F.linear(x, weight, bias) if out is NotImplemented else out


def _network(step: Step, states: int, *, summed: bool) -> Callable[..., Any]:
    """The rule of `torch.lstm`, `torch.gru` ... for batches that are not packed.

    summed: whether a step takes the products with input and hidden state by their sum alone, so
    that both have one gradient.
    """

    def rule(
        tape: Tape,
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Any,
        has_biases: Any,
        num_layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        batch_first: Any,
    ) -> Any:
        packed = isinstance(hx, Tensor) and not hx.is_floating_point()
        if packed or (train and dropout > 0):
            return NotImplemented  # packed sequences; dropout between layers
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        x = input.transpose(0, 1) if batch_first else input  # (t, n, i)
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        finals: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                w_x, w_h, *others = params[index * each : (index + 1) * each]
                b_x, b_h = others[:2] if has_biases else (None, None)
                projection = others[2 * has_biases] if each == 3 + 2 * has_biases else None
                state: State = tuple(s[index] for s in initial)
                products = _product(tape, x, w_x, b_x)
                kernel = Recurrence(tape, w_h, b_h, products.shape)
                zeros = tape.use(kernel)
                # Unbound at once: indexing would fill a gradient of all steps at every step.
                own = (products + zeros if summed else products).unbind(0)
                apart = None if summed else zeros.unbind(0)
                constants = w_h.detach(), None if b_h is None else b_h.detach()
                order = range(len(x)) if direction == 0 else range(len(x) - 1, -1, -1)
                steps: list[Tensor] = [x] * len(x)
                kernel.states = [x] * len(x)
                for t in order:
                    kernel.states[t] = state[0]
                    hidden = F.linear(state[0], *constants)
                    hidden = hidden if apart is None else hidden + apart[t]
                    state = step(own[t], hidden, state)
                    if projection is not None:
                        state = (_product(tape, state[0], projection, None), *state[1:])
                    steps[t] = state[0]
                outputs.append(torch.stack(steps))
                finals.append(state)
            x = torch.cat(outputs, dim=-1)
        last = tuple(torch.stack([final[i] for final in finals]) for i in range(states))
        return (x.transpose(0, 1) if batch_first else x, *last)

    return rule


def _cell(step: Step) -> Callable[..., Any]:
    """The rule of `torch.lstm_cell`, `torch.gru_cell` ..."""

    def rule(
        tape: Tape,
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        x, h = _product(tape, input, w_ih, b_ih), _product(tape, state[0], w_hh, b_hh)
        after = step(x, h, state)
        return after if len(after) > 1 else after[0]

    return rule


RULES: dict[str, Callable[..., Any]] = {
    "lstm": _network(_lstm, 2, summed=True),
    "gru": _network(_gru, 1, summed=False),
    "rnn_tanh": _network(_tanh, 1, summed=True),
    "rnn_relu": _network(_relu, 1, summed=True),
    "lstm_cell": _cell(_lstm),
    "gru_cell": _cell(_gru),
    "rnn_tanh_cell": _cell(_tanh),
    "rnn_relu_cell": _cell(_relu),
}
