"""How a convolution is run: in which order of memory, and as a product of matrices or not.

All of that follows from shapes, strides, types and the number of threads, and is decided once for
each of their combinations. On a GPU everything stays as the model has it: which order of memory is
the fastest depends on its type, and its owner has chosen. Called by `convolution`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import has_caches
from upslope.gradnorm.core.matrix_products import prefers_onednn
from upslope.gradnorm.kernels.conv.operands import ORDERS, Geometry
from upslope.gradnorm.torch_faults import is_unfolded, twice

_FEW_CHANNELS = 4
"""Channels up to which an image is always brought into the order with channels last: the copy is
small, and what follows stays in that order."""

_FEW_IMAGES = 16
"""Images from which PyTorch gives convolutions of single pixels to oneDNN in any case."""

_FEW_PIXELS = 2048
"""Pixels of a batch up to which such a convolution is a product in any case: it takes half to nine
tenths of oneDNN's time. Set by hand, with two threads and networks of 8 images."""


class Arrangement(NamedTuple):
    """How one convolution is run."""

    images: torch.memory_format | None
    """The order to bring the images into; None where they stay as they are."""
    copies_images: bool
    """Whether to copy them even where the strides are those of that order."""
    gradients: torch.memory_format | None
    """The order to bring the images' gradients into: that of the images, if these are brought into
    another. Operators before this one read both together."""
    weight: torch.memory_format | None
    """The order to bring the weight into; None where it stays as it is."""
    is_product: bool
    """Whether it is a product of all pixels with a matrix."""
    has_rows: bool
    """Whether such a product is of rows of channels; otherwise, of columns."""
    is_one_volume: bool
    """Whether it is of a single volume, which PyTorch would unfold (`torch_faults`)."""

    def batch(self, images: Tensor) -> Tensor:
        """Return the images as a batch that PyTorch does not unfold: one volume twice, if need be.

        images: those of the input, or of the output's gradient.
        """
        return twice(images) if self.is_one_volume else images


def arrange(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    *,
    is_first: bool,
    is_transposed: bool,
) -> Arrangement:
    """Return how a convolution is run.

    x: images (n, c, *space). weight: of the convolution, as the model has it. geometry: of the
    convolution. is_first: whether no other kernel came before. is_transposed: whether it is a
    transposed convolution.
    """
    return _arrange(
        x.shape, x.stride(), x.dtype,
        weight.shape, weight.stride(), weight.dtype,
        geometry, is_first, is_transposed, has_caches(x), torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


@functools.lru_cache(4096)  # every layer of every batch asks, and networks have few shapes
def _arrange(
    x_shape: torch.Size,
    x_stride: tuple[int, ...],
    x_dtype: torch.dtype,
    weight_shape: torch.Size,
    weight_stride: tuple[int, ...],
    weight_dtype: torch.dtype,
    geometry: Geometry,
    is_first: bool,
    is_transposed: bool,
    is_on_cpu: bool,
    threads: int,
    autocasts: bool,
) -> Arrangement:
    x = torch.empty_strided(x_shape, x_stride, dtype=x_dtype, device="meta")
    weight = torch.empty_strided(weight_shape, weight_stride, dtype=weight_dtype, device="meta")
    order = ORDERS.get(x.dim()) if is_on_cpu else None
    weight_order = ORDERS.get(weight.dim()) if is_on_cpu else None
    is_product = (
        is_on_cpu
        and not is_transposed
        and x.dtype == weight.dtype
        and not autocasts  # under which the type is another one
        and _is_of_single_pixels(weight, geometry)
        and (x.dim() != 4 or _is_worth_a_product(x, weight, threads))
    )
    if is_product and x.dim() != 4:
        # PyTorch's own gradient of a volume takes up to six times as long as a product of matrices,
        # which are as fast in either order.
        has_rows = order is not None and x.shape[1] > 1 and x.is_contiguous(memory_format=order)
        order = order if has_rows else None
    else:
        has_rows = True
        if is_on_cpu and not is_first and _stays_plain(x, weight):
            order, weight_order = None, torch.contiguous_format
    has_order = weight_order is None or weight.is_contiguous(memory_format=weight_order)
    # One number, expanded: it has the shape and the device that are asked about, and no memory.
    volume = torch.empty((), dtype=x_dtype, device="cpu" if is_on_cpu else "meta").expand(x_shape)
    is_brought = order is not None and not x.is_contiguous(memory_format=order)
    return Arrangement(
        images=order,
        # With one channel both orders have the same strides; only a copy marks it as last.
        copies_images=order is not None and x.shape[1] == 1,
        gradients=torch.contiguous_format if is_brought and x.is_contiguous() else None,
        weight=None if has_order else weight_order,
        is_product=is_product,
        has_rows=has_rows,
        is_one_volume=is_unfolded(volume),
    )


def _is_of_single_pixels(weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution takes each pixel by itself, with all channels, and is a product."""
    steps = (geometry.groups, *weight.shape[2:], *geometry.stride)
    return math.prod(steps) == 1 and not any(geometry.padding)


def _is_worth_a_product(x: Tensor, weight: Tensor, threads: int) -> bool:
    """Whether one of images (n, c, height, width) is faster as a product of our own.

    For few images and one thread PyTorch multiplies image by image, a tenth slower. oneDNN's
    products are faster still, and what it keeps for each shape takes 150 MB in a RegNet.
    """
    if len(x) < _FEW_IMAGES and threads == 1:
        return True
    pixels = len(x) * math.prod(x.shape[2:])
    return pixels <= _FEW_PIXELS and not prefers_onednn(pixels * weight.numel())


def _stays_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether images with positions last in memory keep that order, within a network.

    Some operator has made them so: an instance normalisation, or gates each of which is a part of
    the channels. It would make them so again, or be slow with channels last.
    """
    return (
        x.dim() == 4
        and x.shape[1] > _FEW_CHANNELS
        and math.prod(weight.shape[2:]) > 1
        and x.is_contiguous()
        and not x.is_contiguous(memory_format=torch.channels_last)
    )
