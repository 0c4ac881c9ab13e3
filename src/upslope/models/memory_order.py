"""The order of memory in which a CPU runs a network of images fastest.

Convolutions of images with their channels last take three quarters of the time of those with their
positions last, and what stands between them half, as long as there are many positions and few
channels. From `WIDE` channels on, where few positions are left, they take up to 1.7 times as long.
Shapes alone decide, so that every run of a network rounds alike.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a batch, or of a weight, of images and of volumes -> their order of memory with
channels last."""
WIDE = 512
"""Channels from which on a convolution is the faster with positions last: of 32 images of 4 x 4
pixels, forward and backward, 52 ms of one thread and 78 with channels last; of 256 channels and 8 x
8 pixels, 46 and 47 ms. `benchmarks/whole_cycle.py` measures what comes of it."""


@runtime_checkable
class ArrangesMemory(Protocol):
    """A network of images that knows its fastest order of memory on a CPU."""

    def arrange_memory(self) -> None:
        """Bring the weights into that order, in place; the forward pass takes images along."""
        ...


def put_channels_last(model: nn.Module) -> None:
    """Bring all weights of convolutions over images and volumes into channels-last order, in place.

    model: a network.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() in CHANNELS_LAST:
            tensor.data = tensor.data.to(memory_format=CHANNELS_LAST[tensor.dim()])


def in_order_of(images: Tensor, weight: Tensor) -> Tensor:
    """Return the images of a stage in the order of memory of its weights, where these are wide.

    A convolution whose images or weight have their channels last runs so. On a CPU, images on
    their way into a wide stage, whose weights have their positions last, are therefore copied.

    images: (n, c, h, w). weight: (o, i, h, w), of a convolution of the stage with more than one
    tap.
    """
    if len(weight) < WIDE or not images.is_cpu or not weight.is_contiguous():
        return images
    return images.contiguous()
