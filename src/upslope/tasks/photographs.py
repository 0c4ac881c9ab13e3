"""Random variants of photographs, a whole batch at a time: resized crops, mirror images, colour."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
"""Width by height of a crop, as a share of the image's: the range usual for photographs."""

_GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in what the eye takes for brightness


def resized_crop(
    images: Tensor,
    area: float,
    *,
    flip: bool,
    rng: torch.Generator,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Cut a window out of each image at a random place and stretch it to the whole size.

    images: (n, c, h, w). area: the smallest share of an image's area that a window has, the
    largest being all of it; its width by height is drawn from `RATIO`, evenly in the logarithm, as
    far as a window of its area lies within the image.
    flip: mirror left-right with probability 1/2, or those that `mirrored`, (n,), says. Pixels
    between others are interpolated in both directions.

    rng: on the CPU, so that a run draws the same on any device; two draws per batch: (4, n) uniform
    numbers, then, where `flip` and not `mirrored`, coins (n,).
    """
    n, _, h, w = images.shape
    uniform = torch.rand((4, n), generator=rng, dtype=torch.float64)
    share = area + (1 - area) * uniform[0]
    low, high = (math.log(r) for r in RATIO)
    ratio = torch.exp(low + (high - low) * uniform[1])
    ratio = ratio.clamp(share, 1 / share)  # what of a large window would lie outside the image
    height = (share / ratio).sqrt()  # shares of the image's own height and width
    width = (share * ratio).sqrt()
    top, left = (1 - height) * uniform[2], (1 - width) * uniform[3]
    rows = top[:, None] + height[:, None] * (torch.arange(h) + 0.5) / h  # (n, h), 0 to 1
    columns = left[:, None] + width[:, None] * (torch.arange(w) + 0.5) / w
    if flip:
        if mirrored is None:
            mirrored = torch.randint(0, 2, (n,), generator=rng).bool()
        columns = torch.where(mirrored.reshape(n, 1), columns.flip(1), columns)
    grid = torch.stack(
        (columns[:, None, :].expand(n, h, w), rows[:, :, None].expand(n, h, w)), dim=-1
    )
    grid = (2 * grid - 1).to(images.dtype).to(images.device, non_blocking=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour_jitter(
    images: Tensor, strength: float, *, mean: Tensor, std: Tensor, rng: torch.Generator
) -> Tensor:
    """Change brightness, contrast and saturation of each image, in this order.

    images: (n, c, h, w), normalised by `mean` and `std`, (1, c, 1, 1). Each of the three is
    multiplied by a factor of its own, drawn evenly from 1 - strength to 1 + strength; contrast
    about the mean grey of the image, saturation about the grey of each pixel, which images of one
    channel do not have. What leaves the range from black to white is cut off.

    rng: on the CPU; one draw per batch, (3, n) uniform numbers.
    """
    n, channels = images.shape[:2]
    factors = 1 + strength * (2 * torch.rand((3, n), generator=rng, dtype=torch.float64) - 1)
    factors = factors.to(images.dtype).to(images.device, non_blocking=True)
    brightness, contrast, saturation = factors.reshape(3, n, 1, 1, 1)
    pixels = (images * std + mean) * brightness  # black is 0
    pixels = pixels.clamp(0, 1)
    centre = _grey(pixels).mean(dim=(2, 3), keepdim=True)
    pixels = (centre + contrast * (pixels - centre)).clamp(0, 1)
    if channels == 3:
        grey = _grey(pixels)
        pixels = (grey + saturation * (pixels - grey)).clamp(0, 1)
    result: Tensor = (pixels - mean) / std
    return result


def _grey(pixels: Tensor) -> Tensor:
    """Return (n, 1, h, w) for (n, c, h, w), the brightness of colours, the mean of other
    channels.
    """
    if pixels.shape[1] != 3:
        return pixels.mean(dim=1, keepdim=True)
    weights = pixels.new_tensor(_GREY).reshape(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True)
