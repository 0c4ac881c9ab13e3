"""Arrays that travel to other processes lie there as they did here."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from upslope.comparison import pickling

NUMBERS = np.arange(2 * 3 * 4 * 5, dtype=np.float32)
ONE_CHANNEL = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(6, 8, 8)


@pytest.mark.parametrize(
    "array",
    [
        NUMBERS.reshape(2, 3, 4, 5),
        NUMBERS.reshape(2, 4, 5, 3).transpose(0, 3, 1, 2),
        ONE_CHANNEL[..., None].transpose(0, 3, 1, 2),
        ONE_CHANNEL[:, None],
        np.asfortranarray(NUMBERS.reshape(6, 20)),
        NUMBERS.reshape(2, 3, 4, 5).transpose(3, 1, 0, 2),
        NUMBERS[:0].reshape(0, 3),
    ],
)  # fmt: skip
def test_an_array_keeps_its_order_in_memory(array: np.ndarray) -> None:
    back = pickle.loads(pickling.dumps({"images": [array]}))["images"][0]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert back.strides == array.strides
    # A batch of samples, whose order in memory decides on the way of a convolution.
    rows = np.arange(len(array))
    assert torch.from_numpy(back[rows]).stride() == torch.from_numpy(array[rows]).stride()


@pytest.mark.parametrize(
    "array",
    [NUMBERS[::-1], NUMBERS.reshape(6, 20)[:, ::3], np.broadcast_to(NUMBERS[:4], (3, 4)),
     np.array(["a", None], dtype=object), np.array(7.0)],
)  # fmt: skip
def test_every_other_array_keeps_its_entries(array: np.ndarray) -> None:
    back = pickle.loads(pickling.dumps(array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
