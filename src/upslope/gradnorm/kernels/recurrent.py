"""Recurrent networks and cells: the rules of `nn.LSTM`, `nn.GRU` and `nn.RNN`.

A network is a kernel for every layer and direction (`lstm`, `gru`, `elman`). A cell is called step
by step by its model: two products with a kernel each, and a step of the equations that autograd
differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.kernels.elman import Elman, ReluElman
from upslope.gradnorm.kernels.gru import GRU
from upslope.gradnorm.kernels.lift import lift
from upslope.gradnorm.kernels.linear import linear
from upslope.gradnorm.kernels.lstm import LSTM
from upslope.gradnorm.kernels.packed import Packed
from upslope.gradnorm.kernels.recurrence import Layer, Recurrence
from upslope.gradnorm.orders import ORDER
from upslope.gradnorm.tape import Tape

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


def _product(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = linear(tape, x, weight, bias)
    return F.linear(x, weight, bias) if out is NotImplemented else out


def _network(kind: type[Recurrence]) -> Callable[..., Any]:
    """The rule of `torch.lstm`, `torch.gru` ..., for packed sequences and for equal lengths."""

    def rule(tape: Tape, input: Tensor, *args: Any) -> Any:
        packed, batch_first = None, False
        if isinstance(args[0], Tensor) and not args[0].is_floating_point():
            sizes, *others = args
            packed = Packed(sizes, input.device, input.__dict__.get(ORDER))
        else:
            *others, batch_first = args
        hx, params, has_biases, num_layers, dropout, train, bidirectional = others
        if train and dropout > 0:
            return NotImplemented  # between layers
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        initial = tuple(lift(tape, s, s.shape) if tape.weights.made_of(s) else s for s in initial)
        x = input.transpose(0, 1) if batch_first else input  # (t, n, i), or packed
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        finals: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                w_x, w_h, *rest = params[index * each : (index + 1) * each]
                b_x, b_h = rest[:2] if has_biases else (None, None)
                projection = rest[2 * has_biases] if each == 3 + 2 * has_biases else None
                own = Layer(w_x, w_h, b_x, b_h, projection)
                start = [s[index] for s in initial]
                output, last, cells = _over(tape, kind, own, x, start, direction == 1, packed)
                outputs.append(output)
                finals.append((last, cells) if len(initial) == 2 else (last,))
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        ends = [torch.stack(states) for states in zip(*finals, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *ends)

    return rule


def _over(
    tape: Tape,
    kind: type[Recurrence],
    own: Layer,
    x: Tensor,
    start: Sequence[Tensor],
    reverse: bool,
    packed: Packed | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer: its output, the last hidden state, and what stands for cells."""
    if packed is None:
        kernel = kind(tape, own, reverse)
        states = kernel.of(tape, x, *start)
        hidden, steps = states[..., : own.w_h.shape[1]], len(x)
        output = hidden[:steps] if reverse else hidden[1 : steps + 1]
        return output, hidden[0 if reverse else steps], states[-1]
    spread = packed.spread(x, reverse)
    kernel = kind(tape, own, False, packed.sizes)
    kernel.layout = packed.layout
    states = kernel.of(tape, spread, *start)
    hidden = states[: len(spread) + 1, :, : own.w_h.shape[1]]
    return packed.joined(hidden[1:], reverse), packed.last(hidden), states[-1]


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
    "lstm": _network(LSTM),
    "gru": _network(GRU),
    "rnn_tanh": _network(Elman),
    "rnn_relu": _network(ReluElman),
    "lstm_cell": _cell(_lstm),
    "gru_cell": _cell(_gru),
    "rnn_tanh_cell": _cell(_tanh),
    "rnn_relu_cell": _cell(_relu),
}
