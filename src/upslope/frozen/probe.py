"""Features of made-up samples, by which the stored features of a network are known to be its own.

What a network computes may also depend on what its digest does not see, such as a number that its
code reads elsewhere. So each folder of features holds those of two made-up samples, and one whose
features differ from those computed now is another network's. Of made-up samples a network may give
numbers that are not finite, as the logarithm of negative ones: these tell nothing by their size.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upslope.blocks import SUFFIX
from upslope.files import save_array, write_atomically
from upslope.memory import raise_memory_error

PROBE = "probe"
"""The file of a folder of features that holds those of made-up samples."""
_CLOSE = 1e-3  # relative: what other numbers of threads and versions of libraries leave

Probe = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def summary(probe: Tensor) -> list[float]:
    """Return the means over quarters of each row of features of made-up samples, (n, width), with 0
    for what is not finite, which no ledger holds."""
    finite = torch.where(probe.isfinite(), probe.double(), 0.0)
    parts = [part for row in finite for part in row.tensor_split(4)]
    return [float(part.mean()) if len(part) else 0.0 for part in parts]


def same_summary(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two summaries are of the same network, but for what rounding leaves.

    one, other: as `summary` returned them; of earlier versions, perhaps not finite.
    """
    scale = max((abs(a) for a in one if math.isfinite(a)), default=0.0) or 1.0
    return len(one) == len(other) and all(
        abs(a - b) <= _CLOSE * scale
        for a, b in zip(one, other, strict=True)
        if math.isfinite(a - b)
    )


def store_folder(base: Path, digest: str, probe_features: Tensor, device: torch.device) -> Path:
    """Return the folder of a network on this kind of device.

    Where the features of made-up samples in a folder are damaged, the blocks of that folder are
    removed, with a warning: they may be another network's.

    base: the folder of all. digest: of the network. probe_features: its features of made-up
    samples. device: where they were computed.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    probe = probe_features.numpy()
    name = f"{digest[:24]}-{device.type}"
    number = 0
    while True:
        folder = base / (f"{name}-{number}" if number else name)
        file = folder / PROBE
        stored_features = _read_probe(file) if file.is_file() else None
        if file.is_file() and stored_features is None:
            warnings.warn(
                f"{file} is damaged, by which the features beside it are known to be this "
                "network's: they are computed again.",
                stacklevel=2,
            )
            for block in folder.glob(f"*{SUFFIX}"):
                block.unlink(missing_ok=True)
        if stored_features is None:
            write_atomically(file, lambda temporary: _save_probe(temporary, probe))
            return folder
        if _is_close(stored_features, probe):
            return folder
        number += 1


def _save_probe(path: Path, probe: Probe) -> None:
    with path.open("wb") as file:
        save_array(file, probe)
        file.write(hashlib.sha256(np.ascontiguousarray(probe).data).digest())


def _read_probe(path: Path) -> Probe | None:
    """Return the features of made-up samples, None where the file is damaged; files of earlier
    versions have no digest, and are taken where they are whole.
    """
    try:
        with path.open("rb") as file:
            features: Probe = np.load(file, allow_pickle=False)
            digest = file.read()
        if not digest:
            return features if np.isfinite(features).all() else None
        sound = digest == hashlib.sha256(np.ascontiguousarray(features).data).digest()
        return features if sound else None
    except Exception as error:  # a damaged header fails in any way there is
        raise_memory_error(error, of_file=True)
        return None


def _is_close(stored_features: Probe, probe: Probe) -> bool:
    finite = np.isfinite(probe)
    if not np.array_equal(np.isfinite(stored_features), finite):
        return False
    room = _CLOSE * (float(np.abs(probe[finite]).max(initial=0.0)) or 1.0)
    return bool(np.abs(stored_features[finite] - probe[finite]).max(initial=0.0) <= room)
