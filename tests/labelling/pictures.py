"""Pictures that tests of labelling make themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_squares(folder: Path, count: int) -> dict[str, str]:
    """Write `count` images, red or blue, and return file name -> colour."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = {}
    for i in range(count):
        colour = ("red", "blue")[i % 2]
        level = 120 + (37 * i) % 130
        pixels = (level, 10, 10) if colour == "red" else (10, 10, level)
        Image.new("RGB", (24, 24), pixels).save(folder / f"square-{i:03d}.png")
        colours[f"square-{i:03d}.png"] = colour
    return colours


def make_patterns(folder: Path, count: int) -> dict[str, str]:
    """Write `count` images, none near another; names and colours as `make_squares`."""
    colours = make_squares(folder, count)
    for i, (name, colour) in enumerate(colours.items()):
        levels = np.random.default_rng(i).integers(0, 256, (24, 24, 1), dtype=np.uint8)
        tint = (1, 0.2, 0.2) if colour == "red" else (0.2, 0.2, 1)
        Image.fromarray((levels * np.array(tint)).astype(np.uint8)).save(folder / name)
    return colours
