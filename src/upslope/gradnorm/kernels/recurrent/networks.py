"""Recurrent networks: the rules of `nn.LSTM`, `nn.GRU` and `nn.RNN`.

Each layer and direction is one kernel (`lstm`, `gru`, `elman`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.tape import Tape
from upslope.gradnorm.core.tensor_marks import marks_of
from upslope.gradnorm.kernels.expand import expand_to_samples
from upslope.gradnorm.kernels.recurrent.elman import Elman, ReluElman
from upslope.gradnorm.kernels.recurrent.gru import GRU
from upslope.gradnorm.kernels.recurrent.lstm import LSTM
from upslope.gradnorm.kernels.recurrent.packed import Packed
from upslope.gradnorm.kernels.recurrent.recurrence import Layer, Recurrence


def _network(kind: type[Recurrence]) -> Callable[..., Any]:
    """Return the rule of `torch.lstm`, `torch.gru` ..., for packed and for padded sequences."""

    def rule(tape: Tape, input: Tensor, *args: Any) -> Any:
        packed, batch_first = None, False
        # The packed form has the batch sizes of the steps, integers, in second place.
        if isinstance(args[0], Tensor) and not args[0].is_floating_point():
            sizes, *others = args
            packed = Packed(sizes, input.device, marks_of(input).order)
        else:
            *others, batch_first = args
        hx, params, has_biases, num_layers, dropout, train, bidirectional = others
        if train and dropout > 0:
            return NotImplemented  # dropout between layers is left to torch
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        initial = tuple(
            expand_to_samples(tape, s, s.shape) if tape.weights.is_weight(s) else s for s in initial
        )
        x = input.transpose(0, 1) if batch_first else input  # (t, n, i), or packed
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        finals: list[tuple[Tensor, ...]] = []
        for number in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = number * directions + direction
                w_x, w_h, *rest = params[index * each : (index + 1) * each]
                b_x, b_h = rest[:2] if has_biases else (None, None)
                projection = rest[2 * has_biases] if each == 3 + 2 * has_biases else None
                layer = Layer(w_x, w_h, b_x, b_h, projection)
                start = [s[index] for s in initial]
                output, last, cells = _run_layer(
                    tape, kind, layer, x, start, direction == 1, packed
                )
                outputs.append(output)
                finals.append((last, cells) if len(initial) == 2 else (last,))
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        ends = [torch.stack(states) for states in zip(*finals, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *ends)

    return rule


def _run_layer(
    tape: Tape,
    kind: type[Recurrence],
    layer: Layer,
    x: Tensor,
    start: Sequence[Tensor],
    reverse: bool,
    packed: Packed | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction of one layer.

    Returns its output, its last hidden state, and the last cell state, which only an LSTM has.
    """
    if packed is None:
        kernel = kind(tape, layer, reverse)
        states = kernel.apply(tape, x, *start)
        hidden, steps = states[..., : layer.w_h.shape[1]], len(x)
        output = hidden[:steps] if reverse else hidden[1 : steps + 1]
        return output, hidden[0 if reverse else steps], states[-1]
    padded = packed.pad(x, reverse)
    # Padded steps are in the order in which they are taken, in both directions.
    kernel = kind(tape, layer, False, packed.sizes)
    kernel.layout = packed.layout
    states = kernel.apply(tape, padded, *start)
    hidden = states[: len(padded) + 1, :, : layer.w_h.shape[1]]
    return packed.pack(hidden[1:], reverse), packed.last(hidden), states[-1]


RULES: Mapping[str, Callable[..., Any]] = {
    "lstm": _network(LSTM),
    "gru": _network(GRU),
    "rnn_tanh": _network(Elman),
    "rnn_relu": _network(ReluElman),
}
"""Name of the torch function -> its rule."""
