"""The registry of kernels: name of the torch function -> rule. Read by `intercept`.

A rule takes the tape and the arguments of the torch function. It returns the output, or
NotImplemented where its kernel does not cover the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from upslope.gradnorm.kernels import (
    batch_norm,
    compositions,
    einsum,
    embedding,
    expand,
    linear,
    norm,
    prelu,
)
from upslope.gradnorm.kernels.conv import convolution
from upslope.gradnorm.kernels.recurrent import rules as recurrent

COMPOSITIONS = {**compositions.COMPOSITIONS, "einsum": einsum.pairwise}
"""Name of the torch function -> a function that computes the same by other operators."""

REGISTRY: Mapping[str, Callable[..., Any]] = {
    "linear": linear.linear,
    "matmul": linear.matmul,
    "__matmul__": linear.matmul,
    "mm": linear.matmul,
    "mv": linear.matmul,
    "bmm": linear.matmul,
    "addmm": linear.addmm,
    "grouped_mm": linear.grouped_mm,
    "_grouped_mm": linear.grouped_mm,
    "einsum": einsum.einsum,
    "scaled_dot_product_attention": expand.scaled_dot_product_attention,
    **{f"conv{d}d": convolution.convolution(d) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": convolution.transposed_convolution(d) for d in (1, 2, 3)},
    "batch_norm": batch_norm.batch_norm,
    "layer_norm": norm.layer_norm,
    "group_norm": norm.group_norm,
    "instance_norm": norm.instance_norm,
    "rms_norm": norm.rms_norm,
    "prelu": prelu.prelu,
    "embedding": embedding.embedding,
    "__getitem__": embedding.index,
    "index_select": embedding.index_select,
    "embedding_bag": embedding.embedding_bag,
    **recurrent.NETWORKS,
    **recurrent.CELLS,
}
