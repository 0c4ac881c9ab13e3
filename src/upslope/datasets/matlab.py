"""MATLAB 5 files, read in a process of its own: SciPy's reader may crash on a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from upslope.reading import read_in_child, reporting_damage


def read_matlab(path: Path, *names: str, what: str, advice: str) -> dict[str, NDArray[Any]]:
    """Return the variables of these names; of a struct array, each field as <name>.<field>.

    Variables that are not there are left out. what: they are, and advice: what to do, in the error.

    Raises:
        DataError: the file is damaged, of another format, or takes more memory than a file may.
    """
    with reporting_damage(f"{what} of a MATLAB 5 file in {path}", advice):
        return read_in_child(Path(__file__).with_name("mat_child.py"), path, *names)
