"""Embeddings, y_s = W[id_s], and other look-ups of rows of a weight.

dL_n/dW has g_ns added to row id_ns. With t ids per sample, at most t rows of its gradient are not
zero, and only these are formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core.layout import Samples
from upslope.gradnorm.core.per_sample_gradients import PerSampleGradient, Rows
from upslope.gradnorm.core.tape import Kernel, Tape


class Embedding(Kernel):
    """Rows of a weight (v, e). The row `padding` gets no gradient, as in `nn.Embedding`."""

    name = "embedding"

    def __init__(self, weight: Tensor, padding: int):
        self.weights = (weight,)
        self.padding = padding

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. ids: (...) -> (..., e)."""
        return F.embedding(inputs[0], self.weights[0])

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG002
        """See `Kernel`: ids have no gradient."""
        return (None,)

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        (weight,), ids = self.weights, inputs[0]
        if self.padding >= 0:
            g = g.masked_fill((ids == self.padding)[..., None], 0)
        flat_ids = samples.rows(ids[..., None])[..., 0]
        yield weight, Rows(flat_ids, samples.rows(g), weight.shape[0])


def embedding(
    tape: Tape,
    weight: Tensor,
    input: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,  # noqa: ARG001 (refused by `refusals`)
    sparse: bool = False,  # noqa: ARG001
) -> Any:
    """Run `torch.embedding` of a weight by its kernel."""
    if not tape.weights.is_weight(weight):
        return NotImplemented
    return tape.use(Embedding(weight, padding_idx), input)


def index(tape: Tape, input: Tensor, index: Any) -> Any:
    """`table[ids]`: entries of a vector of weights, rows of a matrix, one matrix for each id."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    if not tape.weights.is_weight(input):
        return NotImplemented
    table = input if input.dim() == 2 else tape.weights.view(input.reshape(len(input), -1))
    ids = torch.where(index < 0, index + len(input), index)  # negative ids count from the end
    rows: Tensor = tape.use(Embedding(table, -1), ids)
    return rows if input.dim() == 2 else rows.reshape(*index.shape, *input.shape[1:])


def index_select(tape: Tape, input: Tensor, dim: int, index: Tensor) -> Any:
    """`torch.index_select` of rows."""
    if not tape.weights.is_weight(input) or dim % max(1, input.dim()) != 0 or input.dim() != 2:
        return NotImplemented
    return tape.use(Embedding(input, -1), index)


def embedding_bag(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,  # noqa: ARG001 (refused by `refusals`, as scaling by frequency)
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,  # noqa: ARG001
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,  # noqa: ARG001
    padding_idx: int | None = None,
) -> Any:
    """`F.embedding_bag` over bags in rows, (n, t) ids: an embedding, then a weighted sum."""
    is_supported = offsets is None and input.dim() == 2 and mode in ("sum", "mean")
    if not is_supported or not tape.weights.is_weight(weight):
        return NotImplemented
    padding = -1 if padding_idx is None else padding_idx % weight.shape[0]
    rows: Tensor = tape.use(Embedding(weight, padding), input)  # (n, t, e)
    # PyTorch gives the padding row no gradient, whatever is looked up there.
    factors = (input != padding).to(rows.dtype)
    if per_sample_weights is not None:
        factors = factors * per_sample_weights
    total = torch.einsum("nte,nt->ne", rows, factors)
    return total / factors.sum(dim=1, keepdim=True).clamp(min=1) if mode == "mean" else total
