"""Random variants of whole batches, without a loop over their images."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_crop(
    images: Tensor,
    pad: int,
    *,
    flip: bool,
    border: Tensor | None,
    rng: torch.Generator,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Return each image padded by `pad` pixels, cropped back at a random place, perhaps mirrored.

    images: (n, c, h, w). border: (1, c, 1, 1), the value outside; 0 where None. flip: mirror
    left-right with probability 1/2, or, where `mirrored` (n,) is given, those that it says. rng: on
    the CPU, so that a run draws the same on any device; two draws per batch: offsets (2, n) in
    0..2 * pad, then, where `flip` and not `mirrored`, coins (n,).
    """
    n, c, h, w = images.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=rng)
    rows = offsets[0, :, None] + torch.arange(h)  # (n, h)
    columns = offsets[1, :, None] + torch.arange(w)  # (n, w)
    if flip:
        if mirrored is None:
            mirrored = torch.randint(0, 2, (n, 1), generator=rng).bool()
        columns = torch.where(mirrored.reshape(n, 1), columns.flip(1), columns)
    outside = images.new_zeros(1) if border is None else border
    with_border = outside.expand(n, c, h + 2 * pad, w + 2 * pad).clone()
    with_border[:, :, pad:-pad, pad:-pad] = images
    pixels = rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]  # (n, h, w)
    index = pixels.reshape(n, 1, h * w).to(images.device, non_blocking=True)
    return with_border.flatten(2).gather(2, index.expand(n, c, h * w)).reshape(n, c, h, w)
