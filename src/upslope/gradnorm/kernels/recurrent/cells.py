"""Recurrent cells, which a model calls step by step: `nn.LSTMCell`, `nn.GRUCell`, `nn.RNNCell`.

A step is two products with weights, each with the kernel of `linear`, and entrywise operators that
autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.kernels.linear import linear

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]
"""From the products of input and hidden state with their weights, and the state, to the next state;
its first tensor is the output."""


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
    """Return x W^T + b, by a kernel where W or b is a weight."""
    out = linear(tape, x, weight, bias)
    return F.linear(x, weight, bias) if out is NotImplemented else out


def _cell(step: Step) -> Callable[..., Any]:
    """Return the rule of a cell with the given step."""

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


RULES: Mapping[str, Callable[..., Any]] = {
    "lstm_cell": _cell(_lstm),
    "gru_cell": _cell(_gru),
    "rnn_tanh_cell": _cell(_tanh),
    "rnn_relu_cell": _cell(_relu),
}
"""Name of the torch function -> its rule."""
