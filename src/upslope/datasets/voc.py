"""PASCAL VOC, the images with segmentation masks, as the archive unpacks.

M. Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, 2015.
"""

from __future__ import annotations

from pathlib import Path

from upslope.counts import format_count
from upslope.datasets.base import Splits
from upslope.datasets.decoding import read_text
from upslope.datasets.encoded import Memory, OnError, SizeOption
from upslope.datasets.mask_classes import IGNORE, MaskClasses
from upslope.datasets.masks import Pair, open_pairs
from upslope.datasets.paths import needed_root
from upslope.errors import DataError
from upslope.progress import Observer, no_progress

WHERE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    size: SizeOption = 384,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
) -> Splits:
    """PASCAL VOC segmentation: lists train and val of VOC2012, 1,464 and 1,449; 21 classes.

    The photographs differ in size: the largest centred square of each is brought to size x size.
    """
    folder = needed_root(root, "voc", WHERE)
    inside = [folder, *sorted(folder.glob("VOCdevkit/VOC*")), *sorted(folder.glob("VOC20*"))]
    homes = [path for path in inside if (path / "ImageSets/Segmentation/train.txt").is_file()]
    if not homes:
        raise DataError(
            f"Expected ImageSets/Segmentation/train.txt in {folder}, or in its VOCdevkit/VOC2012, "
            f"but there is none. Get the data from {WHERE}; nothing is downloaded for you."
        )
    home = homes[-1]  # the latest year
    parts = {}
    for name, part in (("train", "train"), ("val", "test")):
        ids = read_text(home / f"ImageSets/Segmentation/{name}.txt").split()
        pairs = [
            Pair(i, home / f"JPEGImages/{i}.jpg", home / f"SegmentationClass/{i}.png") for i in ids
        ]
        _all_there(pairs, home / f"ImageSets/Segmentation/{name}.txt")
        parts[part] = pairs
    size = size or 384
    return open_pairs(
        home.name.lower(),
        home,
        parts,
        MaskClasses.of(CLASSES, "index", {i: i for i in range(len(CLASSES))} | {255: IGNORE}),
        size=(size, size),
        on_error=on_error,
        memory=memory,
        progress=progress,
    )


def _all_there(pairs: list[Pair], listing: Path) -> None:
    missing = [
        path for pair in pairs for path in (pair.image, pair.mask) if path and not path.is_file()
    ]
    if missing:
        raise DataError(
            f"Expected the images and masks that {listing} lists but "
            f"{format_count(len(missing), 'file is', 'files are')} missing, first {missing[0]}. "
            f"Unpack the archive of {WHERE} again."
        )
