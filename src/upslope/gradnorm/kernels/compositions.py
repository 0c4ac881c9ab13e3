"""Operators without a kernel that are computed by others, which have one.

Each function takes the arguments of the torch function of its name, and returns the output, or
NotImplemented where it does not cover the call. `intercept` runs it with interception switched on,
so that the operators inside meet weights and samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Scale = float | int


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """Compose `torch.dot` of operators that have kernels."""
    return (input * tensor).sum()


def vdot(input: Tensor, other: Tensor) -> Tensor:
    """Compose `torch.vdot` of operators that have kernels."""
    return (input.conj() * other).sum()


def inner(input: Tensor, other: Tensor) -> Tensor:
    """`torch.inner`: products summed over the last dimension of both."""
    if input.dim() == 0 or other.dim() == 0:
        return input * other
    shape = (*input.shape[:-1], *other.shape[:-1])
    product = input.reshape(-1, input.shape[-1]) @ other.reshape(-1, other.shape[-1]).mT
    return product.reshape(shape)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """`torch.outer`, `torch.ger`."""
    return input[:, None] * vec2


def tensordot(a: Tensor, b: Tensor, dims_a: Sequence[int], dims_b: Sequence[int]) -> Tensor:
    """`torch.tensordot`, with the arguments that its Python form passes to the operator."""
    dims_a, dims_b = [d % a.dim() for d in dims_a], [d % b.dim() for d in dims_b]
    rest_a = [d for d in range(a.dim()) if d not in dims_a]
    rest_b = [d for d in range(b.dim()) if d not in dims_b]
    shape = [a.shape[d] for d in rest_a] + [b.shape[d] for d in rest_b]
    size_of_sum = math.prod(a.shape[d] for d in dims_a)
    rows = -1 if size_of_sum else math.prod(shape[: len(rest_a)])
    left = a.permute(rest_a + dims_a).reshape(rows, size_of_sum)
    right = b.permute(dims_b + rest_b).reshape(size_of_sum, math.prod(shape[len(rest_a) :]))
    return (left @ right).reshape(shape)


def kron(input: Tensor, other: Tensor) -> Tensor:
    """Compose `torch.kron` of operators that have kernels."""
    rank = max(input.dim(), other.dim())
    a = input.reshape((1,) * (rank - input.dim()) + input.shape)
    b = other.reshape((1,) * (rank - other.dim()) + other.shape)
    shape = [m * n for m, n in zip(a.shape, b.shape, strict=True)]
    a = a.reshape([size for m in a.shape for size in (m, 1)])
    b = b.reshape([size for n in b.shape for size in (1, n)])
    return (a * b).reshape(shape)


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Scale = 1, alpha: Scale = 1
) -> Tensor:
    """`torch.addmm`, `torch.addmv` and `torch.baddbmm`: beta * input + alpha * (mat1 @ mat2)."""
    product = alpha * (mat1 @ mat2)
    # With beta = 0 torch ignores `input`, which may be infinite or NaN.
    return beta * input + product if beta != 0 else product


def addmv(input: Tensor, mat: Tensor, vec: Tensor, **scales: Scale) -> Tensor:
    """Compose `torch.addmv` of operators that have kernels."""
    return addmm(input, mat, vec, **scales)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, **scales: Scale) -> Tensor:
    """Compose `torch.baddbmm` of operators that have kernels."""
    return addmm(input, batch1, batch2, **scales)


def addbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Scale = 1, alpha: Scale = 1
) -> Tensor:
    """`torch.addbmm`: the sum of a batch of products."""
    product = alpha * (batch1 @ batch2).sum(dim=0)
    return beta * input + product if beta != 0 else product


def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Scale = 1, alpha: Scale = 1) -> Tensor:
    """Compose `torch.addr` of operators that have kernels."""
    product = alpha * (vec1[:, None] * vec2)
    return beta * input + product if beta != 0 else product


def chain_matmul(matrices: Sequence[Tensor]) -> Tensor:
    """`torch.chain_matmul`, `torch.linalg.multi_dot`."""
    return functools.reduce(torch.matmul, matrices)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.bilinear`: x1 W_o x2 for each output o."""
    product = F.linear(input2, weight.flatten(0, 1))
    product = product.reshape(*product.shape[:-1], *weight.shape[:2])
    total: Tensor = (product * input1[..., None, :]).sum(dim=-1)
    return total if bias is None else total + bias


def meshgrid(tensors: Sequence[Tensor], *, indexing: str = "ij") -> Sequence[Tensor]:
    """`torch.meshgrid`: each tensor along a dimension of its own, broadcast to all of them."""
    rank = len(tensors)
    lines = [t.reshape([-1 if d == k else 1 for d in range(rank)]) for k, t in enumerate(tensors)]
    grids: Sequence[Tensor] = torch.broadcast_tensors(*lines)  # type: ignore[no-untyped-call]
    return [g.transpose(0, 1) for g in grids] if indexing == "xy" and rank > 1 else grids


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """`torch.mm` and `torch.bmm`, where a call names its second matrix."""
    return input @ mat2


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """`torch.mv`, where a call names its vector."""
    return input @ vec


def masked_fill(input: Tensor, mask: Tensor, value: Tensor | Scale) -> Tensor:
    """`torch.masked_fill`, whose value may be a tensor without dimensions and nothing larger."""
    return torch.where(mask, value, input)


def fill_in_place(input: Tensor, value: Tensor) -> Tensor:
    """`Tensor.fill_`, where a call writes into its first tensor."""
    return input.copy_(value)


def in_place(composition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the composition of the operator's form that writes into its first tensor."""

    def compose(input: Tensor, *args: Any, **options: Any) -> Tensor:
        return input.copy_(composition(input, *args, **options))

    return compose


# Below are layers. A network may make a layer's bias, or its scale and shift, for each sample, or
# give it a parameter for an input: no kernel has gradients for those. Scale and shift as operators
# of their own meet weights and samples in any place.


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear`, by a product and a sum."""
    if weight.dim() != 2:
        return NotImplemented
    product = input @ weight.mT
    return product if bias is None else product + bias


def convolution(operator: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the composition of a convolution, plain or transposed, that is this function."""

    def compose(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **options: Any
    ) -> Any:
        if input.dim() == weight.dim() - 1:
            return operator(input[None], weight, bias, *args, **options)[0]
        if bias is None:
            return NotImplemented
        images = operator(input, weight, None, *args, **options)
        return images + bias.reshape(-1, *(1,) * (weight.dim() - 2))

    return compose


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """`torch.layer_norm`, its scale and shift apart."""
    if weight is None and bias is None:
        return NotImplemented
    plain = torch.layer_norm(input, normalized_shape, None, None, eps, cudnn_enable)
    return _scale_and_shift(plain, weight, bias)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """`torch.rms_norm`, its scale apart."""
    if weight is None:
        return NotImplemented
    return torch.rms_norm(input, normalized_shape, None, eps) * weight


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """`torch.group_norm`, its scale and shift apart."""
    if weight is None and bias is None:
        return NotImplemented
    plain = torch.group_norm(input, num_groups, None, None, eps, cudnn_enabled)
    return _scale_and_shift(plain, _per_channel(weight, input), _per_channel(bias, input))


def by_channels(operator: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the composition of a batch or an instance normalisation that is this function."""

    def compose(input: Tensor, weight: Tensor | None, bias: Tensor | None, *statistics: Any) -> Any:
        if weight is None and bias is None:
            return NotImplemented
        plain = operator(input, None, None, *statistics)
        return _scale_and_shift(plain, _per_channel(weight, input), _per_channel(bias, input))

    return compose


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`torch.prelu`, by a product and a choice."""
    shape = (-1, *(1,) * (input.dim() - 2)) if weight.numel() > 1 else ()
    return torch.where(input > 0, input, input * weight.reshape(shape))


def _scale_and_shift(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    product = input if weight is None else input * weight
    # A layer in half precision takes them in float32, and stays in half precision.
    return (product if bias is None else product + bias).to(input.dtype)


def _per_channel(weight: Tensor | None, input: Tensor) -> Tensor | None:
    return None if weight is None else weight.reshape(-1, *(1,) * (input.dim() - 2))


COMPOSITIONS: Mapping[str, Callable[..., Any]] = {
    "masked_fill": masked_fill,
    "fill_": fill_in_place,
    **{
        f"{composition.__name__}_": in_place(composition)
        for composition in (masked_fill, addmm, addmv, addbmm, baddbmm, addr)
    },
    "dot": dot,
    "vdot": vdot,
    "linalg_vecdot": lambda input, other, *, dim=-1: (input.conj() * other).sum(dim),
    "inner": inner,
    "outer": outer,
    "ger": outer,
    "tensordot": tensordot,
    "kron": kron,
    "mm": mm,
    "bmm": mm,
    "mv": mv,
    "addmm": addmm,
    "addmv": addmv,
    "baddbmm": baddbmm,
    "addbmm": addbmm,
    "addr": addr,
    "chain_matmul": chain_matmul,
    "linalg_multi_dot": chain_matmul,
    "bilinear": bilinear,
    "meshgrid": meshgrid,
    "linear": linear,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "batch_norm": by_channels(torch.batch_norm),
    "instance_norm": by_channels(torch.instance_norm),
    "prelu": prelu,
    **{
        operator.__name__: convolution(operator)
        for operator in (
            torch.conv1d, torch.conv2d, torch.conv3d,
            torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
        )
    },
}  # fmt: skip
