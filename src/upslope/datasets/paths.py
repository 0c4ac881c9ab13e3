"""Finding files, and saying exactly which are missing or damaged; where to keep what was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from upslope.errors import ConfigError, DataError, RunError
from upslope.files import write_text

_MOST_IDS = 50  # ids within a sentence


def needed_root(root: Path | None, name: str, where: str) -> Path:
    """Return `root`, which must exist.

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


def refuse_empty_path(path: str | Path, what: str) -> None:
    """Refuse an empty text as a path, of which Path makes the current folder.

    what: the path is, for the message.

    Raises:
        ConfigError: the text is empty.
    """
    if not str(path).strip():
        raise ConfigError(
            f"Expected {what} to be the path of a file or folder but got an empty text, perhaps of "
            "a variable that is not set. Write . for the current folder."
        )


def check_all_shards(paths: Sequence[Path]) -> None:
    """Compare the number of files with that in their names, two of train-00000-of-00002.

    paths: of one split, in order.

    Raises:
        DataError: some are missing.
    """
    total = paths[0].stem.rpartition("-of-")[2]
    if total.isdecimal() and len(paths) != int(total):
        raise DataError(
            f"Expected {int(total)} files, as {paths[0].name} says, in {paths[0].parent} but got "
            f"{len(paths)}: {', '.join(path.name for path in paths)}. Get the missing ones."
        )


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return the paths in order, without hidden files: those that macOS writes beside others, as
    ._a.csv, have the suffix of a.csv and another content."""
    return sorted(path for path in paths if not path.name.startswith("."))


def check_md5(path: Path, published_md5: str, where: str) -> None:
    """Compare a file with the checksum that its publisher states.

    Raises:
        DataError: it has another one.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != published_md5:
        raise DataError(
            f"Expected {path} to have the published MD5 {published_md5} but it has {digest}: the "
            "file "
            f"is damaged, or not the published one. Get it again from {where}."
        )


def cache_folder() -> Path:
    """Return the user's folder for what can be made again: $XDG_CACHE_HOME/upslope or
    ~/.cache/upslope.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "upslope"


def list_ids(ids: Sequence[str]) -> str:
    """Return all of these ids as part of a sentence: `'a', 'b'`.

    Of more than 50, the first are followed by the path of a file that names all, one per line;
    where that cannot be written, all are in the sentence.
    """
    some_ids = ids[:_MOST_IDS]
    more = ""
    if len(ids) > _MOST_IDS:
        text = "".join(f"{id_!r}\n" for id_ in ids)
        path = cache_folder() / f"left-out-{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
        try:
            write_text(path, text)
            more = f" and {len(ids) - _MOST_IDS:,} more, all listed in {path}"
        except RunError:
            some_ids = ids
    return ", ".join(repr(id_) for id_ in some_ids) + more
