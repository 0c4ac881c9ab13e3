"""Small pictures as `data:` addresses, a kilobyte or so each: images, slices of volumes, masks."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 56
"""Pixels along the longer side: what a picture has in the gallery on a screen."""
LARGE_SIDE = 112
"""The same where there are masks, whose borders must be seen."""
_OVERLAY = ("0072b2", "d55e00", "009e73", "cc79a7", "e69f00", "56b4e9", "f0e442")
"""Colours of the classes of a mask, Okabe and Ito's; they come again after the seventh."""


def thumbnail(inputs: Tensor, side: int = SIDE) -> str | None:
    """Return an input as a picture; None for one that is no image and no volume.

    inputs: (c, h, w) with 1, 3 or 4 channels, or (1, d, h, w), whose middle slice is shown. uint8
    is taken as it is; of other numbers, the range from the 1st to the 99th percentile is spread
    over the grey levels.
    """
    if inputs.ndim == 4 and len(inputs) == 1:
        inputs = inputs[:, inputs.shape[1] // 2]
    if inputs.ndim != 3 or len(inputs) not in (1, 3, 4) or inputs.shape[1] * inputs.shape[2] < 2:
        return None
    pixels = _levels(inputs).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3])
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    png = _address(image, "PNG", optimize=True)
    jpeg = _address(image, "JPEG", quality=72)
    return min(png, jpeg, key=len)


def mask_picture(mask: NDArray[np.uint8], ignore: int | None, side: int = LARGE_SIDE) -> str:
    """Return a mask of classes as a picture to lay over the image: class 0 is transparent.

    mask: (h, w). ignore: the value of pixels that count nowhere, shown in black.
    """
    levels = Image.fromarray(mask)
    if max(levels.size) > side:
        scale = side / max(levels.size)
        size = (max(1, round(levels.width * scale)), max(1, round(levels.height * scale)))
        levels = levels.resize(size, Image.Resampling.NEAREST)
    classes = np.asarray(levels)
    colours = np.zeros((256, 4), dtype=np.uint8)
    for value in range(1, 256):
        colours[value] = (*bytes.fromhex(_OVERLAY[(value - 1) % len(_OVERLAY)]), 150)
    if ignore is not None and 0 <= ignore <= 255:
        colours[ignore] = (0, 0, 0, 150)
    return _address(Image.fromarray(colours[classes], "RGBA").quantize(32), "PNG", optimize=True)


def _levels(inputs: Tensor) -> Tensor:
    if inputs.dtype == torch.uint8:
        return inputs
    values = inputs.double()
    if not bool(torch.isfinite(values).all()):
        values = torch.nan_to_num(values)
    low, high = np.percentile(values.numpy(), [1, 99])
    spread = (values - float(low)) / max(float(high - low), 1e-12)
    return (255 * spread.clamp(0, 1)).to(torch.uint8)


def _address(image: Image.Image, form: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{data}"
