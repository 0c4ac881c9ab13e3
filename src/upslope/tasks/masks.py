"""Random windows of images and their masks, the same for both, in whole batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_window(
    images: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    *,
    flip: bool,
    scale: float,
    border: Tensor | None,
    ignore_index: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Each image resized by a random factor, cropped at a random place, perhaps mirrored.

    images: (n, c, h, w) floats; masks: (n, h, w); size: of the window. scale: factors are drawn
    from 1/scale to scale, evenly in their logarithm. border: (1, c, 1, 1), the value outside the
    image; 0 where None; masks are `ignore_index` there. Images are interpolated bilinearly (exact
    copies at factor 1), masks take the nearest pixel.
    rng: on the CPU, so that a run draws the same on any device; one draw per batch: (4, n) numbers
    in [0, 1) for factor, row, column, mirroring.

    Returns (n, c, *size) and (n, *size), of the masks' type where it holds `ignore_index`, else
    int64.
    """
    n, _, h, w = images.shape
    draws = torch.rand(4, n, generator=rng, dtype=torch.float64)
    factors = torch.exp((2 * draws[0] - 1) * math.log(scale))
    y = _places(h, size[0], factors, draws[1])  # (n, size[0]), in pixels of the image
    x = _places(w, size[1], factors, draws[2])
    if flip:
        x = torch.where(draws[3, :, None] < 0.5, x.flip(1), x)
    y, x = y.to(images.device), x.to(images.device)
    sample_index = torch.arange(n, device=images.device)[:, None, None]
    outside = ((y < -0.5) | (y >= h - 0.5))[:, :, None] | ((x < -0.5) | (x >= w - 0.5))[:, None]

    nearest = masks[sample_index, _clip(y + 0.5, h)[:, :, None], _clip(x + 0.5, w)[:, None, :]]
    limits = torch.iinfo(masks.dtype)
    if not limits.min <= ignore_index <= limits.max:  # -1 in a mask of bytes would be class 255
        nearest = nearest.long()
    nearest = nearest.masked_fill(outside, ignore_index)
    along_y = _interpolate(images.permute(0, 2, 1, 3), y)  # (n, size[0], c, w)
    window = _interpolate(along_y.permute(0, 3, 2, 1), x)  # (n, size[1], c, size[0])
    window = window.permute(0, 2, 3, 1)
    empty = window.new_zeros(1) if border is None else border
    return torch.where(outside[:, None], empty, window).contiguous(), nearest


def _places(extent: int, window: int, factors: Tensor, draws: Tensor) -> Tensor:
    """Return (n, window): where each pixel of the window lies in the image, by pixel centres.

    The offset is a whole number of resized pixels, so that at factor 1 the places are whole too.
    A window wider than the resized image has all of it, at a random place.
    """
    slack = (factors * extent).round() - window
    offset = torch.where(slack < 0, -1.0, 1.0) * torch.floor(draws * (slack.abs() + 1))
    return (torch.arange(window) + offset[:, None] + 0.5) / factors[:, None] - 0.5


def _clip(places: Tensor, extent: int) -> Tensor:
    return places.floor().long().clamp(0, extent - 1)


def _interpolate(values: Tensor, places: Tensor) -> Tensor:
    """values (n, extent, ...) at places (n, m) along the second dimension: (n, m, ...)."""
    sample_index = torch.arange(len(values), device=values.device)[:, None]
    low = places.floor()
    share = (places - low).to(values.dtype)[:, :, None, None]
    extent = values.shape[1]
    return torch.lerp(
        values[sample_index, _clip(low, extent)],
        values[sample_index, _clip(low + 1, extent)],
        share,
    )
