"""Blocks of signals on the disk: files that are whole or absent, mapped into memory when read.

A block is a NumPy file of records, each the SHA-256 of what a row belongs to and the numbers of the
row, with the SHA-256 of all records behind them. `frozen.store` finds rows by the content of
samples, `signal_store` by their places in a pool.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from upslope.errors import DataError
from upslope.files import save_array, write_atomically
from upslope.memory import raise_memory_error

SUFFIX = ".npy"
DIGEST = hashlib.sha256().digest_size

Records = NDArray[np.void]


class DamagedBlockError(DataError):
    """A block that is not as it was written."""


def write_block(
    path: Path, digests: Sequence[bytes], values: NDArray[np.generic], dtype: DTypeLike = np.float32
) -> None:
    """Write a block, whole or not at all.

    path: the file. digests: what each row belongs to, 32 bytes. values: (n, ...) numbers. dtype: to
    keep them in.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    records = np.empty(len(digests), dtype=_record(values.shape[1:], dtype))
    records["digest"] = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST)
    records["features"] = values
    write_atomically(path, lambda temporary: _save(temporary, records))


def map_block(path: Path, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Records:
    """Map a block into memory, once its content was compared with its digest.

    path: the file. shape: of the numbers of a row. dtype: of these.

    Raises:
        DamagedBlockError: it is missing, cut short, changed, or of another shape.
    """
    try:
        records: Records = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-DIGEST, os.SEEK_END)
            sound = file.read() == hashlib.sha256(records.data).digest()
    except Exception as error:  # NumPy's reader fails in any way there is on a damaged header
        raise_memory_error(error, of_file=True)
        raise DamagedBlockError(_fault_error(path, "cannot be read")) from error
    if not sound or records.dtype != _record(shape, dtype):
        raise DamagedBlockError(_fault_error(path, "is damaged"))
    return records


def _fault_error(path: Path, fault: str) -> str:
    return (
        f"Expected the numbers that were kept in {path} but the file {fault}. Remove it, and run "
        "the command that made it again: it is computed anew."
    )


def _record(shape: tuple[int, ...], dtype: DTypeLike) -> np.dtype[np.void]:
    return np.dtype([("digest", np.uint8, (DIGEST,)), ("features", dtype, shape)])


def _save(path: Path, records: Records) -> None:
    with path.open("wb") as file:
        save_array(file, records)
        file.write(hashlib.sha256(records.data).digest())  # NumPy reads no further
