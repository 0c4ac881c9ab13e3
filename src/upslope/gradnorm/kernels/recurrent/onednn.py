"""The LSTM layer of oneDNN, by which PyTorch runs float32 on a CPU.

One call takes all steps of a direction. What a backward pass needs, the gates and the cells, it
leaves in a workspace whose format is not documented. So where they are is looked up in a trial run,
once for each shape, and believed only if every gate and every cell of the trial is there. In each
later call a state of the last step is computed again from what is read. Where either fails, the
caller takes the steps one by one. Called by `lstm`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_PAGE = 1024
"""Numbers in a page of memory, at the beginning of which each array of a workspace lies."""

_LINE = 16
"""Numbers in a line of the cache: rows of gates begin at one."""

_TOLERANCE = 1e-4
"""By how much a number that is read may differ from what it is by definition. Gates and states are
of order one; those of a trial are random, so that no others are so close to them throughout."""

_FEWEST = 16
"""Numbers that are compared at least: fewer might be alike by chance."""

_MOST = 1 << 18
"""States that one call is for. Its workspace has some 60 bytes for each; blocks of more than 32 MiB
the C library fetches from the system each time, in clean pages. Set by hand."""


class Places(NamedTuple):
    """Where a workspace, as numbers, has the gates and the cells.

    row: from the gates of one sample, from the first on, to those of the next. cells: where the
    first step's cells begin.
    """

    row: int
    cells: int


class Steps(NamedTuple):
    """What a direction computes in all its steps, in the order in which it takes them.

    output: (t, n, h), in the order of time. gates: i, f, g and o, (t, n, 4, h). cells: (t + 1, n,
    h), the first before the first step.
    """

    output: Tensor
    gates: Tensor
    cells: Tensor


def parts(steps: int, states: int) -> Iterator[slice]:
    """Yield the steps that one call takes, for so many states in each step."""
    count = max(1, min(steps // 2, -(-steps * states // _MOST)))
    ends = [steps * k // count for k in range(count + 1)]
    yield from map(slice, ends[:-1], ends[1:])


def fits(*tensors: Tensor) -> bool:
    """Whether PyTorch runs an LSTM without projection on such tensors by oneDNN, in float32."""
    return (
        not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(
            t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() > 0 for t in tensors
        )
    )


def run(
    x: Tensor, start: tuple[Tensor, Tensor], weights: Sequence[Tensor | None], reverse: bool
) -> Steps | None:
    """Run one direction, or return None where its workspace is not understood.

    x: (t, n, i). start: hidden state and cells, (n, h). weights: w_x, w_h, and both biases or none.
    """
    (t, n, _), h = x.shape, start[0].shape[1]
    places = _places(x.shape, h, torch.get_num_threads(), _precision())
    if places is None:
        return None
    output, last_cells, workspace = _call(x, start, weights, reverse)
    gates = workspace[: t * n * places.row].view(t, n, places.row)[..., : 4 * h]
    begin = places.cells - n * h
    cells = workspace[begin : begin + (t + 1) * n * h].view(t + 1, n, h)
    # It has those between the steps; those before and after were handed in and out. There is room
    # for them, and the workspace is nobody else's.
    cells[0].copy_(start[1])
    cells[-1].copy_(last_cells)
    steps = Steps(output, gates.view(t, n, 4, h), cells)
    return steps if _ends_right(steps, output[0 if reverse else -1]) else None


def _ends_right(steps: Steps, last: Tensor) -> bool:
    """Whether the last gates and cells of the last sample give its hidden state, `last`, (n, h)."""
    # Numbers of Python: a few operators on tensors would take as long as a step.
    i, f, g, o = steps.gates[-1, -1, :, -1].tolist()
    c = f * steps.cells[-2, -1, -1].item() + i * g
    return bool(abs(o * math.tanh(c) - last[-1, -1].item()) < _TOLERANCE)


def _precision() -> tuple[str, ...]:
    """Return what tells oneDNN in which type to multiply numbers of float32."""
    rnn = getattr(torch.backends.mkldnn, "rnn", None)  # not in every version of torch
    return torch.get_float32_matmul_precision(), str(getattr(rnn, "fp32_precision", ""))


def _call(
    x: Tensor, start: tuple[Tensor, Tensor], weights: Sequence[Tensor | None], reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, (t, n, h), the last cells, (n, h), and the workspace, as numbers."""
    # It takes all memory for contiguous.
    tensors = (x, *start, *(w for w in weights if w is not None))
    x, h, c, w_x, w_h, *biases = (tensor.detach().contiguous() for tensor in tensors)
    # PyTorch hands in zeros where there are none.
    b_x, b_h = biases or [w_x.new_zeros(len(w_x))] * 2
    lstm, layers = 2, 1  # mode and number
    # There is a workspace only where autograd is on. It has nothing to note of detached tensors.
    with torch.enable_grad():
        output, _, cells, workspace = torch.ops.aten.mkldnn_rnn_layer(
            x, w_x, w_h, b_x, b_h, h, c, reverse, [], lstm, w_h.shape[1], layers,
            bool(biases), False, False, True,
        )  # fmt: skip
    return output, cells, workspace.view(torch.float32)


@functools.lru_cache(4096)
def _places(
    shape: torch.Size,
    h: int,
    threads: int,  # noqa: ARG001 (on this and the next depends what oneDNN chooses to do)
    precision: tuple[str, ...],  # noqa: ARG001
) -> Places | None:
    """Return where a workspace has gates and cells, or None if they are not found.

    shape: that of the input, (t, n, i). h: width.
    """
    t, n, i = shape
    if (t - 1) * n * h < _FEWEST:
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x, state, cells, w_x, w_h, bias = (
            torch.randn(size, generator=generator)
            for size in ((t, n, i), (n, h), (n, h), (4 * h, i), (4 * h, h), (4 * h,))
        )
        weights = [w_x.div_(i**0.5), w_h.div_(h**0.5), bias, torch.zeros_like(bias)]
        output, _, workspace = _call(x, (state, cells), weights, reverse=False)
        before = torch.cat([state[None], output[:-1]])
        gates = (x @ w_x.mT).add_(before @ w_h.mT).add_(bias).view(t, n, 4, h)
        # The third is no sigmoid.
        third = gates[:, :, 2].tanh()
        gates.sigmoid_()[:, :, 2] = third
        row = _find_row(workspace, gates)
        begin = None if row is None else _find_cells(workspace, gates, cells, row)
        return None if row is None or begin is None else Places(row, begin)


def _find_row(workspace: Tensor, gates: Tensor) -> int | None:
    """Return the distance from row to row of gates, (t, n, 4, h), which come first, if it is one.

    Rows begin at a line; between the end of one and the next, a line may be left out.
    """
    t, n, _, h = gates.shape
    least = -(-4 * h // _LINE) * _LINE
    for row in (least, least + _LINE):
        if t * n * row <= len(workspace):
            there = workspace[: t * n * row].view(t, n, row)[..., : 4 * h]
            if _is_close(there, gates.flatten(2)):
                return row
    return None


def _find_cells(workspace: Tensor, gates: Tensor, cells: Tensor, row: int) -> int | None:
    """Return where the first step's cells are, if those of all steps but the last are there.

    They follow the gates, in an array that begins at a page and has t + 1 steps, the first of them
    before the first, for the input and for the layer.
    """
    i, f, g, _ = gates.unbind(2)
    t, size = len(gates), cells.numel()
    steps = []
    for k in range(t - 1):
        cells = f[k] * cells + i[k] * g[k]
        steps.append(cells.flatten())
    sequence = torch.cat(steps)
    first_page = -(-t * len(i[0]) * row // _PAGE)
    for page in range(first_page * _PAGE, len(workspace), _PAGE):
        begin = page + (t + 2) * size
        # The first few numbers settle it for nearly all pages.
        if begin + t * size <= len(workspace) and all(
            _is_close(workspace[begin : begin + few], sequence[:few]) for few in (8, len(sequence))
        ):
            return begin
    return None


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return bool((a - b).abs_().max() < _TOLERANCE)
