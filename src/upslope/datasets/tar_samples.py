"""Samples of a WebDataset: the members of its shards by key, and where the image of each lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.counts import format_count
from upslope.datasets.layout import image_suffixes, leave
from upslope.datasets.left_out import LeftOut
from upslope.datasets.tar_index import Member, Stamp, read_content, read_members, stamp_of
from upslope.errors import DataError
from upslope.progress import Observer, Progress

LABELS = ("cls", "json", "txt")
"""Extensions of labels, in the order in which they are looked for."""


@dataclass(frozen=True)
class TarSamples:
    """Samples of all shards in order. shard: (n,) positions of their shards. members: extension ->
    where its content lies, of images and labels alone. stamps: of the shards when they were
    indexed."""

    paths: Sequence[Path]
    ids: list[str]
    shard: list[int]
    members: list[dict[str, Member]]
    stamps: list[Stamp]

    def ids_of(self, positions: NDArray[np.int64]) -> tuple[str, ...]:
        """Return the ids of the samples at these positions."""
        return tuple(self.ids[i] for i in positions.tolist())

    def name_of(self, position: int) -> str:
        """Return the name of a sample in messages: its id and its shard."""
        return f"{self.ids[position]!r} of {self.paths[self.shard[position]]}"


@dataclass(frozen=True, eq=False)
class TarImages:
    """position -> the encoded bytes of an image, read out of its shard.

    stamps: of the shards when they were indexed.
    """

    paths: Sequence[Path]
    stamps: Sequence[Stamp]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def __call__(self, position: int) -> bytes:
        """Return the bytes of one image.

        Raises:
            DataError: the shard cannot be read.
            RunError: it was written again since it was indexed.
        """
        offset, size = int(self.offset[position]), int(self.size[position])
        shard = self.shard[position]
        member = Member(f"the image at byte {offset:,}", offset, size)
        return read_content(self.paths[shard], member, self.stamps[shard])

    def part(self, positions: NDArray[np.int64]) -> TarImages:
        """Return the images at these positions."""
        return TarImages(
            self.paths,
            self.stamps,
            self.shard[positions],
            self.offset[positions],
            self.size[positions],
        )


def read_samples(paths: Sequence[Path], left_out: LeftOut, progress: Observer) -> TarSamples:
    """Return the samples of all shards: their members grouped by key.

    paths: the shards. left_out: counts members that belong to no sample.

    Raises:
        DataError: a key in two shards, or a key with one extension twice; what `read_members` does.
    """
    samples = TarSamples(paths, [], [], [], [])
    position: dict[str, int] = {}
    for number, path in enumerate(paths):
        progress(Progress("read", number, len(paths)))
        samples.stamps.append(stamp_of(path))
        for member in read_members(path):
            before, slash, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if not stem or not dot:
                leave(name, f"{path.name}: {member.name}", left_out)
                continue
            key, extension = before + slash + stem, extension.lower()
            at = position.setdefault(key, len(samples.ids))
            if at == len(samples.ids):
                samples.ids.append(key)
                samples.shard.append(number)
                samples.members.append({})
            elif samples.shard[at] != number:
                raise DataError(
                    f"Expected a key for each sample of its own but {key!r} is in "
                    f"{paths[samples.shard[at]]} and in {path}. Rename one, or leave one "
                    "shard out with `data.shards`."
                )
            if extension in samples.members[at]:
                raise DataError(
                    f"Expected each member of {path} once but {key}.{extension} is there twice. "
                    "Remove one."
                )
            samples.members[at][extension] = member._replace(name="")
    progress(Progress("read", len(paths), len(paths)))
    if not samples.ids:
        raise DataError(
            f"Expected samples, such as 0001.jpg with 0001.cls, in {paths[0]}"
            f"{' and the shards beside it' if len(paths) > 1 else ''} but there are none."
        )
    return samples


def locate_images(
    samples: TarSamples, option: str | None, on_error: str
) -> tuple[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]], tuple[str, ...]]:
    """Return ((shard, offset, size) of each image, notes); size -1 where a sample has none.

    Raises:
        DataError: a sample with several images; with `on_error="raise"`, one without.
    """
    offset = np.zeros(len(samples.ids), dtype=np.int64)
    size = np.full(len(samples.ids), -1, dtype=np.int64)
    others: Counter[str] = Counter()
    suffixes = image_suffixes()
    for i, members in enumerate(samples.members):
        if option:
            extensions = [e for e in members if e == option.lower().lstrip(".")]
        else:
            extensions = [e for e in members if f".{e}" in suffixes]
        if len(extensions) > 1:
            raise DataError(
                f"Expected one image in the sample {samples.name_of(i)} but got "
                f"{', '.join(sorted(extensions))}. Say which is meant with `data.image`."
            )
        others.update(members.keys() - {*extensions, *LABELS})
        for extension in extensions:
            offset[i], size[i] = members[extension].offset, members[extension].size
    notes = tuple(
        f"Left out {format_count(count, 'member')} with the extension .{extension}."
        for extension, count in sorted(others.items())
    )
    without = np.flatnonzero(size < 0)
    if (len(without) and on_error != "skip") or len(without) == len(size):
        wanted_words = f".{option.lstrip('.')}" if option else ", ".join(sorted(suffixes))
        raise DataError(
            f"Expected an image ({wanted_words}) in every sample but "
            f"{format_count(len(without), 'sample has', 'samples have')} none, first "
            f"{samples.name_of(int(without[0]))}, which has "
            f"{', '.join(f'.{e}' for e in sorted(samples.members[without[0]]))}. Name the "
            "extension with `data.image`, or leave such samples out: `experiment.on_corrupt=skip`."
        )
    if len(without):
        notes += (
            f"Left out {format_count(len(without), 'sample')} without an image, first "
            f"{samples.name_of(int(without[0]))}.",
        )
    return (np.array(samples.shard, dtype=np.int32), offset, size), notes
