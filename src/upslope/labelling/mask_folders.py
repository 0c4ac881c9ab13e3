"""Masks out of a project, as files that data set `mask-folder` reads, and in again.

FOLDER/classes.csv          name,id: background,0 and the classes from 1
FOLDER/images/a.jpg         FOLDER/masks/a.png      grey, a class's number per pixel
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from upslope.datasets.left_out import LeftOut
from upslope.datasets.mask_classes import IGNORE, read_mask_classes
from upslope.datasets.masks import by_name
from upslope.errors import ConfigError, DataError
from upslope.files import csv_text, make_folder, new_folder, write_atomically, write_text
from upslope.images import Form
from upslope.labelling.exports import ExportCount, count_labels, labelled_images, link_file
from upslope.labelling.image_names import ImageNames
from upslope.labelling.imported_labels import ImportedLabel
from upslope.labelling.outlines import Outlines, masks_text, read_outlines
from upslope.labelling.people import MergeMethod, merge_answers
from upslope.labelling.project import read_project
from upslope.labelling.samples import Samples

BACKGROUND, CLASS_TABLE = "background", "classes.csv"
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
        write_text(new / CLASS_TABLE, csv_text(("name", "id"), rows))
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


def read_mask_folder(
    folder: Path, classes: Sequence[str], samples: Samples, left_out: LeftOut
) -> list[tuple[str, ImportedLabel]]:
    """Return (id, masks) of each image in a folder as `export_masks` and others write it.

    classes: of the project. left_out: counts what is not taken over. A pixel of the background has
    no class, unless the project has one of that name. An image without a mask says nothing.

    Raises:
        DataError: no class table, masks without an image or of another size, pixels of other
            classes than the project's, or images that the names do not tell apart.
    """
    table = read_mask_classes(folder / CLASS_TABLE)
    images = by_name(folder / "images", "an export of masks", left_out)
    masks = by_name(folder / "masks", "an export of masks", left_out)
    if strangers := sorted(masks.keys() - images.keys()):
        raise DataError(
            f"Expected an image of the same name for each mask in {folder} but {len(strangers)} "
            f"have none, first {strangers[0]!r}. Nothing was recorded."
        )
    names = ImageNames(samples.ids)
    rows: list[tuple[str, ImportedLabel]] = []
    for key, image in images.items():
        id_ = names.match([image.relative_to(folder / "images").as_posix()], folder)
        if key not in masks:
            rows.append((id_, None))
            continue
        levels = table.read(masks[key], image, Form("L", None))
        if (levels == IGNORE).any():
            left_out.add("part", key, " of masks that count nowhere, and have no class here")
        by_class = {
            name: levels == number
            for number, name in enumerate(table.classes)
            if (name in classes or name != BACKGROUND) and (levels == number).any()
        }
        rows.append((id_, masks_text(levels.shape, by_class, classes)))
    return rows


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
