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

from upslope.gradnorm.core.gradients.lookup_gradients import BagGradient, LookupGradient
from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.layouts.layout import IndexedLayout, Samples, SamplesNotSeparable
from upslope.gradnorm.core.uses.tape import Kernel, Tape


class Embedding(Kernel):
    """Rows of a weight (v, e). The row `padding` gets no gradient, as in `nn.Embedding`."""

    name = "embedding"

    def __init__(self, weight: Tensor, padding: int):
        self.weights = (weight,)
        self.padding = padding

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. ids: (...) -> (..., e)."""
        return torch.embedding(self.weights[0], inputs[0])

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
        flat_ids = samples.rows(ids, keep=0)
        yield weight, LookupGradient(flat_ids, samples.rows(g), weight.shape[0])


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


class Bags(Kernel):
    """Sums or means of rows of a weight (v, e), over bags that begin at offsets.

    padding: the row that is left out, -1 for none.
    """

    name = "embedding_bag"

    def __init__(self, weight: Tensor, mode: str, padding: int, has_last_offset: bool):
        self.weights = (weight,)
        self.mode, self.padding, self.has_last_offset = mode, padding, has_last_offset

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `Kernel`. ids: (t,), offsets: (bags,), factors: (t,) -> (bags, e)."""
        ids, offsets, *factors = inputs
        return F.embedding_bag(
            ids, self.weights[0], offsets, mode=self.mode,
            per_sample_weights=factors[0] if factors else None,
            include_last_offset=self.has_last_offset,
            padding_idx=None if self.padding < 0 else self.padding,
        )  # fmt: skip

    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """See `Kernel`: the factors alone have a gradient."""
        ids, offsets, *factors = inputs
        if not factors:
            return (None, None)
        bags = torch.repeat_interleave(self._sizes(ids, offsets))
        products = (g[bags] * self.weights[0][ids]).sum(dim=1)
        return (None, None, products * (ids != self.padding))

    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        (weight,), (ids, offsets) = self.weights, inputs[:2]
        factors = inputs[2] if len(inputs) > 2 else None
        sizes = self._sizes(ids, offsets)
        if self.padding >= 0:  # the padding row gets no gradient, and counts for no mean
            is_kept = ids != self.padding
            bags = torch.repeat_interleave(sizes)[is_kept]
            ids, sizes = ids[is_kept], torch.bincount(bags, minlength=len(g))
            factors = None if factors is None else factors[is_kept]
        if self.mode == "mean":
            g = g / sizes.clamp(min=1)[:, None]
        if samples.layout.is_usual and len(g) == samples.n:
            yield weight, BagGradient(ids, sizes, factors, g, weight.shape[0])
            return
        if samples.layout.last > 0:
            raise SamplesNotSeparable("samples lie in a dimension that a weight acts on")
        bags = torch.repeat_interleave(sizes)
        rows = g[bags] if factors is None else g[bags] * factors[:, None]
        # The ids of a bag belong to the sample that the bag belongs to.
        owner = samples.owners(g).expand(len(g), 1)[bags, 0]
        samples_of_ids = Samples(samples.n, IndexedLayout(0, owner=owner, n=samples.n))
        flat_ids, flat_rows = samples_of_ids.front(ids), samples_of_ids.front(rows)
        yield weight, LookupGradient(flat_ids, flat_rows, weight.shape[0])

    def _sizes(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Return the number of ids of each bag, (bags,)."""
        starts = offsets[:-1] if self.has_last_offset else offsets
        return starts.long().diff(append=starts.new_full((1,), len(ids), dtype=torch.int64))


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
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Run `F.embedding_bag`: over bags given by offsets, or in rows, (n, t) ids."""
    if mode not in ("sum", "mean") or not tape.weights.is_weight(weight):
        return NotImplemented
    if offsets is None and input.dim() == 2 and input.shape[1] > 0:
        offsets = torch.arange(
            0, input.numel(), input.shape[1], dtype=input.dtype, device=input.device
        )
        input = input.reshape(-1)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.reshape(-1)
    if offsets is None or input.dim() != 1:
        return NotImplemented
    padding = -1 if padding_idx is None else padding_idx % weight.shape[0]
    more = () if per_sample_weights is None else (per_sample_weights,)
    return tape.use(Bags(weight, mode, padding, include_last_offset), input, offsets, *more)
