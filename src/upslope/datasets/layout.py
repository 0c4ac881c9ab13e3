"""The layout of a folder of images: which folders are splits, which are classes, what is neither.

Names of splits are recognised in other spellings (Train, testing, test_set, dev), since a split
that is taken for a class puts test images into the pool. Where a layout can be meant in two ways it
is refused, and the option `layout` says which is meant.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from upslope.datasets.folder_names import are_no_classes, split_of, splits_among
from upslope.datasets.left_out import LeftOut, name_some
from upslope.errors import DataError
from upslope.image_formats import AVIF_SUFFIX, HEIC_SUFFIXES, reads_avif, reads_heic

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Suffixes of images that are always read; `image_suffixes` has those of AVIF and HEIC too."""
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
_SYSTEM_FILES = frozenset(
    (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "icon\r")
)
_OF_SYSTEM = " of an operating system"
_NOT_TEXT = " not named in UTF-8"
_OWN_FOLDERS = {"ledger.sqlite": "run folder", "labels.sqlite": "labelling project"}
"""File -> what the folder is in which it lies: Upslope's own, which also hold pictures."""


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that are read as images here, in small letters."""
    avif, heic = [AVIF_SUFFIX] * reads_avif(), HEIC_SUFFIXES * reads_heic()
    return SUFFIXES.union(avif, heic)


def no_images(
    folder: Path,
    left_out: LeftOut,
    purpose: str = "",
    advice: str = "Give the folder that holds the images, in one of these formats.",
) -> DataError:
    """Return the error for a folder without images: what was looked for, and what lies there.

    purpose: what the images are for, as " to score". advice: what to do where no name is in the
    way.
    """
    if ("image", _NOT_TEXT) in left_out.paths:
        advice = "Rename what is not named in UTF-8, images and the folders above them."
    there = "; ".join(left_out.counts())
    suffixes = ", ".join(sorted(image_suffixes()))
    return DataError(
        f"Expected images ({suffixes}){purpose} in {folder}, at any depth, but there are none. "
        f"{f'It holds {there}' if there else 'It is empty'}. {advice}"
    )


def images_in(root: Path, folder: Path, left_out: LeftOut) -> list[str]:
    """Return paths, relative to `root`, of the images at any depth of `folder`.

    They are ordered as text, so that the order is the same on every system. Hidden files and
    folders, those of operating systems, files of other kinds, and images whose names are not UTF-8
    are counted in `left_out`.
    """
    ids: list[str] = []
    for where, folders, files in os.walk(folder):
        if kind := next((what for file, what in _OWN_FOLDERS.items() if file in files), None):
            left_out.add(kind, Path(where).relative_to(root).as_posix())
            folders.clear()
            continue
        at = Path(where).relative_to(root).as_posix()
        begins = "" if at == "." else f"{at}/"
        for name in sorted(folders):
            path = f"{begins}{name}"
            if is_hidden(name):
                _leave_folder(name, path, left_out)
            elif (Path(where) / name).is_symlink():
                left_out.add("linked folder", path, " (links are not followed)")
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in sorted(files):
            path = f"{begins}{name}"
            if not is_image(name):
                leave(name, path, left_out)
            elif is_text(path):
                ids.append(path)
            else:
                left_out.add("image", path, _NOT_TEXT)
    return sorted(ids)


def is_text(path: str) -> bool:
    """Whether a path is text: names in other encodings, as old archives unpack them, can be opened
    and neither written to a table nor recorded."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_image(name: str) -> bool:
    """Whether a file is read as an image: by its suffix, unless it is hidden."""
    return not name.startswith(".") and name.lower().endswith(tuple(image_suffixes()))


def is_hidden(name: str) -> bool:
    """Whether a folder is hidden, or one that an operating system keeps for itself."""
    return name.startswith(".") or name.lower() in _SYSTEM


def leave(name: str, path: str, left_out: LeftOut) -> None:
    """Count a file that is no image, or a hidden one."""
    suffix = Path(name).suffix.lower()
    if name.lower() in _SYSTEM_FILES:
        left_out.add("file", path, _OF_SYSTEM)
    elif name.startswith("."):
        left_out.add("hidden image" if suffix in image_suffixes() else "hidden file", path)
    elif suffix:
        left_out.add("file", path, f" of the kind {suffix}, which is not read as an image")
    else:
        left_out.add("file", path, " without a suffix, which would tell that it is an image")


def _leave_folder(name: str, path: str, left_out: LeftOut) -> None:
    """Count a folder that is hidden, or that an operating system keeps for itself."""
    system = name.lower() in _SYSTEM
    left_out.add("folder" if system else "hidden folder", path, _OF_SYSTEM if system else "")


def _leave_rest(root: Path, folder: Path, left_out: LeftOut) -> None:
    """Count the files of a folder, and the folders of it that are not looked into."""
    for path in sorted(folder.iterdir()):
        relative = path.relative_to(root).as_posix()
        if path.is_file() and not is_image(path.name):
            leave(path.name, relative, left_out)
        elif is_hidden(path.name):
            _leave_folder(path.name, relative, left_out)


def by_class(
    folder: Path,
    layout: Layout = "auto",
    left_out: LeftOut | None = None,
    *,
    needs_test: bool = False,
) -> list[Entry]:
    """Return every image of a folder laid out by class, perhaps within splits.

    needs_test: refuse splits without one to test on that lie beside a folder that may be it.

    Raises:
        DataError: the layout cannot be meant, or can be meant in two ways.
    """
    left_out = LeftOut() if left_out is None else left_out
    tops = _visible(folder)
    splits = {} if layout == "classes" else _split_folders(folder, tops, layout)
    if not splits:
        if layout == "auto":
            _no_splits_within(folder, tops)
            _not_alike_within(folder, tops)
        unsplit = list(_class_folders(folder, folder, "", layout, left_out))
        if layout == "auto":
            _no_splits_below(folder, unsplit)
        return unsplit
    if needs_test and {*splits.values()} == {"train"}:
        _no_test_of_another_name(folder, tops, splits)
    entries: list[Entry] = []
    for top in tops:
        if top in splits:
            entries += _class_folders(folder, folder / top, splits[top], layout, left_out)
        elif top.lower() in UNLABELLED:
            images = images_in(folder, folder / top, left_out)
            entries += [(id_, "", "train") for id_ in images]
        else:
            for id_ in images_in(folder, folder / top, left_out):
                left_out.add("image", id_, f" of the folder {top!r}, which names no split")
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_image(path.name):
            left_out.add("image", path.name, " beside the folders of the splits")
    _leave_rest(folder, folder, left_out)
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
    only_train = layout != "classes" and splits and len(splits) + len(unlabelled) == len(tops)
    if not train and not (unlabelled and only_train):
        return [folder]
    return [folder / top for top in (*train, *unlabelled)]


def _visible(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))


def _twice(split: str, names: Sequence[str], folder: Path) -> str:
    return (
        f"Expected one folder of the split {split} in {folder} but got {name_some(names)}. Join or "
        "rename them, or set `data.layout` to classes if they are no splits."
    )


def _split_folders(folder: Path, tops: Sequence[str], layout: Layout) -> dict[str, str]:
    """Folder -> split, of those that name one; empty where the folders are classes.

    Raises:
        DataError: two folders of one split, none to learn from, or names of splits beside others
            that may be classes.
    """
    split_by_top = {top: split for top in tops if (split := split_of(top))}
    for split, count in Counter(split_by_top.values()).items():
        if count > 1:
            twice = [top for top, name in split_by_top.items() if name == split]
            raise DataError(_twice(split, twice, folder))
    if not split_by_top and layout == "auto":
        _no_class_and_split(folder, tops)
        return {}
    others = [top for top in tops if top not in split_by_top and top.lower() not in UNLABELLED]
    if "train" not in split_by_top.values():
        _only_unlabelled_beside(folder, tops, [*split_by_top], others)
    if layout == "auto" and others and len(split_by_top) == 1:
        _no_class_called_as_split(folder, next(iter(split_by_top)), others)
    return split_by_top


def _only_unlabelled_beside(
    folder: Path, tops: Sequence[str], splits: Sequence[str], others: Sequence[str]
) -> None:
    """Refuse folders of splits without one to learn from, train or unlabelled images alone."""
    if not others and len(tops) > len(splits):
        return
    of_these = f", of which {name_some(splits)} names a split" if others and splits else ""
    raise DataError(
        f"Expected a folder to learn from, train or {UNLABELLED[0]}, in {folder} but got "
        f"{name_some(tops) or 'none'}{of_these}. Name it so, or set `data.layout` to classes if "
        "each of these folders is a class."
    )


def _no_class_called_as_split(folder: Path, split: str, others: Sequence[str]) -> None:
    """Refuse a single folder of a split with images of its own: it may be a class beside others."""
    if _holds_images(folder / split):
        raise DataError(
            f"Expected folders of classes, or folders of splits, in {folder} but {split!r} "
            f"names a split and {name_some(others)} do not. Set `data.layout` to classes if it is "
            "a class too, or sort its images into folders of classes."
        )


def _holds_images(folder: Path) -> bool:
    return any(path.is_file() and is_image(path.name) for path in folder.iterdir())


def _no_class_and_split(folder: Path, tops: Sequence[str]) -> None:
    """Refuse folders such as cats_train, cats_test, which name a class and a split at once."""
    hints = splits_among(tops)
    if len(hints) > 1:
        raise DataError(
            f"Expected folders of classes, or folders of splits, in {folder} but "
            f"{name_some(list(hints.values()))} seem to name both. Lay them out as train/<class>/ "
            "and "
            "test/<class>/, or set `data.layout` to classes if each is a class."
        )


def _no_splits_within(folder: Path, tops: Sequence[str]) -> None:
    """Refuse folders of splits inside what would be classes: cat/train/, or images/train/."""
    within = {top: [name for name in _visible(folder / top) if split_of(name)] for top in tops}
    mixed_tops = [top for top in tops if within[top]]
    if mixed_tops:
        first = mixed_tops[0]
        advice = (
            f"Give {folder / first} as the root"
            if len(mixed_tops) == 1
            else "Lay them out as train/<class>/ and test/<class>/"
        )
        raise DataError(
            f"Expected folders of classes in {folder} but {first!r} holds folders that name "
            f"splits: {name_some(within[first])}. {advice}, or set `data.layout` to classes if "
            f"{first!r} is a class, splits and all."
        )


def _no_splits_below(folder: Path, entries: Sequence[Entry]) -> None:
    """Refuse folders of two splits at any depth of a class: cat/2024/train, cat/2024/test."""
    examples: dict[str, str] = {}
    for id_, _, _ in entries:
        for name in id_.split("/")[1:-1]:
            if split := split_of(name):
                examples.setdefault(split, id_)
    if len(examples) > 1:
        raise DataError(
            f"Expected folders of classes in {folder} but deeper ones name splits, as of "
            f"{name_some(list(examples.values()))}. Lay them out as train/<class>/ and "
            "test/<class>/, or set `data.layout` to classes if these names mean no splits."
        )


def _no_test_of_another_name(folder: Path, tops: Sequence[str], splits: Mapping[str, str]) -> None:
    """Refuse a folder beside train/ that may be the test set under a name that is not known."""
    others = [top for top in tops if top not in splits and top.lower() not in UNLABELLED]
    if others:
        raise DataError(
            f"Expected a folder to test on beside {name_some(list(splits))} in {folder} but "
            f"{name_some(others)} {'name' if len(others) > 1 else 'names'} no split. Call what is "
            "to test on test, or set `data.layout` to classes if each of these folders is a class."
        )


def _not_alike_within(folder: Path, tops: Sequence[str]) -> None:
    """Refuse folders that all hold the same ones, perhaps the classes: seen/cat, query/cat."""
    inner = [
        _visible(folder / top)
        for top in tops
        if top.lower() not in UNLABELLED and not _holds_images(folder / top)
    ]
    classes = [top for top in tops if top.lower() not in UNLABELLED]
    alike = len(inner) == len(classes) > 1 and all(names == inner[0] for names in inner)
    if alike and len(inner[0]) > 1 and not (are_no_classes(inner[0]) or are_no_classes(classes)):
        raise DataError(
            f"Expected folders of classes in {folder} but each of {name_some(classes)} holds the "
            "same "
            f"folders, {name_some(inner[0])}, which may be the classes. Name what is to train and "
            "what "
            "to test on train and test, or set `data.layout` to classes if the folders at the root "
            "are the classes all the same."
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
    _leave_rest(root, folder, left_out)
    for name in _visible(folder):
        here = LeftOut()
        images = images_in(root, folder / name, here)
        if not images and not any(map(here.count, _OWN_FOLDERS.values())):
            advice = "Remove the folder if it is no class."
            raise no_images(folder / name, here, " of a class", advice)
        for (noun, detail), paths in here.paths.items():
            for path in paths:
                left_out.add(noun, path, detail)
        for id_ in images:
            yield id_, "" if name.lower() in UNLABELLED else name, split


def _not_by_date(folder: Path, classes: Sequence[str]) -> None:
    """Refuse folders that are all named by years or dates, as parts, by kinds of files, or as
    cameras name theirs; a single one is no class in any case."""
    if len(classes) > 1 and are_no_classes(classes):
        raise DataError(
            f"Expected folders of classes in {folder} but {name_some(classes)} are named by date, "
            "as parts, by kinds of files or by a camera. List the images with their labels in a "
            "manifest, or set "
            "`data.layout` to classes (or splits) if these folders are the classes."
        )
