"""A page of slices to look at: every class, as it is, as it is imaged, and in Fourier space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.cryoet.density import Template, place
from upslope.cryoet.imaging import Imaging, Volume, image
from upslope.files import write_atomically

ROWS = ("density", "imaged, no noise: x-y", "the same: x-z", "|Fourier|: x-z", "with noise: x-y")
_SCALE, _GAP, _COLUMNS = 3, 6, 10


def write_page(path: Path, templates: Sequence[Template], imaging: Imaging, seed: int = 0) -> None:
    """Write one PNG with a column of slices a class, through the centre, of the molecule unturned.

    From top to bottom: the density; the noise-free image along the beam and from the side, where
    the missing wedge blurs; the amplitudes of its transform from the side, where the wedge is
    empty; the image with noise, if `imaging` has some. Each panel has its own grey scale, from
    least to greatest.

    Raises:
        RunError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    columns = [_panels(template, imaging, seed + i) for i, template in enumerate(templates)]
    rows = len(columns[0])
    side = _SCALE * imaging.box
    across = min(_COLUMNS, len(columns))
    bands = -(-len(columns) // across)
    height = rows * (side + _GAP) + 16
    page = Image.new("L", (across * (side + _GAP), bands * (height + _GAP)), 255)
    draw = ImageDraw.Draw(page)
    for i, (template, panels) in enumerate(zip(templates, columns, strict=True)):
        left, top = (i % across) * (side + _GAP), (i // across) * (height + _GAP)
        draw.text((left + 2, top + 2), template.id, fill=0)
        for row, panel in enumerate(panels):
            tile = Image.fromarray(_grey(panel)).resize((side, side), Image.Resampling.NEAREST)
            page.paste(tile, (left, top + 16 + row * (side + _GAP)))
    write_atomically(path, lambda to: page.save(to, format="PNG"))


def _panels(template: Template, imaging: Imaging, seed: int) -> list[Volume]:
    centre = imaging.box // 2
    density = place(template, imaging, np.eye(3), np.zeros(3))
    clean = image(density, replace(imaging, snr=None), np.random.default_rng(seed))
    amplitudes = np.abs(np.fft.fftshift(np.fft.fftn(clean)))
    panels = [density[centre], clean[centre], clean[:, centre], np.log1p(amplitudes[:, centre])]
    if imaging.snr is not None:
        panels.append(image(density, imaging, np.random.default_rng(seed))[centre])
    return panels


def _grey(panel: Volume) -> NDArray[np.uint8]:
    low, high = float(panel.min()), float(panel.max())
    return np.asarray(np.rint(255 * (panel - low) / (high - low or 1)), dtype=np.uint8)
