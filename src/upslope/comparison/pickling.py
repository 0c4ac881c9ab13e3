"""Pickles in which arrays keep how they lie in memory, for plans on their way to other processes.

NumPy pickles the entries of an array in the order of its indices, whatever their order in memory:
images with their channels last come back with their channels first. A convolution takes another
way for each order, and rounds differently, so that a worker would end at other bits.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray


def dumps(value: Any, pickler_class: type[pickle.Pickler] = pickle.Pickler) -> bytes:
    """Return the pickle of a value, which `pickle.loads` reads.

    pickler_class: of the pickler, for those of other libraries.

    Raises:
        PicklingError, AttributeError, TypeError: as `pickle.dumps`.
    """
    file = io.BytesIO()
    pickler = pickler_class(file, pickle.HIGHEST_PROTOCOL)
    table = getattr(pickler, "dispatch_table", copyreg.dispatch_table)
    pickler.dispatch_table = ChainMap({np.ndarray: _reduce}, table)
    pickler.dump(value)
    return file.getvalue()


def _reduce(array: NDArray[Any]) -> Any:
    axes = sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], array.shape[axis] < 2))
    if axes != sorted(axes):
        in_order = np.array(array.transpose(axes), order="C", copy=True)
        strides = dict(zip(axes, in_order.strides, strict=True))
        # The stride of an axis of one entry is any, and yet NumPy looks at it when it copies rows.
        if all(array.shape[a] < 2 or array.strides[a] == strides[a] for a in axes):
            return as_strided, (in_order, array.shape, array.strides)
    return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
