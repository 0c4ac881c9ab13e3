"""Masks out of a project, as files that data set `mask-folder` reads.

FOLDER/classes.csv          name,id: background,0 and the classes from 1
FOLDER/images/a.jpg         FOLDER/masks/a.png      grey, a class's number per pixel
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from upslope.errors import ConfigError, DataError
from upslope.files import csv_text, make_folder, new_folder, write_atomically, write_text
from upslope.labelling.exports import ExportCount, count_labels, labelled_images, link_file
from upslope.labelling.outlines import Outlines, read_outlines
from upslope.labelling.people import MergeMethod, merge_answers
from upslope.labelling.project import read_project

BACKGROUND = "background"
_MOST = 254  # classes of a mask file: 255 is what data sets ignore


def export_masks(project: Path | str, folder: Path, merge: MergeMethod = "majority") -> ExportCount:
    """Write the masks of a project and links to their images into a new folder, all or none.

    A pixel of no class is background, and of a class of that name where the project has one.
    merge: how several people's answers become one label.

    Raises:
        ConfigError: a project of another kind, or of more than 254 classes.
        DataError: pixels of two classes, images whose masks would have one name, images that are
            gone, or a folder that holds other files.
        RunError: no project, or a disk that is full.
    """
    settings, state = read_project(project)
    if settings.kind != "masks":
        raise ConfigError(f"Expected a project of masks but it holds answers of {settings.kind}.")
    numbers = {BACKGROUND: 0}
    for name in settings.classes:
        numbers.setdefault(name, len(numbers))
    if len(numbers) > _MOST:
        raise ConfigError(
            f"Expected at most {_MOST} classes with the background for mask files but got "
            f"{len(numbers)}. Export .json (COCO)."
        )
    labels = merge_answers(state, settings.classes, merge)
    samples = labelled_images(settings, labels, folder)
    files: dict[str, str] = {}
    for id_ in labels:
        file = f"{PurePosixPath(id_).with_suffix('')}.png"
        if file in files:
            raise DataError(
                f"Expected one image for the mask {file} but {files[file]!r} and {id_!r} would "
                "share it. Rename one of them, or export .json (COCO)."
            )
        files[file] = id_
    with new_folder(folder) as new:
        rows = [[name, str(number)] for name, number in numbers.items()]
        write_text(new / "classes.csv", csv_text(("name", "id"), rows))
        for file, id_ in files.items():
            outlines = read_outlines(str(labels[id_]), "masks", settings.classes)
            mask = io.BytesIO()
            Image.fromarray(_levels(outlines, numbers, id_)).save(mask, format="PNG")
            target = new / "masks" / file
            make_folder(target.parent)
            write_atomically(target, partial(_write, mask.getvalue()))
            picture = new / "images" / id_
            make_folder(picture.parent)
            link_file(samples.root / id_, picture)
    return count_labels(state, labels, len(labels))


def _levels(
    outlines: Outlines, numbers: dict[str, int], id_: str
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """(height, width), the number of each pixel's class."""
    levels = np.zeros(outlines.size, dtype=np.uint8)
    marked_pixels = np.zeros(outlines.size, dtype=np.bool_)
    for name, mask in (outlines.masks or {}).items():
        if twice := int((mask & marked_pixels).sum()):
            raise DataError(
                f"Expected one class for each pixel of {id_!r} but {twice:,} have two. Mend the "
                "mask, or export .json (COCO), which keeps both; nothing was written."
            )
        levels[mask] = numbers[name]
        marked_pixels |= mask
    return levels


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)
