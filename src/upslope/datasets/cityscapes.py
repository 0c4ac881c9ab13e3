"""Cityscapes as downloaded: leftImg8bit and gtFine, the 19 classes that are evaluated.

M. Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016. The
test set is the published validation split: the labels of the published test split are held back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from upslope.datasets.encoded import Memory, OnError
from upslope.datasets.mask_classes import IGNORE, MaskClasses
from upslope.datasets.masks import Pair, open_pairs, pair_files
from upslope.datasets.paths import needed_root, visible
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress

WHERE = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""The evaluated classes in the order of their train ids: name -> id in the files."""
IDS = 34
"""The files hold 0 to 33; those of no evaluated class are ignored."""
MEAN, STD = (0.2901, 0.3281, 0.2870), (0.1830, 0.1866, 0.1845)  # published with DRN


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    width: Annotated[
        int | None, Field(ge=64, le=2048, description="bring 2048x1024 to width x width/2")
    ] = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
) -> Splits:
    """Cityscapes: 2,975 street scenes, 500 to test on (the published val); 19 classes."""
    folder = needed_root(root, "cityscapes", WHERE)
    values = dict.fromkeys(range(IDS), IGNORE)
    values |= {id_: i for i, id_ in enumerate(CLASSES.values())}
    parts = {}
    for name, part in (("train", "train"), ("val", "test")):
        images, masks = (
            {
                path.name.removesuffix(ending): path
                for path in visible((folder / kind / name).glob(f"*/*{ending}"))
            }
            for kind, ending in (
                ("leftImg8bit", "_leftImg8bit.png"),
                ("gtFine", "_gtFine_labelIds.png"),
            )
        )
        if not images or not masks:
            raise DataError(
                f"Expected leftImg8bit/{name}/<city>/*_leftImg8bit.png and gtFine/{name}/<city>/"
                f"*_gtFine_labelIds.png in {folder} but got {len(images)} and {len(masks)}. Get "
                f"and unpack both archives from {WHERE}; nothing is downloaded for you."
            )
        pairs = pair_files(images, masks, folder / "leftImg8bit" / name)
        parts[part] = [Pair(f"{name}/{key}", image, mask) for key, image, mask in pairs]
    return open_pairs(
        "cityscapes",
        folder,
        parts,
        MaskClasses.of(tuple(CLASSES), "index", values),
        size=(width // 2, width) if width else None,
        on_error=on_error,
        memory=memory,
        progress=progress,
        options=frozenset(),
        mean=MEAN,
        std=STD,
    )
