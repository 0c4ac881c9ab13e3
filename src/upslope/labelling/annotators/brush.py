"""Label Studio's brush masks: bytes of a run-length code to pixels, exactly.

The code, most significant bit first: 32 bits, the count of values; 5 bits, the width of a value
less 1; four times 4 bits, the widths of the lengths less 1. Then blocks until all values are there:
1 bit (1: one value repeated, 0: values one by one), 2 bits that choose among the widths of lengths,
the length less 1, and one value or as many as the length. Values are RGBA rows; a mask is where
alpha is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError
from upslope.reading import check_room

_CHANNELS = 4
_MOST = 1 << 28  # pixels of a mask at most, beyond which a code is taken for damaged


def decode_brush(rle: Sequence[int], width: int, height: int) -> NDArray[np.bool_]:
    """Return the (height, width) mask of a brush's run-length code.

    Raises:
        DataError: a code that is damaged, or of another size than it says.
    """
    try:
        bits = _Bits(bytes(rle))
    except (ValueError, TypeError) as error:
        raise DataError(f"Expected bytes of a brush's mask but got: {error}.") from error
    size = width * height * _CHANNELS
    if not 0 < size <= _MOST * _CHANNELS or bits.read(32) != size:
        raise DataError(
            f"Expected the mask of an image of {width}x{height} pixels, {size:,} values, but its "
            "run-length code has another count."
        )
    check_room(np.dtype(np.uint32).itemsize * size, "a brush's mask")
    word = bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(size, dtype=np.uint32)
    at = 0
    while at < size:
        is_run = bits.read(1)
        end = at + 1 + bits.read(lengths[bits.read(2)])
        if end > size:
            raise DataError(f"Expected {size:,} values in a mask but its code has more.")
        if is_run:
            values[at:end] = bits.read(word)
        else:
            values[at:end] = bits.words(word, end - at)
        at = end
    mask: NDArray[np.bool_] = values.reshape(height, width, _CHANNELS)[:, :, 3] > 0
    return mask


class _Bits:
    """Reads whole numbers of given widths from bytes, the most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._at = 0

    def read(self, width: int) -> int:
        return int(self.words(width, 1)[0])

    def words(self, width: int, count: int) -> NDArray[np.uint32]:
        end = self._at + width * count
        if end > len(self._bits):
            raise DataError("Expected more of a mask's run-length code: it ends too early.")
        part = self._bits[self._at : end].reshape(count, width).astype(np.uint64)
        self._at = end
        powers = np.uint64(1) << np.arange(width, dtype=np.uint64)[::-1]
        return (part @ powers).astype(np.uint32)
