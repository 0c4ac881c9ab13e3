"""The layout of a folder of images: which folders are splits, which are classes, what is neither.

Names of splits are recognised in other spellings (Train, testing, test_set, dev), since a split
that is taken for a class puts test images into the pool. Where a layout can be meant in two ways it
is refused, and the option `layout` says which is meant.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from upslope.datasets.folder_names import are_no_classes, split_of, splits_among
from upslope.errors import DataError

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
UNLABELLED = ("unlabelled", "unlabeled")

Layout = Literal["auto", "classes", "splits"]
LayoutOption = Annotated[
    Layout,
    Field(description="what the folders at the root are: classes, or splits; auto goes by names"),
]
Entry = tuple[str, str, str]
"""(id, name of the class or "", split or "")."""

_SYSTEM = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))
_LEDGER = "ledger.sqlite"  # lies in the folder of a run, which also holds pictures
_RUNS = "folders of runs"
_SHOWN = 3


@dataclass
class LeftOut:
    """What lies in a folder and is not read: reason -> paths relative to the root."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a path under a reason, the end of "Left out 3 ..."."""
        self.paths.setdefault(reason, []).append(path)

    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each reason."""
        return tuple(
            f"Left out {len(paths):,} {reason}: {shown(paths)}."
            for reason, paths in sorted(self.paths.items())
        )


def shown(names: Sequence[str]) -> str:
    """Return the first few of the names, quoted, as a list in a sentence."""
    few = ", ".join(repr(name) for name in names[:_SHOWN])
    return few + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def images_in(root: Path, folder: Path, left_out: LeftOut) -> list[str]:
    """Return paths, relative to `root`, of the images at any depth of `folder`.

    They are ordered as text, so that the order is the same on every system. Hidden files and
    folders, those of operating systems, and files of other kinds are counted in `left_out`.
    """
    ids: list[str] = []
    for where, folders, files in os.walk(folder):
        if _LEDGER in files:
            left_out.add(_RUNS, Path(where).relative_to(root).as_posix())
            folders.clear()
            continue
        at = Path(where).relative_to(root).as_posix()
        begins = "" if at == "." else f"{at}/"
        for name in sorted(folders):
            path = f"{begins}{name}"
            if is_hidden(name):
                left_out.add("hidden folders", path)
            elif (Path(where) / name).is_symlink():
                left_out.add("links to folders, which are not followed", path)
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            path = f"{begins}{name}"
            if is_image(name):
                ids.append(path)
            else:
                leave(name, path, left_out)
    return sorted(ids)


def is_image(name: str) -> bool:
    """Whether a file is read as an image: by its suffix, unless it is hidden."""
    return not name.startswith(".") and name.lower().endswith(tuple(SUFFIXES))


def is_hidden(name: str) -> bool:
    """Whether a folder is hidden, or one that an operating system keeps for itself."""
    return name.startswith(".") or name.lower() in _SYSTEM


def leave(name: str, path: str, left_out: LeftOut) -> None:
    """Count a file that is no image, unless it is one of those that operating systems write."""
    suffix = Path(name).suffix.lower()
    if name.startswith("."):
        if suffix in SUFFIXES:
            left_out.add("hidden images", path)
    elif name.lower() not in _SYSTEM_FILES:
        kind = f"of the kind {suffix}" if suffix else "without a suffix"
        left_out.add(f"files {kind}, which are not read as images", path)


def by_class(folder: Path, layout: Layout = "auto", left_out: LeftOut | None = None) -> list[Entry]:
    """Return every image of a folder laid out by class, perhaps within splits.

    Raises:
        DataError: the layout cannot be meant, or can be meant in two ways.
    """
    left_out = LeftOut() if left_out is None else left_out
    tops = _visible(folder)
    splits = {} if layout == "classes" else _split_folders(folder, tops, layout)
    if not splits:
        if layout == "auto":
            _no_splits_within(folder, tops)
        return list(_class_folders(folder, folder, "", layout, left_out))
    entries: list[Entry] = []
    for top in tops:
        if top in splits:
            entries += _class_folders(folder, folder / top, splits[top], layout, left_out)
        elif top.lower() in UNLABELLED:
            images = images_in(folder, folder / top, left_out)
            entries += [(id_, "", "train") for id_ in images]
        else:
            for id_ in images_in(folder, folder / top, left_out):
                left_out.add(f"images of the folder {top!r}, which names no split", id_)
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_image(path.name):
            left_out.add("images that lie beside the folders of the splits", path.name)
    return entries


def train_folders(folder: Path, layout: Layout) -> list[Path]:
    """Return the folders whose images are the pool: that of the split train and what is unlabelled,
    the latter alone beside other splits, or `folder` itself where there is neither."""
    tops = _visible(folder)
    train = [] if layout == "classes" else [top for top in tops if split_of(top) == "train"]
    if len(train) > 1:
        raise DataError(_twice("train", train, folder))
    unlabelled = [top for top in tops if top.lower() in UNLABELLED]
    splits = [top for top in tops if split_of(top)]
    alone = layout != "classes" and splits and len(splits) + len(unlabelled) == len(tops)
    if not train and not (unlabelled and alone):
        return [folder]
    return [folder / top for top in (*train, *unlabelled)]


def _visible(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))


def _twice(split: str, names: Sequence[str], folder: Path) -> str:
    return (
        f"Expected one folder of the split {split} in {folder} but got {shown(names)}. Join or "
        "rename them, or set `data.layout` to classes if they are no splits."
    )


def _split_folders(folder: Path, tops: Sequence[str], layout: Layout) -> dict[str, str]:
    """Folder -> split, of those that name one; empty where the folders are classes.

    Raises:
        DataError: two folders of one split, none to learn from, or names of splits beside others
            that may be classes.
    """
    named = {top: split for top in tops if (split := split_of(top))}
    for split, count in Counter(named.values()).items():
        if count > 1:
            raise DataError(_twice(split, [t for t, s in named.items() if s == split], folder))
    others = [top for top in tops if top not in named and top.lower() not in UNLABELLED]
    if not named and layout == "auto":
        _no_class_and_split(folder, tops)
        return {}
    alone = not others and len(tops) > len(named)  # only unlabelled images beside the splits
    if "train" not in named.values() and not alone:
        raise DataError(
            f"Expected a folder to learn from, train or {UNLABELLED[0]}, in {folder} but got "
            f"{shown(tops) or 'none'}"
            + (f", of which {shown(list(named))} names a split" if others and named else "")
            + ". Name it so, or set `data.layout` to classes if each of these folders is a class."
        )
    if layout == "auto" and others and len(named) == 1:
        flat = [top for top in named if _holds_images(folder / top)]
        if flat:
            raise DataError(
                f"Expected folders of classes, or folders of splits, in {folder} but {flat[0]!r} "
                f"names a split and {shown(others)} do not. Set `data.layout` to classes if it is "
                "a class too, or sort its images into folders of classes."
            )
    return named


def _holds_images(folder: Path) -> bool:
    return any(path.is_file() and is_image(path.name) for path in folder.iterdir())


def _no_class_and_split(folder: Path, tops: Sequence[str]) -> None:
    """Refuse folders such as cats_train, cats_test, which name a class and a split at once."""
    hints = splits_among(tops)
    if len(hints) > 1:
        raise DataError(
            f"Expected folders of classes, or folders of splits, in {folder} but "
            f"{shown(list(hints.values()))} seem to name both. Lay them out as train/<class>/ and "
            "test/<class>/, or set `data.layout` to classes if each is a class."
        )


def _no_splits_within(folder: Path, tops: Sequence[str]) -> None:
    """Refuse folders of splits inside what would be classes: cat/train/, or images/train/."""
    within = {top: [name for name in _visible(folder / top) if split_of(name)] for top in tops}
    divided = [top for top in tops if within[top]]
    if divided:
        first = divided[0]
        advice = (
            f"Give {folder / first} as the root"
            if len(divided) == 1
            else "Lay them out as train/<class>/ and test/<class>/"
        )
        raise DataError(
            f"Expected folders of classes in {folder} but {first!r} holds folders that name "
            f"splits: {shown(within[first])}. {advice}, or set `data.layout` to classes if "
            f"{first!r} is a class, splits and all."
        )


def _class_folders(
    root: Path, folder: Path, split: str, layout: Layout, left_out: LeftOut
) -> Iterable[Entry]:
    loose = next((p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p.name)), None)
    if loose is not None:
        raise DataError(
            f"Expected images in one folder a class under {folder} but {loose.name} lies beside "
            f"them. Move images without a label to {folder / UNLABELLED[0]}; where none has one, "
            "name the classes: data.classes=[cat,dog]. Or list images and labels in a manifest."
        )
    classes = [name for name in _visible(folder) if name.lower() not in UNLABELLED]
    if layout == "auto":
        _not_by_date(folder, classes)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            leave(path.name, path.relative_to(root).as_posix(), left_out)
        elif is_hidden(path.name):
            left_out.add("hidden folders", path.relative_to(root).as_posix())
    for name in _visible(folder):
        runs = len(left_out.paths.get(_RUNS, ()))
        images = images_in(root, folder / name, left_out)
        if not images and len(left_out.paths.get(_RUNS, ())) > runs:
            continue
        if not images:
            raise DataError(
                f"Expected images ({', '.join(sorted(SUFFIXES))}) in {folder / name} but there are "
                "none. Remove the folder if it is no class."
            )
        for id_ in images:
            yield id_, "" if name.lower() in UNLABELLED else name, split


def _not_by_date(folder: Path, classes: Sequence[str]) -> None:
    """Refuse folders that are all named by years or dates, as parts, or as cameras name theirs."""
    if are_no_classes(classes):
        raise DataError(
            f"Expected folders of classes in {folder} but {shown(classes)} are named by date, as "
            "parts, or by a camera. List the images with their labels in a manifest, or set "
            "`data.layout` to classes (or splits) if these folders are the classes."
        )
