"""Batch normalisation over the batch of all ranks, as one process would compute it.

    mean = sum_r n_r mean_r / N                     n_r values per channel on rank r, N in all
    var  = sum_r (n_r var_r + n_r (mean_r - mean)^2) / N

Means and squares are gathered in one collective per layer and pass, in float32. Every use of
batch normalisation is met, by module or by function, because the operator is intercepted; the
network is left as it is. `torch.nn.SyncBatchNorm` replaces modules, and needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Add = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks in place, and returns it."""


class SyncedBatchNorm(TorchFunctionMode):
    """Within the block, statistics of a batch in training are those of the parts of all ranks.

    Every rank must run the same layers in the same order. rank, size: of this process. add: sums
    over ranks.
    """

    def __init__(self, rank: int, size: int, add: Add) -> None:
        super().__init__()
        self._rank, self._size, self._add = rank, size, add

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute synced statistics where a batch is normalised, and all else as it is."""
        kwargs = kwargs or {}
        if function is F.batch_norm:
            arguments = _arguments_of_function(*args, **kwargs)
        elif function is torch.batch_norm:
            arguments = _arguments_of_operator(*args, **kwargs)
        else:
            return function(*args, **kwargs)
        return self._normalise(*arguments) if arguments[5] else function(*args, **kwargs)

    def _normalise(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        _training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """x: (n, c, ...), this rank's part of the batch."""
        precise = torch.promote_types(x.dtype, torch.float32)
        values = x.transpose(0, 1).flatten(1).to(precise)  # (c, n_r)
        count = values.shape[1]
        mean_r = values.mean(dim=1)
        square_r = (values - mean_r[:, None]).square().sum(dim=1)
        counts = values.new_full((1,), count)
        own_sums = torch.cat([mean_r, square_r, counts])
        gather: Any = _Gather.apply  # torch does not say its type
        rows: Tensor = gather(own_sums, self._rank, self._size, self._add)
        channels = len(mean_r)
        means, squares = rows[:, :channels], rows[:, channels : 2 * channels]
        n = rows[:, -1:]
        total = n.sum()
        mean = (n * means).sum(dim=0) / total
        square = (squares + n * (means - mean).square()).sum(dim=0)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((square / (total - 1)).to(running_var), momentum)
        shape = (1, channels, *[1] * (x.dim() - 2))
        scale = (square / total + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        y = (x - mean.view(shape)) * scale.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        return y.to(x.dtype)


class _Gather(torch.autograd.Function):
    """One row per rank, (size, k), of this rank's (k,); derivatives are summed over ranks."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, rank: int, size: int, add: Add) -> Tensor:
        ctx.rank, ctx.add = rank, add
        rows = row.new_zeros(size, len(row))
        rows[rank] = row
        return add(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient_sums: Tensor = ctx.add(gradients[0].contiguous().clone())
        return gradient_sums[ctx.rank], None, None, None


def _arguments_of_function(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    """Return the arguments of `F.batch_norm`, in the order of `_normalise`."""
    return input, weight, bias, running_mean, running_var, training, momentum, eps


def _arguments_of_operator(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> tuple[Any, ...]:
    """Return the arguments of `torch.batch_norm`, in the order of `_normalise`."""
    return input, weight, bias, running_mean, running_var, training, momentum, eps
