"""Which image of a project a file means that was written elsewhere.

Files name images by other paths than a project does: from another folder, or by the file alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from upslope.errors import DataError


class ImageNames:
    """ids: of the project's images, their paths in its folder."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = set(ids)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for id_ in ids:
            self._by_name[PurePosixPath(id_).name].append(id_)

    def match(self, names: Sequence[str], source: object) -> str:
        """Return the id of the image that the first fitting of some names means.

        names: paths, the likeliest first. An id counts as it is; another path, where its last part
        is the file name of one image alone. Where none fits, the first is returned as it is, so
        that it is refused with the other unknown ids.

        Raises:
            DataError: a file name that several images have.
        """
        exact = next((name for name in names if name in self._ids), None)
        if exact is not None:
            return exact
        for name in names:
            alike = self._by_name.get(PurePosixPath(name).name, [])
            if len(alike) > 1:
                raise DataError(
                    f"Expected {name} of {source} to name one image but {len(alike)} have that "
                    f"name, first {alike[0]!r}. Name them by their paths in the project's folder; "
                    "nothing was recorded."
                )
            if alike:
                return alike[0]
        return names[0]
