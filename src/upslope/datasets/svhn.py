"""SVHN, Street View House Numbers, cropped digits: the two .mat files as published.

Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
`X` is (32, 32, 3, n) and `y` is (n, 1), where 10 stands for the digit 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from upslope.datasets.arrays import ArrayDataset, build_dataset
from upslope.datasets.matlab import read_matlab
from upslope.datasets.paths import check_md5, needed_root
from upslope.datasets.splits import Splits
from upslope.errors import DataError
from upslope.progress import Observer, no_progress

WHERE = "http://ufldl.stanford.edu/housenumbers/"
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
PUBLISHED_MD5 = {
    "train": (73_257, "e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": (26_032, "eb5a983be6a315427106f1b164d9cef3"),
}
"""Images of each file, and its MD5."""
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


def load(root: Path | None = None, *, progress: Observer = no_progress) -> Splits:
    """SVHN: house numbers, 73,257 and 26,032 of 32x32, ten digits; the two published .mat files."""
    del progress
    folder = needed_root(root, "svhn", WHERE)
    if missing := [file for file in FILES.values() if not (folder / file).is_file()]:
        raise DataError(
            f"Expected the files {', '.join(missing)} in {folder} but they are missing. Get them "
            f"from {WHERE} (format 2, cropped digits); nothing is downloaded for you."
        )
    return Splits(pool=_split(folder, "train"), test=_split(folder, "test"))


def _split(folder: Path, split: str) -> ArrayDataset:
    path = folder / FILES[split]
    content = read_matlab(path, "X", "y", what="X and y", advice="Get it again.")
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        shapes = {name: values.shape for name, values in content.items()}
        raise DataError(
            f"Expected X of shape (32, 32, 3, n) and y of shape (n, 1) in {path} but got "
            f"{shapes or 'neither'}. The file with full numbers (format 1) is another one."
        )
    count, md5 = PUBLISHED_MD5[split]
    if images.shape[3] == count:  # a part of it that somebody cut out has no checksum
        check_md5(path, md5, WHERE)
    digits = np.where(labels.ravel() == 10, 0, labels.ravel())
    return build_dataset(
        f"svhn/{split}",
        np.ascontiguousarray(images.transpose(3, 2, 0, 1)),  # (n, 3, 32, 32)
        digits,
        tuple("0123456789"),
        source=path,
        mean=MEAN,
        std=STD,
    )
