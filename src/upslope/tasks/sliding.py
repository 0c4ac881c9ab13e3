"""Outputs for a whole image made of those for windows of it, averaged where windows overlap."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def slide_windows(
    logits_of: Callable[[Tensor], Tensor], inputs: Tensor, window: int, overlap: float
) -> Tensor:
    """Return (n, classes, h, w): at each pixel, the mean of the logits of all windows over it.

    logits_of: a batch of windows (n, c, a, b) -> (n, classes, a, b). inputs: (n, c, h, w). window:
    the side of a window; where the image is smaller, its whole extent. overlap: the share of the
    side that two neighbours have in common; the last window of a row ends where the image ends.
    """
    h, w = inputs.shape[2:]
    total = counts = None
    for top in window_starts(h, window, overlap):
        for left in window_starts(w, window, overlap):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = logits_of(inputs[:, :, rows, columns])
            if total is None or counts is None:
                total = logits.new_zeros(*logits.shape[:2], h, w)
                counts = logits.new_zeros(h, w)
            total[:, :, rows, columns] += logits
            counts[rows, columns] += 1
    assert total is not None
    assert counts is not None
    return total / counts


def window_starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return where the windows along a side begin: evenly by their step, but for the last."""
    last = max(0, extent - window)
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, last, step), last]
