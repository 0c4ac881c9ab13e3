"""Features of samples, taken once and kept: what the model of a labelling project looks at.

    images        gradient directions and colours in a grid (`image_statistics`), at once; where the
                  network with ImageNet weights is installed, its features beside them when done
    texts, rows   numbers standardised, categories as 0 and 1, other texts as the leading
                  components of their TF-IDF (`row_features`)

Networks stay as they are: only a linear layer on these features is trained while people label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from upslope.models.efficientnet import MEAN, STD

Floats = NDArray[np.float32]

SIDE = 64
"""Pixels along an edge for `image_statistics`."""
CELL, DIRECTIONS = 8, 9  # pixels along a cell; directions of unsigned gradients (Dalal, Triggs)
GRID = 4  # cells along an edge for colours
_CATEGORIES, _COMPONENTS = 50, 64
_WITH_COMMA = re.compile(r"([+-]?(\d*,)?\d+)?", re.ASCII)
"""A number with a decimal comma, a whole number, or nothing."""
_THOUSANDS = re.compile(r"([+-]?\d{1,3}(,\d{3})?)?", re.ASCII)

STATISTICS = "gradient directions and colours"
NETWORK, NETWORK_SIDE = "EfficientNet-Lite0 with ImageNet weights", 128
"""Pixels along an edge: 128 in place of 224 take a third of the time (35 images per second on one
core)."""


def image_statistics(pixels: NDArray[np.uint8]) -> Floats:
    """Return histograms of gradient directions, with means and deviations of colours, in a grid.

    pixels: (n, 3, SIDE, SIDE). Returns (n, d). The histograms are those of oriented gradients
    (Dalal and Triggs, CVPR 2005), each cell's normalised by itself and its neighbours.
    """
    images = pixels.astype(np.float32) / 255
    n = len(images)
    grey = images.mean(axis=1)
    dy, dx = np.gradient(grey, axis=(1, 2))
    magnitude = np.hypot(dx, dy)
    angle = np.mod(np.arctan2(dy, dx), math.pi) * (DIRECTIONS / math.pi)
    lower = np.floor(angle)
    share = angle - lower
    bins = lower.astype(np.int64) % DIRECTIONS
    side = SIDE // CELL
    row = np.arange(SIDE) // CELL
    cell = (np.arange(n)[:, None, None] * side + row[:, None]) * side + row
    votes = np.bincount(
        np.concatenate((cell * DIRECTIONS + bins, cell * DIRECTIONS + (bins + 1) % DIRECTIONS))
        .ravel(),
        np.concatenate((magnitude * (1 - share), magnitude * share)).ravel(),
        n * side * side * DIRECTIONS,
    )  # fmt: skip
    cells = votes.reshape(n, side, side, DIRECTIONS).astype(np.float32)
    bordered_cells = np.pad(cells, ((0, 0), (1, 1), (1, 1), (0, 0)))
    energy = sum(
        (bordered_cells[:, i : i + side, j : j + side] ** 2).sum(axis=-1, keepdims=True)
        for i in range(3)
        for j in range(3)
    )
    directions = np.sqrt(cells / np.sqrt(energy + 1e-4))
    blocks = images.reshape(n, 3, GRID, SIDE // GRID, GRID, SIDE // GRID)
    colours = np.stack((blocks.mean(axis=(3, 5)), blocks.std(axis=(3, 5))), axis=1)
    return np.concatenate((directions.reshape(n, -1), colours.reshape(n, -1)), axis=1)


def network_features(side: int) -> Callable[[NDArray[np.uint8]], Floats]:
    """Return what takes (n, 3, side, side) pixels to (n, 1280) features of the network with
    ImageNet weights: the means of its last activations over the image."""
    import torch

    from upslope import models
    from upslope.models.features import with_features

    network = models.build("pretrained", num_classes=2, input_shape=(3, side, side)).eval()

    def extract(pixels: NDArray[np.uint8]) -> Floats:
        x = (torch.from_numpy(pixels).float() / 255 - MEAN) / STD
        with torch.no_grad():
            features: Floats = with_features(network, x)[1].numpy()
        return features

    return extract


def row_features(rows: Sequence[Mapping[str, str]]) -> tuple[Floats, str]:
    """Return (n, d) features of rows, and how they were made.

    rows: column -> text. A column whose cells are all numbers or empty is standardised, an empty
    cell being its mean. Of others, one with at most 50 different cells is a category each, and the
    rest are texts.
    """
    parts: list[Floats] = []
    methods: dict[str, int] = {}
    for column in rows[0]:
        cells = [row[column].strip() for row in rows]
        kind, part = _column(cells)
        if part is not None:
            parts.append(part)
            methods[kind] = methods.get(kind, 0) + 1
    method = ", ".join(f"{count} of {kind}" for kind, count in methods.items())
    if not parts:
        return np.zeros((len(rows), 1), dtype=np.float32), "nothing: all rows are alike"
    return np.concatenate(parts, axis=1), f"columns: {method}"


def standardise(values: Floats) -> Floats:
    """Return (n, d) features with mean 0 and deviation 1; constant ones are 0."""
    mean, deviation = mean_and_deviation(values)
    standard_values: Floats = ((values - mean) / deviation).astype(np.float32)
    return standard_values


def mean_and_deviation(values: Floats) -> tuple[Floats, Floats]:
    """Return the (d,) means and deviations by which features are standardised.

    The deviation of a constant feature is infinite, so that it becomes 0.
    """
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 1e-6, deviation, np.inf).astype(np.float32)


def _column(cells: Sequence[str]) -> tuple[str, Floats | None]:
    """(kind, features) of a column; None where all cells are alike."""
    different = sorted(set(cells))
    if len(different) < 2:
        return "constants", None
    numbers = _numbers(cells)
    if numbers is not None:
        return "numbers", numbers
    # Where three digits follow every comma, it may as well be between thousands.
    if all(map(_WITH_COMMA.fullmatch, cells)) and not all(map(_THOUSANDS.fullmatch, cells)):
        with_points = _numbers([cell.replace(",", ".") for cell in cells])
        if with_points is not None:
            return "numbers with decimal commas", with_points
    if len(different) <= min(_CATEGORIES, len(cells) // 2):
        place = {cell: i for i, cell in enumerate(different)}
        values = np.zeros((len(cells), len(different)), dtype=np.float32)
        values[np.arange(len(cells)), [place[cell] for cell in cells]] = 1
        return "categories", values
    return "texts", _text_components(cells)


def _numbers(cells: Sequence[str]) -> Floats | None:
    try:
        values = np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return None
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None
    values = np.where(np.isfinite(values), values, finite.mean())
    return standardise(values[:, None].astype(np.float32))


def _text_components(cells: Sequence[str]) -> Floats | None:
    # Importing scikit-learn takes a second that images need not wait for.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=20_000).fit_transform(
            cells
        )
    except ValueError:  # no word is in two texts
        return None
    components = min(_COMPONENTS, counts.shape[1] - 1, len(cells) - 1)
    if components < 1:
        return None
    values = TruncatedSVD(components, random_state=0).fit_transform(counts)
    return np.asarray(values, dtype=np.float32)
