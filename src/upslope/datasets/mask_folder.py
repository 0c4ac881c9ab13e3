"""A folder of images and masks of the user's own, with a class table (`mask_classes`).

root/classes.csv
root/images/train/...  root/masks/train/...   and test/, perhaps val/: splits as stated
root/images/...        root/masks/...         a share is drawn for the test set
root/images/unlabelled/...                    in the pool; masks may appear beside them, in
                                              root/masks/unlabelled/... or come later

With all images in images/unlabelled, nothing is labelled yet: they are the pool, and the test set
is empty. The folder masks/ may then be missing. images/test with its masks may lie beside
images/unlabelled without any images/train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.decoding import EncodingOption
from upslope.datasets.encoded import (
    Memory,
    OnError,
    SizeOption,
)
from upslope.datasets.folder_names import split_of
from upslope.datasets.image_duplicates import DuplicatesOption
from upslope.datasets.image_form import White
from upslope.datasets.layout import UNLABELLED
from upslope.datasets.left_out import LeftOut
from upslope.datasets.mask_classes import ignored_class_notes, read_mask_classes
from upslope.datasets.masks import Pair, by_name, open_pairs, pair_files
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.splits import Splits
from upslope.datasets.subset import draw
from upslope.errors import DataError
from upslope.images import Mode
from upslope.progress import Observer, no_progress

WHERE = "your own images"


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    table: Annotated[
        str, Field(description="CSV in the folder: name,id or name,red,green,blue")
    ] = "classes.csv",
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="share to test on, if the folders state no split")
    ] = 0.2,
    mode: Annotated[Mode, Field(description="RGB or L (grey)")] = "RGB",
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    white: White = None,
    duplicates: DuplicatesOption = "auto",
    encoding: EncodingOption = None,
) -> Splits:
    """Your own images/ and masks/ of the same names, with a class table; indices or colours.

    Raises:
        DataError: missing pairs, a class table that cannot be read, nothing to learn from or to
            test on; what `MaskDataset` raises, where all pairs are held.
    """
    folder = needed_root(root, "mask-folder", WHERE)
    codes = read_mask_classes(folder / table, encoding)
    left_out = LeftOut()
    images = by_name(folder / "images", WHERE, left_out)
    pool_images = {key: path for key, path in images.items() if _top(key).lower() in UNLABELLED}
    none_yet = pool_images == images and not visible((folder / "masks").glob("**/*.*"))
    masks = {} if none_yet else by_name(folder / "masks", WHERE, left_out)
    triples = pair_files(
        {k: p for k, p in images.items() if k not in pool_images},
        {k: p for k, p in masks.items() if k not in pool_images},
        folder,
    )
    pairs = [Pair(*triple) for triple in triples]
    parts = _by_folder(pairs, folder, left_out, bool(pool_images)) or _by_share(pairs, test_share)
    notes = (*left_out.notes(), *ignored_class_notes(codes.classes))
    if parts["test"] and all(split_of(_top(pair.id)) == "validation" for pair in parts["test"]):
        notes += ("The images of the validation split are the test set: no split test is there.",)
    parts["train"] += [Pair(key, path, masks.get(key)) for key, path in sorted(pool_images.items())]
    return open_pairs(
        folder.name,
        folder,
        parts,
        codes,
        may_lack_test=not pairs,
        mode=mode,
        size=(size, size) if size else None,
        on_error=on_error,
        memory=memory,
        progress=progress,
        white=white,
        notes=notes,
        duplicates=duplicates,
    )


def _top(key: str) -> str:
    """Return the first folder of a key; "" where it has none."""
    return key.partition("/")[0] if "/" in key else ""


def _by_folder(
    pairs: list[Pair], folder: Path, left_out: LeftOut, unlabelled: bool
) -> dict[str, list[Pair]]:
    """Return pairs by the split that their first folder names; empty where the folders name none.

    unlabelled: there are images whose masks are still to be drawn, which are to learn from as well.

    Raises:
        DataError: two folders of one split, or folders of splits without one to learn from.
    """
    tops = sorted({_top(pair.id) for pair in pairs} - {""})
    splits = {top: split for top in tops if (split := split_of(top))}
    if not splits:
        return {}
    only_pool = unlabelled and all(_top(pair.id) in splits for pair in pairs)
    to_learn = only_pool or "train" in splits.values()
    if len(set(splits.values())) < len(splits) or not to_learn:
        raise DataError(
            f"Expected one folder for each split in {folder / 'images'}, one of them to learn "
            f"from, train or {UNLABELLED[0]}, but got {', '.join(splits)}. Join or rename them."
        )
    parts: dict[str, list[Pair]] = {"train": [], "test": [], "validation": []}
    for pair in pairs:
        top = _top(pair.id)
        if top in splits:
            parts[splits[top]].append(pair)
        else:
            left_out.add("pair", pair.id, " outside of the folders of the splits")
    if not parts["test"]:  # a lone validation split is what the test is made on
        parts["test"], parts["validation"] = parts["validation"], []
    return parts


def _by_share(pairs: list[Pair], share: float) -> dict[str, list[Pair]]:
    if not pairs:
        return {"train": [], "test": []}
    labels = np.full(len(pairs), UNKNOWN, dtype=np.int64)  # nothing to stratify by
    positions, rest = draw([pair.id for pair in pairs], labels, round(share * len(pairs)), "test")
    return {"train": [pairs[i] for i in rest], "test": [pairs[i] for i in positions]}
