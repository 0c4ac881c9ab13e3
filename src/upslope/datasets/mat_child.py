"""Read arrays of a MATLAB 5 file in a process of its own; run as a script by `datasets.matlab`.

SciPy's reader ends the process on some damaged files. Nothing of Upslope is imported here.
The exit code is `WRITING_FAILED` where the arrays cannot be written, as on a full disk.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

WRITING_FAILED = 3
"""As `upslope.reading` has it."""


def main(path: str, folder: str, limit: str, *names: str) -> None:
    """Save each variable of `names` as <folder>/<name>.npy, each field of a struct array as
    <folder>/<name>.<field>.npy; limit: bytes of memory that may be taken."""
    import numpy as np
    from scipy.io import loadmat

    _limit_memory(int(limit))
    for name, value in loadmat(path, variable_names=list(names)).items():
        if name not in names:
            continue
        array = np.asarray(value)
        if array.dtype.names is None:
            _save(folder, name, array)
        else:
            for field in array.dtype.names:
                _save(folder, f"{name}.{field}", np.array([_scalar(x) for x in array[field].flat]))


def _scalar(value: Any) -> Any:
    """Return the one number or text in a cell of a struct array, "" for anything else."""
    import numpy as np

    flat = np.asarray(value).ravel()
    return flat[0] if flat.size == 1 and flat.dtype.kind in "biufU" else ""


def _save(folder: str, name: str, array: Any) -> None:
    import numpy as np

    if array.dtype.hasobject:
        raise ValueError(f"{name} is of objects, not of numbers")
    try:
        with Path(folder, f"{name}.npy").open("wb") as file:
            # Written through Python: of a file of the system's, NumPy passes over an error that
            # comes as it empties its buffer.
            writer = type("Writer", (), {"write": staticmethod(file.write)})()
            np.save(writer, array, allow_pickle=False)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(WRITING_FAILED)


def _limit_memory(limit: int) -> None:
    """Take no more memory than this beyond what is taken already; on Linux, which tells that."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # SciPy fails in any way there is; the parent shows the last line
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            text = f"it takes more memory than `data.read_limit` allows ({text})"
        sys.exit(f"{text or type(error).__name__}")
