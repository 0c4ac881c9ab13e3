"""Caltech-101: a folder of images per class, 101_ObjectCategories, as published.

L. Fei-Fei, R. Fergus and P. Perona, Learning Generative Visual Models from Few Training Examples,
2004. The publisher states no split, nor does the paper. Here it is: of each class, the fifth of
the images whose SHA-256 of id comes first is the test set (see `subset.draw`). The clutter class
BACKGROUND_Google is left out, which leaves 101 classes and 8,677 images.
"""

from __future__ import annotations

from pathlib import Path

from upslope.datasets.encoded import Decoders, Memory, OnError, SizeOption
from upslope.datasets.folder import open_entries
from upslope.datasets.layout import by_class
from upslope.datasets.paths import needed_root
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.images import OPTIONS
from upslope.progress import Observer, no_progress

WHERE = "https://data.caltech.edu/records/mzrjq-6wc02"
FOLDER, CLUTTER, CLASSES = "101_ObjectCategories", "BACKGROUND_Google", 101
TEST_SHARE = 0.2


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    size: SizeOption = 224,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    decoders: Decoders = 0,
) -> Splits:
    """Caltech-101: 8,677 photographs of 101 kinds of objects; the published folder, unpacked."""
    folder = needed_root(root, "caltech101", WHERE)
    inside = folder / FOLDER
    if inside.is_dir():
        folder = inside
    elif folder.name != FOLDER:
        raise DataError(
            f"Expected the folder {FOLDER} in {root} but there is none. Get and unpack the archive "
            f"from {WHERE}; nothing is downloaded for you."
        )
    entries = [entry for entry in by_class(folder) if entry[1] != CLUTTER]
    classes = {label for _, label, _ in entries}
    if len(classes) != CLASSES:
        raise DataError(
            f"Expected {CLASSES} classes in {folder} but got {len(classes)}. Unpack the archive "
            "again."
        )
    return open_entries(
        folder,
        entries,
        TEST_SHARE,
        mode="RGB",
        size=size or 224,  # the photographs differ in size
        on_error=on_error,
        memory=memory,
        decoders=decoders,
        progress=progress,
        options=OPTIONS & {"size"},
    )
