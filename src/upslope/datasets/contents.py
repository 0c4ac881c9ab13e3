"""Digests of what each sample holds, by which things computed from it are found again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import PIL

from upslope.datasets.base import Dataset
from upslope.datasets.encoded import EncodedDataset
from upslope.datasets.readable import readable
from upslope.datasets.subset import Subset
from upslope.errors import DataError

_CHUNK = 256  # samples read at once


def content_digests(
    dataset: Dataset, progress: Callable[[int], None] = lambda _: None
) -> list[bytes | None]:
    """Return the SHA-256 of the content of each sample, None of one that cannot be read.

    Of images that are decoded at each reading, it is that of the encoded bytes and of the form
    they are brought to; of others, that of their inputs. It depends on neither ids nor order.
    progress: is told the number of samples done.
    """
    base, positions = dataset, np.arange(len(dataset))
    while isinstance(base, Subset) and type(base).inputs is Subset.inputs:
        positions = base.positions[positions]
        base = base.dataset
    digests: list[bytes | None] = []
    for start in range(0, len(positions), _CHUNK):
        part = positions[start : start + _CHUNK].tolist()
        if isinstance(base, EncodedDataset):
            digests += _of_files(base, part)
        else:
            digests += _of_inputs(base, part)
        progress(len(digests))
    return digests


def _of_files(dataset: EncodedDataset, positions: Sequence[int]) -> list[bytes | None]:
    form = f"{dataset.form} {dataset.input_shape} Pillow {PIL.__version__}".encode()
    digests: list[bytes | None] = []
    for position in positions:
        try:
            source = dataset.source(position)
            content = source if isinstance(source, bytes) else source.read_bytes()
        except (OSError, DataError):
            digests.append(None)
        else:
            digests.append(hashlib.sha256(form + hashlib.sha256(content).digest()).digest())
    return digests


def _of_inputs(dataset: Dataset, positions: Sequence[int]) -> list[bytes | None]:
    inputs, mask = readable(dataset, positions)
    digests: list[bytes | None] = [None] * len(positions)
    form = f"{inputs.dtype} {tuple(inputs.shape[1:])}".encode()
    for place, values in zip(mask.nonzero().flatten().tolist(), inputs, strict=True):
        content = values.contiguous().numpy().data
        digests[place] = hashlib.sha256(form + hashlib.sha256(content).digest()).digest()
    return digests
