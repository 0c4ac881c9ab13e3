"""WebDataset: images and labels in the members of tar archives, the shards.

    train-000000.tar: 0001.jpg 0001.cls 0002.jpg 0002.cls ...
    test-000000.tar

Members with one key belong to one sample: the key is the path up to the first dot of the file's
name, and the id of the sample; what follows the dot is the extension. The image is told by its
extension; the label is the content of `.cls` or `.txt`, or a field of `.json`. Shards are read
where they lie: the ids and an index of offsets are held, and nothing is unpacked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.arrays import UNKNOWN, Labels, check_labels
from upslope.datasets.base import Dataset
from upslope.datasets.duplicates import array_duplicate_notes
from upslope.datasets.encoded import (
    Decoders,
    EncodedDataset,
    Memory,
    ModeOption,
    OnError,
    SizeOption,
    materialise,
)
from upslope.datasets.image_form import White, form_of
from upslope.datasets.image_survey import survey_notes
from upslope.datasets.left_out import LeftOut
from upslope.datasets.missing import MissingLabels
from upslope.datasets.paths import needed_root
from upslope.datasets.shards import Shards, find_shards
from upslope.datasets.splits import Splits
from upslope.datasets.subset import draw
from upslope.datasets.tar_labels import choose_label, read_labels
from upslope.datasets.tar_samples import TarImages, TarSamples, locate_images, read_samples
from upslope.datasets.unlabelled import ClassNames, NoTestSet
from upslope.errors import DataError
from upslope.progress import Observer, no_progress


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    shards: Annotated[
        str | None,
        Field(description="tar files to learn from, as a path, a glob or with {000..012}"),
    ] = None,
    test_shards: Annotated[
        str | None, Field(description="tar files to test on, written as `shards`")
    ] = None,
    validation_shards: Annotated[
        str | None, Field(description="tar files to validate on, written as `shards`")
    ] = None,
    image: Annotated[
        str | None, Field(description="extension of the image, where a sample has several")
    ] = None,
    label: Annotated[
        str | None,
        Field(description="extension of the label; the first of cls, json, txt if not given"),
    ] = None,
    field: Annotated[
        str | None,
        Field(description="field of the label in .json; label, cls or class if not given"),
    ] = None,
    classes: ClassNames = None,
    missing_labels: MissingLabels = None,
    test_share: Annotated[
        float, Field(gt=0, lt=1, description="share of each class to test on, if no shards are")
    ] = 0.2,
    mode: ModeOption = "RGB",
    size: SizeOption = None,
    on_error: OnError = "raise",
    memory: Memory = 4.0,
    decoders: Decoders = 0,
    white: White = None,
) -> Splits:
    """WebDataset: tar files of images with .cls, .json or .txt; read where they lie."""
    folder = needed_root(root, "webdataset", "your own tar files")
    places = find_shards(folder, shards, test_shards, validation_shards)
    left_out = LeftOut()
    samples = read_samples(places.paths, left_out, progress)
    images, notes = locate_images(samples, image, on_error)
    label = choose_label(samples, label, field)
    names, labels, more = read_labels(samples, label, field, classes, missing_labels, folder)
    notes = (*left_out.notes(), *notes, *more)
    source = TarImages(places.paths, samples.stamps, *images)
    split_positions = _divide(
        samples, labels, images[2] >= 0, test_share, places, classes is not None
    )
    pool_source, pool_ids = (
        source.part(split_positions["train"]),
        samples.ids_of(split_positions["train"]),
    )
    form, shape = form_of(pool_source, pool_ids, mode, size, on_error, white)

    def open_part(part: str) -> Dataset | None:
        positions = split_positions[part]
        if not len(positions):
            return None
        ids = samples.ids_of(positions)
        dataset = EncodedDataset(
            f"{folder.stem}/{part}",
            ids,
            names,
            source.part(positions),
            check_labels(labels[positions], names, ids, folder),
            form,
            shape,
            decoders=decoders,
            place=f"{folder} ({part})",
        )
        return materialise(dataset, on_error, memory, progress)

    pool, test = open_part("train"), open_part("test")
    assert pool is not None  # `_divide` has refused an empty pool
    validation = open_part("validation")
    read_ids = {id_ for part in (pool, test, validation) if part is not None for id_ in part.ids}
    every = np.concatenate(list(split_positions.values()))
    every = every[[id_ in read_ids for id_ in samples.ids_of(every)]]
    notes += survey_notes(source.part(every), samples.ids_of(every), form, on_error)
    if places.lone_validation:
        notes += ("The shards of the validation split are the test set: no test shards are there.",)
    test = NoTestSet(pool) if test is None else test
    notes += array_duplicate_notes(pool, test)
    return Splits(pool, test, validation, notes)


def _divide(
    samples: TarSamples,
    labels: Labels,
    usable: NDArray[np.bool_],
    test_share: float,
    places: Shards,
    may_lack_test: bool,
) -> dict[str, NDArray[np.int64]]:
    """Return split -> positions of samples with an image: as shards say, or a share drawn by the
    ids.
    """
    parts = np.array(places.splits)[samples.shard]
    candidates = np.flatnonzero((labels != UNKNOWN) & usable & (parts == "train"))
    if not places.stated and len(candidates):
        ids = samples.ids_of(candidates)
        test_positions, _ = draw(
            ids, labels[candidates], round(test_share * len(candidates)), "test"
        )
        parts[candidates[test_positions]] = "test"
    positions = {
        part: np.flatnonzero((parts == part) & usable) for part in ("train", "test", "validation")
    }
    for part, name in (("train", "learn from"), ("test", "test on")):
        if not len(positions[part]) and not (part == "test" and may_lack_test):
            raise DataError(
                f"Expected samples to {name} in {places.paths[0].parent} but got none. Name the "
                "shards with `data.shards` and `data.test_shards`, or raise `data.test_share`."
            )
    return positions
