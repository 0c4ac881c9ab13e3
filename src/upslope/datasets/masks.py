"""Images with a mask each: held where all fit in memory, decoded at each reading where not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN, Labels
from upslope.datasets.encoded import Files, left_out_text, run_for_each
from upslope.datasets.image_duplicates import Duplicates, copy_notes
from upslope.datasets.image_form import form_of, size_advice
from upslope.datasets.image_survey import mask_notes, survey_notes, turned_notes
from upslope.datasets.images_with_masks import ImagesWithMasks
from upslope.datasets.layout import images_in, no_images
from upslope.datasets.left_out import LeftOut
from upslope.datasets.mask_classes import IGNORE, Mask, MaskClasses
from upslope.datasets.outlines import OutlineMasks
from upslope.datasets.splits import Splits
from upslope.datasets.unlabelled import NoTestSet
from upslope.errors import DataError
from upslope.images import OPTIONS, Form, Mode, Pixels, decode
from upslope.progress import Observer, Progress

_THREADS = 4


class Pair(NamedTuple):
    """An image, its id, and its mask; None where nobody has drawn one."""

    id: str
    image: Path
    mask: Path | None


@dataclass(frozen=True, eq=False)
class MaskDataset:
    """Images and masks decoded when they are asked for, several at a time, in threads.

    mean, std: published statistics per channel of the images scaled to 0..1; empty where unknown.
    place: what messages call the data set, the path that the user gave and the split.
    """

    name: str
    pairs: Sequence[Pair]
    codes: MaskClasses | OutlineMasks
    form: Form
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resident: bool = False
    place: str = ""

    @cached_property
    def ids(self) -> Sequence[str]:
        """Return one id per pair of image and mask."""
        return tuple(pair.id for pair in self.pairs)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes of pixels."""
        return self.codes.classes

    @property
    def labels(self) -> Labels:
        """(n,): 0 where there is a mask, `UNKNOWN` where not. Sets are divided by it."""
        return np.array([0 if pair.mask else UNKNOWN for pair in self.pairs], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """(n, c, h, w) uint8. Raises DataError naming the image that cannot be used."""
        out = np.empty((len(indices), *self.input_shape), dtype=np.uint8)
        return _fill(out, indices, self.image)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(n, h, w) uint8, 255 where ignored. Raises DataError naming the mask that cannot be used,
        or the image that has none."""
        out = np.empty((len(indices), *self.input_shape[1:]), dtype=np.uint8)
        return _fill(out, indices, self.mask)

    def image(self, position: int) -> Pixels:
        """(c, h, w) uint8. Raises DataError: it cannot be decoded, or is of another size."""
        path = self.pairs[position].image
        pixels = decode(path, str(path), self.form)
        if pixels.shape != self.input_shape:
            raise DataError(
                f"Expected {path} to be of shape (c, h, w) = {self.input_shape}, as the first "
                f"image, but got {pixels.shape}. {size_advice(self.form)}"
            )
        return pixels

    def mask(self, position: int) -> Mask:
        """(h, w) uint8. Raises DataError: there is none, or it does not belong to its image."""
        pair = self.pairs[position]
        if pair.mask is None:
            raise DataError(
                f"Expected a mask for {pair.id!r} but the data set has none. An annotator must "
                "draw it."
            )
        return self.codes.read(pair.mask, pair.image, self.form)


@dataclass(frozen=True, eq=False)
class HeldMasks(ImagesWithMasks):
    """A `MaskDataset` decoded: images (n, c, h, w) and masks (n, h, w), both uint8."""

    name: str
    pairs: Sequence[Pair]
    codes: MaskClasses | OutlineMasks
    images: Pixels
    masks: Mask
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resident: bool = True
    place: str = ""

    @cached_property
    def ids(self) -> Sequence[str]:
        """Return one id per pair of image and mask."""
        return tuple(pair.id for pair in self.pairs)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes of pixels."""
        return self.codes.classes


def open_pairs(
    name: str,
    root: Path,
    parts: Mapping[str, Sequence[Pair]],
    codes: MaskClasses | OutlineMasks,
    *,
    may_lack_test: bool = False,
    mode: Mode = "RGB",
    size: tuple[int, int] | None,
    on_error: str,
    memory: float,
    progress: Observer,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    white: int | None = None,
    notes: tuple[str, ...] = (),
    duplicates: Duplicates = "off",
    options: frozenset[str] = OPTIONS,
) -> Splits:
    """The splits of the pairs under "train", "test" and, where there are some, "validation".

    root: the folder that the user gave. size: (height, width) that all are brought to; None where
    all have the first's. memory: GiB of decoded pairs to hold at most, in each part. on_error:
    "skip" leaves out pairs that cannot be used, with one warning that counts them. white: as for
    `image_form.white_level`. notes: of what the listing left out. duplicates: as for `copy_notes`.
    may_lack_test: the test set may be empty. options: as of `images.Form`.

    Raises:
        DataError: nothing to learn from or to test on; with `on_error="raise"`, a pair that
            cannot be used, if all are held.
    """
    _refuse_missing(parts, root, may_lack_test)
    form, shape = _form(parts["train"], mode, size, on_error, white, options)

    def open_part(part: str) -> MaskDataset | HeldMasks:
        dataset = MaskDataset(
            f"{name}/{part}",
            parts[part],
            codes,
            form,
            shape,
            mean,
            std,
            place=f"{root} ({part})",
        )
        return _hold(dataset, on_error, memory, progress)

    validation = open_part("validation") if parts.get("validation") else None
    pool = open_part("train")
    test = open_part("test") if parts.get("test") else None
    by_title = {"pool": pool, "test set": test, "validation set": validation}
    datasets = {title: part for title, part in by_title.items() if part is not None}
    notes += _change_notes(parts, datasets.values(), codes, form, on_error)
    notes += _lone_class_notes(datasets)
    if duplicates != "off":
        with_pairs = {title: part for title, part in datasets.items() if len(part)}
        files = {title: [pair.image for pair in part.pairs] for title, part in with_pairs.items()}
        notes += copy_notes(with_pairs, files, duplicates, progress)
    return Splits(pool, NoTestSet(pool) if test is None else test, validation, notes)


def _refuse_missing(parts: Mapping[str, Sequence[Pair]], root: Path, may_lack_test: bool) -> None:
    """Refuse parts with nothing to learn from, or nothing to test on."""
    for part, purpose in (("train", "learn from"), ("test", "test on")):
        if not parts.get(part) and not (part == "test" and may_lack_test):
            raise DataError(f"Expected images with masks to {purpose} in {root} but got none.")


def _lone_class_notes(datasets: Mapping[str, MaskDataset | HeldMasks]) -> tuple[str, ...]:
    """A sentence where the masks in memory are of one class alone, but for ignored pixels."""
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    held_masks = [dataset for dataset in datasets.values() if isinstance(dataset, HeldMasks)]
    for dataset in held_masks:
        for mask in dataset.masks:
            counts += np.bincount(mask.ravel(), minlength=IGNORE + 1)
    numbers = np.flatnonzero(counts[:IGNORE])
    if len(numbers) != 1:
        return ()
    note = (
        f"All {counts[numbers[0]]:,} pixels of the masks that count are of the class "
        f"{held_masks[0].classes[numbers[0]]!r}"
    )
    if not counts[IGNORE]:
        return (f"{note}.",)
    return (
        f"{note}, and {counts[IGNORE]:,} are ignored. Where these are a class, give it the number "
        "that the masks have for it.",
    )


def _change_notes(
    parts: Mapping[str, Sequence[Pair]],
    datasets: Iterable[MaskDataset | HeldMasks],
    codes: MaskClasses | OutlineMasks,
    form: Form,
    on_error: str,
) -> tuple[str, ...]:
    """Sentences on what decoding changes in the images that are read, and on kinds of masks."""
    read_ids = {id_ for dataset in datasets for id_ in dataset.ids}
    pairs = [pair for part in parts.values() for pair in part if pair.id in read_ids]
    images = [str(pair.image) for pair in pairs]
    notes = survey_notes(Files(Path(), images), images, form, on_error)
    if isinstance(codes, MaskClasses):
        kind = codes.kind if codes.by_colour is None else "both"
        with_masks = [(pair.image, pair.mask) for pair in pairs if pair.mask]
        masks = [mask for _, mask in with_masks]
        notes += mask_notes(masks, kind) + turned_notes([image for image, _ in with_masks], masks)
    return notes


def by_name(folder: Path, where: str, left_out: LeftOut | None = None) -> dict[str, Path]:
    """Return every image file under `folder`: its path without suffix, with `/` -> itself.

    left_out: counts the other files.

    Raises:
        DataError: no such folder, no image in it, or two of one name.
    """
    if not folder.is_dir():
        raise DataError(
            f"Expected the folder {folder} but there is none. Get the data from {where}; nothing "
            "is downloaded for you."
        )
    files: dict[str, Path] = {}
    left_out = LeftOut() if left_out is None else left_out
    for id_ in images_in(folder, folder, left_out):
        path = folder / id_
        key = Path(id_).with_suffix("").as_posix()
        if key in files:
            raise DataError(
                f"Expected one file a name but got both {files[key]} and {path}. Remove one."
            )
        files[key] = path
    if not files:
        raise no_images(folder, left_out)
    return files


def pair_files(
    images: Mapping[str, Path], masks: Mapping[str, Path], where: object
) -> list[tuple[str, Path, Path]]:
    """(key, image, mask) of each key, in order.

    Raises:
        DataError: an image without a mask, or a mask without an image; names the first of each.
    """
    problems = []
    for kind, other, keys in (
        ("image", "mask", sorted(images.keys() - masks.keys())),
        ("mask", "image", sorted(masks.keys() - images.keys())),
    ):
        if keys:
            names = ", ".join(repr(key) for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
            verb = "has" if len(keys) == 1 else "have"
            problems.append(f"{format_count(len(keys), kind)} {verb} no {other}: {names}")
    if problems:
        raise DataError(
            f"Expected a mask of the same name for each image in {where} but "
            f"{'; '.join(problems)}. Add what is missing, or remove the others; images whose masks "
            "are still to be drawn belong into images/unlabelled."
        )
    return [(key, images[key], masks[key]) for key in sorted(images)]


def _form(
    pairs: Sequence[Pair],
    mode: Mode,
    size: tuple[int, int] | None,
    on_error: str,
    white: int | None,
    options: frozenset[str],
) -> tuple[Form, tuple[int, int, int]]:
    images = Files(Path(), [str(pair.image) for pair in pairs])
    form, shape = form_of(images, images.ids, mode, None, on_error, white, options)
    return (form, shape) if size is None else (replace(form, size=size), (shape[0], *size))


def _hold(
    dataset: MaskDataset, on_error: str, memory: float, progress: Observer
) -> MaskDataset | HeldMasks:
    """All in memory where they fit and every image has its mask; otherwise as it is."""
    shape, skip = dataset.input_shape, on_error == "skip"
    size = len(dataset) * (shape[0] + 1) * math.prod(shape[1:])
    fits = size <= memory * 2**30 and all(pair.mask for pair in dataset.pairs)
    if not fits and not skip:
        return dataset
    rows = len(dataset) if fits else 0
    images = np.empty((rows, *shape), dtype=np.uint8)
    masks = np.empty((rows, *shape[1:]), dtype=np.uint8)
    errors: dict[int, DataError] = {}

    def read(i: int) -> None:
        try:
            image = dataset.image(i)
            mask = dataset.mask(i) if dataset.pairs[i].mask else IGNORE
        except DataError as error:
            if not skip:
                raise
            errors[i] = error
        else:
            if fits:
                images[i], masks[i] = image, mask

    progress(Progress("read", 0, len(dataset)))
    for count in run_for_each(read, len(dataset), _THREADS):
        progress(Progress("read", count, len(dataset)))
    positions = [i for i in range(len(dataset)) if i not in errors]
    if errors:
        warnings.warn(
            left_out_text(dataset, errors),
            stacklevel=2,
        )
        images, masks = (images[positions], masks[positions]) if fits else (images, masks)
    pairs = [dataset.pairs[i] for i in positions]
    if not fits:
        return replace(dataset, pairs=pairs)
    return HeldMasks(
        dataset.name,
        pairs,
        dataset.codes,
        images,
        masks,
        dataset.mean,
        dataset.std,
        place=dataset.place,
    )


def _fill(out: Mask, indices: Sequence[int], read: Callable[[int], Mask]) -> Tensor:
    positions = list(indices)

    def fill(k: int) -> None:
        out[k] = read(positions[k])

    for _ in run_for_each(fill, len(positions), _THREADS):
        pass
    return torch.from_numpy(out)
