"""Copies and near-copies among the samples, which are asked once.

Images are compared by the perceptual hash of imagehash (256 bits of the lowest frequencies): the
same picture in another size, quality or format differs in a few bits, another one in about half.
Rows and texts are copies where all their cells are equal.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError
from upslope.labelling.samples import ImageSamples, Samples, TableRows

_HASH = 16  # bits along an edge of the hash
_SIDE = 64  # pixels along an edge of the picture that is hashed
NEAR = 12
"""Bits in which near-copies may differ, of 256. Of 2,062 photographs of hands before one wall no
two differ in fewer than 33."""
_ROWS = 256  # of the matrix of distances at once


def find_copies(samples: Samples, pause: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Return id -> the earlier sample that it is a copy of; empty without imagehash, for images.

    pause: is called now and then.
    """
    if isinstance(samples, TableRows):
        return _equal_rows(samples)
    if importlib.util.find_spec("imagehash") is None:
        return {}
    positions, hashes = _hashes(samples, pause)
    copies = near_copies(np.array(hashes), pause) if hashes else {}
    ids = samples.ids
    return {ids[positions[i]]: ids[positions[j]] for i, j in copies.items()}


def near_copies(
    bits: NDArray[np.bool_], pause: Callable[[], None] = lambda: None
) -> dict[int, int]:
    """Return position -> the first position whose hash is near its own, of those that have one.

    bits: (n, bits). A sample that is near a copy, but not near what that is a copy of, is none.
    """
    copies: dict[int, int] = {}
    values = bits.astype(np.float32)
    ones = values.sum(axis=1)
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = ones[rows, None] + ones - 2 * values[rows] @ values.T
        for i, j in np.argwhere(distances <= NEAR).tolist():
            if j < i + start and j not in copies:
                copies.setdefault(i + start, j)
        pause()
    return copies


def _hashes(
    samples: ImageSamples, pause: Callable[[], None]
) -> tuple[list[int], list[NDArray[np.bool_]]]:
    import imagehash
    from PIL import Image

    positions, hashes = [], []
    for position in range(len(samples.ids)):
        try:
            pixels = samples.pixels(position, _SIDE)
        except DataError:
            continue
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        positions.append(position)
        hashes.append(imagehash.phash(picture, hash_size=_HASH).hash.ravel())
        if position % _SIDE == 0:
            pause()
    return positions, hashes


def _equal_rows(samples: TableRows) -> dict[str, str]:
    first: dict[bytes, str] = {}
    copies = {}
    for id_, cells in zip(samples.ids, samples.cells, strict=True):
        digest = hashlib.sha256(repr(sorted(cells.items())).encode()).digest()
        if first.setdefault(digest, id_) != id_:
            copies[id_] = first[digest]
    return copies
