"""The rules of recurrent networks and cells: `nn.LSTM`, `nn.GRU`, `nn.RNN`, `nn.LSTMCell` ...

Of a network, each layer is one kernel, of both directions (`recurrence`, `gru`, `lstm`). A model
calls a cell step by step: a step is two products with weights, each with the kernel of `linear`,
and entrywise operators that autograd differentiates.

Packed sequences hold the steps of samples of unequal length, in the order of `PackedSequence`: the
rows of step t are those of the samples that have one, the longest sample first; they begin at row
sum(sizes[:t]). A recurrence runs over padded sequences, all steps of the longest, (t, n, i): what
it computes beyond the end of a sample reaches no output. Backwards, each sample starts at its own
end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.layouts.layout import IndexedLayout, Layout
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.kernels.expand import expand_to_samples
from upslope.gradnorm.kernels.linear import linear
from upslope.gradnorm.kernels.recurrent.gru import GRU
from upslope.gradnorm.kernels.recurrent.lstm import LSTM
from upslope.gradnorm.kernels.recurrent.recurrence import Elman, Layer, Recurrence, ReluElman


class Packing:
    """The rows of a packed batch, and their places in a padded one.

    sizes: (t,), how many samples have each step. order: (n,), which samples they are, where known.
    """

    def __init__(self, sizes: Tensor, device: torch.device, order: Tensor | None):
        self.layout: Layout | None = None
        """Where the samples are in padded sequences, where their order is known."""
        if order is not None:
            self.layout = IndexedLayout(1, owner=order, n=len(order))
        sizes = sizes.to(device)  # torch keeps them on the CPU; all indices are on one device
        self.sizes: list[int] = sizes.tolist()
        n = self.sizes[0]
        self._sample = torch.arange(n, device=device)
        step = torch.arange(len(sizes), device=device)[:, None]
        self._has_step = self._sample < sizes[:, None]  # (t, n)
        self._lengths = self._has_step.sum(dim=0)
        rows = (sizes.cumsum(dim=0) - sizes)[:, None] + self._sample
        reversed_step = (self._lengths - 1 - step).clamp(min=0)
        # Forwards, then backwards. Where a sample has no step, row 0 stands in and is masked.
        self._rows = [
            torch.where(self._has_step, r, 0) for r in (rows, rows.gather(0, reversed_step))
        ]
        self._places = [(s * n + self._sample)[self._has_step] for s in (step, reversed_step)]

    def pad(self, data: Tensor, reverse: bool) -> Tensor:
        """(rows, i) -> (t, n, i): the steps in the order in which they are taken, then zeros."""
        return torch.where(self._has_step[..., None], data[self._rows[reverse]], 0)

    def pack(self, steps: Tensor, reverse: bool) -> Tensor:
        """(t, n, i) -> (rows, i): the inverse of `pad`."""
        return steps.flatten(0, 1)[self._places[reverse]]

    def last(self, states: Tensor) -> Tensor:
        """(t, n, h) -> (n, h): the states after each sample's last step."""
        return states[self._lengths - 1, self._sample]


def _network(kind: type[Recurrence]) -> Callable[..., Any]:
    """Return the rule of `torch.lstm`, `torch.gru` ..., for packed and for padded sequences."""

    def rule(tape: Tape, input: Tensor, *args: Any) -> Any:
        packing, batch_first = None, False
        # The packed form has the batch sizes of the steps, integers, in second place.
        if isinstance(args[0], Tensor) and not args[0].is_floating_point():
            sizes, *others = args
            packing = Packing(sizes, input.device, marks_of(input).order)
        else:
            *others, batch_first = args
        hx, params, has_biases, num_layers, dropout, train, bidirectional = others
        # Elsewhere a fused kernel draws numbers that no dropout of torch would draw.
        draws_otherwise = train and dropout > 0 and input.device.type != "cpu"
        if draws_otherwise or input.shape[int(batch_first)] == 0:  # no steps: torch says so
            return NotImplemented
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        initial = tuple(_as_sample(tape, state) for state in initial)
        x = _as_sample(tape, input)
        x = x.transpose(0, 1) if batch_first else x  # (t, n, i), or packed
        directions = 2 if bidirectional else 1
        weights_per_layer = len(params) // (num_layers * directions)
        finals: list[tuple[Tensor, ...]] = []
        for number in range(num_layers):
            first = number * directions
            layers = []
            for index in range(first, first + directions):
                w_x, w_h, *rest = params[
                    index * weights_per_layer : (index + 1) * weights_per_layer
                ]
                b_x, b_h = rest[:2] if has_biases else (None, None)
                projection = (
                    rest[2 * has_biases] if weights_per_layer == 3 + 2 * has_biases else None
                )
                layers.append(Layer(w_x, w_h, b_x, b_h, projection))
            start = [s[first : first + directions] for s in initial]
            x, ends_of_layer = _run_layer(tape, kind, layers, x, start, packing)
            finals += ends_of_layer
            if train and dropout > 0 and number + 1 < num_layers:
                x = F.dropout(x, dropout)  # entries in the order in which torch's own draw
        ends = [torch.stack(states) for states in zip(*finals, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *ends)

    return rule


def _run_layer(
    tape: Tape,
    kind: type[Recurrence],
    layers: Sequence[Layer],
    x: Tensor,
    start: Sequence[Tensor],
    packing: Packing | None,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Run the directions of one layer.

    Returns the output, and the last states of each direction: hidden, and the cells of an LSTM.
    """
    if packing is not None:
        # Padded steps are in the order in which they are taken, in both directions.
        sequences = [packing.pad(x, bool(reverse)) for reverse in range(len(layers))]
        x = sequences[0] if len(layers) == 1 else torch.stack(sequences)
    kernel = kind(tape, layers, None if packing is None else packing.sizes)
    if packing is not None:
        kernel.layout = packing.layout
    output = kernel.apply(tape, x, *start)
    directions, width = len(layers), layers[0].w_h.shape[1]
    hidden, cells = (output[:-1], output[-1]) if len(start) == 2 else (output, None)
    states = [s[..., :width] for s in hidden.chunk(directions, dim=2)]
    if packing is None:
        last = [s[-1 if k == 0 else 0] for k, s in enumerate(states)]
        is_padded = hidden.shape[2] > directions * width  # behind projected states
        steps_out = torch.cat(states, dim=2) if is_padded else hidden
    else:
        last = [packing.last(s) for s in states]
        rows = [packing.pack(s, bool(k)) for k, s in enumerate(states)]
        steps_out = torch.cat(rows, dim=1)
    if cells is None:
        return steps_out, [(h,) for h in last]
    return steps_out, list(zip(last, cells.chunk(directions, dim=1), strict=True))


NETWORKS: Mapping[str, Callable[..., Any]] = {
    "lstm": _network(LSTM),
    "gru": _network(GRU),
    "rnn_tanh": _network(Elman),
    "rnn_relu": _network(ReluElman),
}
"""Name of the torch function -> its rule."""

State = tuple[Tensor, ...]

CellStep = Callable[[Tensor, Tensor, State], State]
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


def _as_sample(tape: Tape, state: Tensor) -> Tensor:
    """Return a state, or an input, as a tensor of the samples where it is made of weights alone.

    As a learned first state is, or the vector of the first word, of a single sample.
    """
    return expand_to_samples(tape, state, state.shape) if tape.weights.is_weight(state) else state


def _product(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b, by a kernel where W or b is a weight."""
    out = linear(tape, x, weight, bias)
    return F.linear(x, weight, bias) if out is NotImplemented else out


def _cell(step: CellStep) -> Callable[..., Any]:
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
        state = tuple(_as_sample(tape, part) for part in state)
        x = _product(tape, _as_sample(tape, input), w_ih, b_ih)
        h = _product(tape, state[0], w_hh, b_hh)
        after = step(x, h, state)
        return after if len(after) > 1 else after[0]

    return rule


CELLS: Mapping[str, Callable[..., Any]] = {
    "lstm_cell": _cell(_lstm),
    "gru_cell": _cell(_gru),
    "rnn_tanh_cell": _cell(_tanh),
    "rnn_relu_cell": _cell(_relu),
}
"""Name of the torch function -> its rule."""
