"""Images that are there twice: byte for byte, or nearly, above all in the pool and the test set.

Exact copies are told by SHA-256 of their files, of which only those of equal length, beginning and
end are read. Near ones are told by thumbnails of 16 x 16 grey levels, brought to mean 0 and length
1: two images are near where the inner product is 0.995 or more. That finds copies that were saved
again, resized, brightened or brought to grey; mirrored or cropped ones it does not find.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from upslope.counts import format_count
from upslope.datasets.arrays import UNKNOWN
from upslope.datasets.base import Dataset
from upslope.datasets.readable import readable
from upslope.datasets.subset import labels_of
from upslope.progress import Observer, Progress, no_progress

Duplicates = Literal["auto", "near", "exact", "off"]
DuplicatesOption = Annotated[
    Duplicates,
    Field(
        description="copies to look for and to tell of: exact, near (decodes every image), or off; "
        "auto: near up to 20,000 images held in memory or decoded in seconds, else exact"
    ),
]

SIDE = 16
NEAR = 0.995
"""Least inner product of the thumbnails of near duplicates."""
MANY = 20_000
"""Images above which `auto` compares no thumbnails: the work grows with the square."""
MOST_STREAMED_BYTES = 2**28
"""Bytes of decoded images above which `auto` decodes none for the sake of their thumbnails."""
_FLAT = 2.0  # standard deviation of grey levels under which a thumbnail shows nothing to compare
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue in grey, as Pillow weighs them
_CHUNK = 512
_END = 4096  # bytes that are compared before whole files are


@dataclass(frozen=True)
class _Sample:
    part: str
    id: str
    label: int
    file: Path


class _Pair(NamedTuple):
    """Positions of a sample and of one before it that it is a copy of."""

    copy: int
    original: int


def copy_notes(
    parts: Mapping[str, Dataset],
    files: Mapping[str, Sequence[Path]],
    looking: Duplicates,
    progress: Observer = no_progress,
) -> tuple[str, ...]:
    """Return sentences on images that are there more than once, with counts and examples.

    parts: what a split is called -> its images; the first is the pool. files: the same -> the file
    of each image. looking: the option `duplicates`; nothing is looked for where it is off.
    """
    if looking == "off":
        return ()
    samples = [
        _Sample(part, id_, int(label), file)
        for part, dataset in parts.items()
        for id_, label, file in zip(dataset.ids, labels_of(dataset), files[part], strict=True)
    ]
    groups = list(_equal_files(samples))
    notes = list(_note(_copies(groups, samples), samples, "copy", ", byte for byte,"))
    if looking == "exact":
        return tuple(notes)
    if looking == "auto" and not (_is_quick(parts.values()) and len(samples) <= MANY):
        return (
            *notes,
            "Near duplicates were not looked for: set `data.duplicates` to near to do so.",
        )
    return (*notes, *_note(_near(parts, samples, groups, progress), samples, "near copy"))


def _is_quick(parts: Iterable[Dataset]) -> bool:
    """Tell whether all images are held in memory, or few enough to be decoded in seconds."""
    streams = [dataset for dataset in parts if not dataset.resident]
    return sum(len(d) * math.prod(d.input_shape) for d in streams) <= MOST_STREAMED_BYTES


def _equal_files(samples: Sequence[_Sample]) -> Iterator[list[int]]:
    """Groups of positions, ascending, whose files are equal; files that are gone are left out.

    Whole files are read only where length, beginning and end are equal.
    """
    groups: Iterable[list[int]] = [list(range(len(samples)))]
    for key in (_length, _ends, _digest):
        groups = [same for group in groups for same in _divide(group, samples, key)]
    yield from groups


def _divide(
    group: Sequence[int], samples: Sequence[_Sample], key: Callable[[Path], object]
) -> list[list[int]]:
    """Return the parts of a group, of two samples and more, whose files have one key."""
    parts: dict[object, list[int]] = {}
    for i in group:
        with contextlib.suppress(OSError):
            parts.setdefault(key(samples[i].file), []).append(i)
    return [part for part in parts.values() if len(part) > 1]


def _length(file: Path) -> int:
    return file.stat().st_size


def _ends(file: Path) -> bytes:
    with file.open("rb") as stream:
        begins = stream.read(_END)
        stream.seek(-min(_END, len(begins)), os.SEEK_END)
        return begins + stream.read()


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _copies(groups: Sequence[Sequence[int]], samples: Sequence[_Sample]) -> Iterator[_Pair]:
    """Each sample of a group with the first before it of each part, and of another class."""
    for group in groups:
        firsts: dict[str, int] = {}
        labelled: dict[int, int] = {}
        for i in group:
            sample = samples[i]
            yield from (_Pair(i, first) for first in firsts.values())
            firsts.setdefault(sample.part, i)
            if sample.label != UNKNOWN:
                yield from (
                    _Pair(i, first) for label, first in labelled.items() if label != sample.label
                )
                labelled.setdefault(sample.label, i)


def _near(
    parts: Mapping[str, Dataset],
    samples: Sequence[_Sample],
    groups: Sequence[Sequence[int]],
    progress: Observer,
) -> Iterator[_Pair]:
    """Each sample with the first before it of each part, and of another class, that is near but not
    equal."""
    thumbnails = torch.cat([_thumbnails(dataset, progress) for dataset in parts.values()])
    content = np.arange(len(samples))
    for group in groups:
        content[group] = group[0]
    labels = np.array([sample.label for sample in samples])
    part = np.repeat(np.arange(len(parts)), [len(dataset) for dataset in parts.values()])
    for start in range(0, len(samples), _CHUNK):
        stop = min(start + _CHUNK, len(samples))
        alike = (thumbnails[start:stop] @ thumbnails[:stop].T >= NEAR).nonzero().numpy()
        copy, original = alike[:, 0] + start, alike[:, 1]
        new = (original < copy) & (content[original] != content[copy])
        copy, original = copy[new], original[new]
        other = (labels[copy] != labels[original]) & (labels[original] != UNKNOWN)
        other &= labels[copy] != UNKNOWN
        for kind in (part[original], np.where(other, len(parts), -1)):
            # Rows are in order, so that the first of each kind is the first before the sample.
            _, first = np.unique(np.stack([copy, kind]), axis=1, return_index=True)
            yield from (_Pair(int(copy[k]), int(original[k])) for k in first if kind[k] >= 0)


def _thumbnails(dataset: Dataset, progress: Observer) -> Tensor:
    """Return (n, SIDE * SIDE) of length 1; zeros for flat images and for those that cannot be
    read.
    """
    out = torch.zeros(len(dataset), SIDE * SIDE)
    progress(Progress("compare", 0, len(dataset)))
    for start in range(0, len(dataset), _CHUNK):
        rows = list(range(start, min(start + _CHUNK, len(dataset))))
        images, mask = readable(dataset, rows)
        progress(Progress("compare", rows[-1] + 1, len(dataset)))
        if not bool(mask.any()):
            continue
        weights = (
            _LUMA
            if images.shape[1] == len(_LUMA)
            else torch.full((images.shape[1],), 1 / images.shape[1])
        )
        grey = torch.einsum("nchw,c->nhw", images.float(), weights)[:, None]
        small = F.adaptive_avg_pool2d(grey, SIDE).flatten(1)
        differences = small - small.mean(dim=1, keepdim=True)
        is_not_flat = differences.std(dim=1, keepdim=True) >= _FLAT
        out[np.flatnonzero(mask.numpy()) + start] = F.normalize(differences) * is_not_flat
    return out


def _note(
    pairs: Iterable[_Pair], samples: Sequence[_Sample], noun: str, how: str = ""
) -> Iterator[str]:
    """Sentences on copies across parts, within a part, and under two classes.

    noun: what messages call one copy. how: a clause after the noun.
    """

    def copies_of(count: int) -> str:
        return f"is a {noun}{how}" if count == 1 else f"are {format_count(2, noun)[2:]}{how}"

    by_parts: dict[tuple[str, str], dict[int, int]] = {}
    other: dict[int, int] = {}
    for copy, original in pairs:
        second, first = samples[copy], samples[original]
        by_parts.setdefault((second.part, first.part), {}).setdefault(copy, original)
        if UNKNOWN not in (first.label, second.label) and first.label != second.label:
            other.setdefault(copy, original)
    for (second_part, first_part), copies in by_parts.items():
        count, inside = len(copies), second_part == first_part
        originals = "another of it" if count == 1 else "others of it"
        if not inside:
            originals = f"{'an image' if count == 1 else 'images'} of the {first_part}"
        yield (
            f"{format_count(count, 'image')} of the {second_part} {copies_of(count)} of "
            f"{originals}, such as {_example(copies, samples)}"
            f"{'' if inside else ': figures come out too good'}. Keep one of each; "
            "`data.duplicates` off looks for none."
        )
    if other:
        yield (
            f"{format_count(len(other), 'image')} {copies_of(len(other))} of "
            f"{'an image' if len(other) == 1 else 'images'} of another class, such as "
            f"{_example(other, samples)}: look at their labels."
        )


def _example(copies: Mapping[int, int], samples: Sequence[_Sample]) -> str:
    copy, original = next(iter(copies.items()))
    return f"{samples[copy].id!r} of {samples[original].id!r}"
