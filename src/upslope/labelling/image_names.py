"""Which image of a project a file means that was written elsewhere.

Files name images by other paths than a project does: from another folder, or by the file alone.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from upslope.errors import DataError


class ImageNames:
    """The images that the names in one file of labels mean. Two names may not mean one image: its
    label might be another's.

    ids: of the project's images, their paths in its folder.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = set(ids)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for id_ in ids:
            self._by_name[compose_letters(PurePosixPath(id_).name)].append(id_)
        self._name_of: dict[str, str] = {}

    def match(self, names: Sequence[str], source: object) -> str:
        """Return the id of the image that the first fitting of some names means.

        names: paths, the likeliest first. An id counts as it is. Another path means the image of
        that file name, where there is one alone or where its last folders are those of one. Folders
        may stand between backslashes, as Windows writes them, and letters be composed or not, as
        macOS writes them. Where none fits, the first is returned as it is, so that it is refused
        with the other unknown ids.

        Raises:
            DataError: a file name that several images have, or an image that had another name.
        """
        id_ = self._look_up(names, source)
        return names[0] if id_ is None else self._settle(id_, names[0], source)

    def knows(self, name: str) -> bool:
        """Return whether a name means an image, or fits several. It may have another name later."""
        try:
            return self._look_up([name], "") is not None
        except DataError:
            return True

    def match_one(self, names_by_field: Mapping[str, Sequence[str]], source: object) -> str:
        """Return the id of the one image that the fields of a record mean, as `match` does.

        names_by_field: field -> names, the likeliest first.

        Raises:
            DataError: as `match`, and fields that mean two images.
        """
        first = next(iter(names_by_field.values()))[0]
        id_by_field = {
            field: id_
            for field, names in names_by_field.items()
            if (id_ := self._look_up(names, source)) is not None
        }
        if len(set(id_by_field.values())) > 1:
            said = ", ".join(f"{field} means {id_!r}" for field, id_ in id_by_field.items())
            raise DataError(
                f"Expected {source} to name one image but {said}. Leave the other fields out; "
                "nothing was recorded."
            )
        if not id_by_field:
            return first
        field, id_ = next(iter(id_by_field.items()))
        return self._settle(id_, names_by_field[field][0], source)

    def _look_up(self, names: Sequence[str], source: object) -> str | None:
        names = [*names, *(name.replace("\\", "/") for name in names if "\\" in name)]
        exact = next((name for name in names if name in self._ids), None)
        if exact is not None:
            return exact
        for name in map(compose_letters, names):
            alike = self._by_name.get(PurePosixPath(name).name, [])
            if len(alike) > 1:
                in_folders = [
                    i for i in alike if "/" in i and f"/{name}".endswith(f"/{compose_letters(i)}")
                ]
                longest = max(map(compose_letters, in_folders), key=len, default="")
                alike = [i for i in in_folders if compose_letters(i) == longest] or alike
            if len(alike) > 1:
                raise DataError(
                    f"Expected {name} of {source} to name one image but {len(alike)} have that "
                    f"name, first {alike[0]!r}. Name them by their paths in the project's folder; "
                    "nothing was recorded."
                )
            if alike:
                return alike[0]
        return None

    def _settle(self, id_: str, name: str, source: object) -> str:
        """Remember the name of an image, and refuse another one."""
        if (before := self._name_of.setdefault(id_, name)) != name:
            raise DataError(
                f"Expected one name for each image in {source} but {before!r} and {name!r} both "
                f"mean {id_!r}. Name them by their paths in the project's folder; nothing was "
                "recorded."
            )
        return id_


def compose_letters(name: str) -> str:
    """Return a name with each accented letter in one code point, where it may be in two."""
    return unicodedata.normalize("NFC", name)
