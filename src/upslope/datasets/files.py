"""Finding files, and saying exactly which are missing."""

from __future__ import annotations

from pathlib import Path

from upslope.errors import DataError


def needed_root(root: Path | None, name: str, where: str) -> Path:
    """`root`, which must exist.

    Raises:
        DataError: no root was given, or there is nothing there; says where to get the files.
    """
    advice = f"Get it from {where}; nothing is downloaded for you."
    if root is None:
        raise DataError(
            f"Expected a root, the folder that holds the data set {name!r}, but got none. "
            f"Give one, or set UPSLOPE_DATA to the folder above it. {advice}"
        )
    if not root.exists():
        raise DataError(
            f"Expected the data set {name!r} in {root} but there is no such path. {advice}"
        )
    return root
