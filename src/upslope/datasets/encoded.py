"""Encoded images: decoded once where all fit in memory, at each reading where they do not."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import PIL
import torch
from pydantic import Field
from torch import Tensor

from upslope.counts import format_count
from upslope.datasets.arrays import ArrayDataset, Labels, build_dataset, known_targets
from upslope.datasets.base import Dataset, place_of
from upslope.datasets.image_form import size_advice
from upslope.datasets.paths import cache_folder, list_ids
from upslope.decoders import EncodedImage, decode_in_processes
from upslope.errors import DataError, RunError
from upslope.files import save_array, write_atomically
from upslope.images import Form, Mode, Pixels, decode, without_advice
from upslope.memory import memory_errors, raise_memory_error
from upslope.progress import Observer, Progress
from upslope.threads import Threads

ModeOption = Annotated[
    Mode | None, Field(description="RGB or L (grey); as the first image, if not given")
]
SizeOption = Annotated[
    int | None,
    Field(ge=1, description="bring images to size x size; all of the first's size, if not given"),
]
OnError = Annotated[
    Literal["raise", "skip"],
    Field(description="what a corrupt image does: end the work, or be left out with a warning"),
]
Memory = Annotated[
    float,
    Field(ge=0, description="GiB of decoded images to hold at most; decode at each reading above"),
]
Decoders = Annotated[
    int,
    Field(ge=0, description="processes to decode in, where images are streamed; 0: in threads"),
]
_DIGEST = hashlib.sha256().digest_size
_CHUNK, _SMALL = 256, 8192
_MANY = 10_000  # images that take seconds to decode


@dataclass(frozen=True)
class Files:
    """position -> a file of `folder`. A class, unlike a closure, travels to worker processes."""

    folder: Path
    ids: Sequence[str]

    def __call__(self, position: int) -> Path:
        """Return the path of the sample at this position."""
        return self.folder / self.ids[position]


@dataclass(frozen=True)
class RemainingSources:
    """position -> what `source` has for the sample that is there after others were left out."""

    source: Callable[[int], bytes | Path]
    positions: Labels

    def __call__(self, position: int) -> bytes | Path:
        """Return the bytes or the path of that sample."""
        return self.source(int(self.positions[position]))


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """Images decoded when they are asked for, several at a time, in threads or processes.

    source: position -> the encoded bytes or the file. labels: (n,), `UNKNOWN` where nobody knows.
    mean, std: statistics that are known, as those of `ArrayDataset`. place: what messages call the
    data set, the path that the user gave and the split; `name`, if not given.
    """

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    source: Callable[[int], bytes | Path]
    labels: Labels
    form: Form
    input_shape: tuple[int, ...]
    resident: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    decoders: int = 0
    place: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, c, h, w) uint8.

        Raises:
            DataError: an image that cannot be decoded, by its name.
            RunError: so many do not fit into memory.
        """
        with memory_errors():
            out = np.empty((len(indices), *self.input_shape), dtype=np.uint8)
        positions = list(indices)
        if self.decoders:
            files = [self._named_source(position) for position in positions]
            pixel_arrays = decode_in_processes(files, self.form, self.decoders)
            for k, (pixels, (_, name)) in enumerate(zip(pixel_arrays, files, strict=True)):
                out[k] = self._of_shape(pixels, name)
            return torch.from_numpy(out)

        def read(k: int) -> None:
            out[k] = self.image(positions[k])

        for _ in run_for_each(read, len(positions), self.threads()) if positions else ():
            pass
        return torch.from_numpy(out)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n,) int64. Raises DataError for a sample without a label."""
        return known_targets(self.labels, self.ids, indices)

    def threads(self) -> int:
        """Return how many threads decode faster than one.

        Under a few kilobytes an image, Python's share of the decoding, which runs in one thread at
        a time, outweighs Pillow's: more threads than one then make it slower.
        """
        try:
            source = self.source(0)
            size = source.stat().st_size if isinstance(source, Path) else len(source)
        except (OSError, DataError):  # decoding it tells of it, by name
            size = _SMALL
        return 1 if size < _SMALL else cpu_count() or 1

    def image(self, position: int) -> Pixels:
        """Return (c, h, w) uint8. Raises DataError: it cannot be decoded, or is of another size."""
        source, name = self._named_source(position)
        return self._of_shape(decode(source, name, self.form), name)

    def _named_source(self, position: int) -> EncodedImage:
        source = self.source(position)
        name = (
            str(source) if isinstance(source, Path) else f"{self.ids[position]} of {place_of(self)}"
        )
        return source, name

    def _of_shape(self, pixels: Pixels, name: str) -> Pixels:
        if pixels.shape != self.input_shape:
            raise DataError(
                f"Expected {name} to be of shape (c, h, w) = {self.input_shape}, as the first "
                f"image, but got {pixels.shape}. {size_advice(self.form)}"
            )
        return pixels


def materialise(
    dataset: EncodedDataset, on_error: str, memory: float, progress: Observer, digest: str = ""
) -> ArrayDataset | EncodedDataset:
    """Return the data set with all images in memory where `memory` GiB hold them, else as it is.

    digest: of the files' content; with it, many decoded images are kept in the user's cache.

    With `on_error="skip"` the images that cannot be decoded are left out, with one warning that
    counts them; a streamed set is decoded once through to find them.

    Raises:
        DataError: with `on_error="raise"`, an image that cannot be decoded, if all are held.
    """
    fits = len(dataset) * math.prod(dataset.input_shape) <= memory * 2**30
    skip = on_error == "skip"
    if (not fits and not skip) or not len(dataset):
        return dataset
    kept_in = None
    if fits and digest and len(dataset) >= _MANY:
        what = f"with digest {digest} {dataset.form} {dataset.input_shape} Pillow {PIL.__version__}"
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        kept_in = cache_folder() / f"decoded-{key}.npy"
        cache = _read_cache(kept_in, (len(dataset), *dataset.input_shape))
        if cache is not None:
            return build_dataset(
                dataset.name, cache, dataset.labels, dataset.classes,
                source=place_of(dataset), ids=dataset.ids,
            )  # fmt: skip
    out = np.empty((len(dataset) if fits else 0, *dataset.input_shape), dtype=np.uint8)
    errors: dict[int, DataError] = {}

    def read(i: int) -> None:
        try:
            pixels = dataset.image(i)
        except DataError as error:
            if not skip:
                raise
            errors[i] = error
        else:
            if fits:
                out[i] = pixels

    progress(Progress("read", 0, len(dataset)))
    for count in run_for_each(read, len(dataset), dataset.threads()):
        progress(Progress("read", count, len(dataset)))
    if kept_in is not None and not errors:
        try:
            write_atomically(kept_in, lambda to: _save(to, out))
        except RunError as error:  # a cache that cannot be written saves no time
            warnings.warn(
                f"The decoded images are not kept for the next time: {error}", stacklevel=2
            )
    positions = np.array([i for i in range(len(dataset)) if i not in errors], dtype=np.int64)
    if errors:
        warnings.warn(
            left_out_text(dataset, errors),
            stacklevel=2,
        )
        out = out[positions] if fits else out
    ids = tuple(dataset.ids[i] for i in positions)
    labels = dataset.labels[positions]
    if fits:
        return build_dataset(
            dataset.name, out, labels, dataset.classes, source=place_of(dataset), ids=ids
        )
    return replace(
        dataset, ids=ids, labels=labels, source=RemainingSources(dataset.source, positions)
    )


def left_out_text(dataset: Dataset, errors: Mapping[int, DataError], noun: str = "image") -> str:
    """Return the sentence on samples that cannot be used: how many, which, and the first's fault.

    errors: position -> what is wrong. noun: of one sample.
    """
    places = sorted(errors)
    return (
        f"Left out {len(errors):,} of {format_count(len(dataset), noun)} of {place_of(dataset)}, "
        f"which cannot be used: {list_ids([dataset.ids[i] for i in places])}. The first: "
        f"{without_advice(errors[places[0]])}"
    )


def _read_cache(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return what an earlier opening decoded; None where there is nothing, or nothing whole."""
    if not path.is_file():
        return None
    try:
        # Mapped first: a damaged header may ask for more memory than there is.
        cache_pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        sound = cache_pixels.shape == shape and cache_pixels.dtype == np.uint8
        pixels: Pixels = np.array(cache_pixels) if sound else np.empty(0, dtype=np.uint8)
        with path.open("rb") as file:
            file.seek(-_DIGEST, os.SEEK_END)
            sound &= file.read() == hashlib.sha256(pixels.data).digest()
    except Exception as error:  # NumPy's reader fails in any way there is on a damaged header
        raise_memory_error(error, of_file=True)
        sound = False
    if sound:
        return pixels
    warnings.warn(
        f"{path}, which holds decoded images, is damaged: they are decoded again.", stacklevel=2
    )
    return None


def _save(path: Path, pixels: Pixels) -> None:
    with path.open("wb") as file:
        save_array(file, pixels)
        file.write(
            hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        )  # NumPy reads no further


def run_for_each(work: Callable[[int], None], count: int, threads: int) -> Iterator[int]:
    """Call work(0) to work(count - 1), in threads if more than one; yields the number done."""
    with Threads(threads, "upslope-decode") as pool:
        for start in range(0, count, _CHUNK):
            chunk = range(start, min(start + _CHUNK, count))
            for _ in pool.map(work, chunk) if threads > 1 else map(work, chunk):
                pass
            yield chunk.stop
