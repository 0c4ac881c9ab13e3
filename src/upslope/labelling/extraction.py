"""Features of all samples of a project, taken once and kept in its folder.

    for features in take_features(folder, samples, pause): ...       # the quick ones first

Features of images lie in the blocks of a `frozen.store`: what a kill leaves is whole, and a new or
changed file costs its own features alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.blocks import map_block
from upslope.errors import DataError
from upslope.files import disk_errors, make_folder
from upslope.frozen.store import FeatureStore, gather
from upslope.labelling.features import (
    NETWORK,
    NETWORK_SIDE,
    SIDE,
    STATISTICS,
    Floats,
    image_statistics,
    mean_and_deviation,
    network_features,
    row_features,
)
from upslope.labelling.samples import FolderImages, ImageSamples, Samples, TableRows
from upslope.models.efficientnet import PACKAGE

_CHUNK = 64  # images in a block, and between two calls of `pause`


@dataclass(frozen=True)
class Extractor:
    """A kind of image features. side: pixels along an edge. extract: (n, 3, side, side) uint8 to
    (n, d)."""

    method: str
    side: int
    extract: Callable[[NDArray[np.uint8]], Floats]

    @property
    def width(self) -> int:
        """Return d, the count of features of an image."""
        return int(self.extract(np.zeros((1, 3, self.side, self.side), np.uint8)).shape[1])


@dataclass(frozen=True)
class SampleFeatures:
    """values: (n, d), each feature with mean 0 and deviation 1; NaN rows where a sample cannot be
    read. method: what they are, in words. mean, deviation: (d,), those before."""

    values: Floats
    method: str
    mean: Floats
    deviation: Floats


def take_features(
    folder: Path, samples: Samples, pause: Callable[[], None] = lambda: None
) -> Iterator[SampleFeatures]:
    """Yield features of all samples: of images once more when the slower kinds are there too.

    Where the slower kinds are stored already, all kinds come at once, so that no model of fewer
    kinds is measured in a project that had better ones.

    pause: is called now and then while features are taken.

    Raises:
        RunError: a disk that is full.
    """
    if isinstance(samples, TableRows):
        values, method = row_features(samples.cells)
        yield _standardise(values, method)
        return
    parts: list[Floats] = []
    methods: list[str] = []
    kinds = extractors()
    for extractor, slower in zip(kinds, [*kinds[1:], None], strict=True):
        # All kinds together are better than the best alone (docs/labelling.md).
        parts.append(_image_features(folder, samples, extractor, pause))
        methods.append(extractor.method)
        if slower is not None:
            is_there = _open_store(folder, slower).places(_digests(samples))[:, 0] >= 0
            if is_there[np.isfinite(parts[0]).all(axis=1)].all():
                continue
        yield _standardise(np.concatenate(parts, axis=1), ", with ".join(methods))


def features_like(reference: SampleFeatures, folder: Path, samples: ImageSamples) -> Floats:
    """Return (n, d) features of other images, standardised as the reference's were.

    folder: where they are kept. NaN rows where an image cannot be read.
    """
    parts = [_image_features(folder, samples, one, lambda: None) for one in extractors()]
    raw = np.concatenate(parts, axis=1)
    values: Floats = ((raw - reference.mean) / reference.deviation).astype(np.float32)
    return values


def features_without_store(samples: ImageSamples, count: int) -> Floats:
    """Return (n, d) raw features of images, of the first `count` kinds, NaN rows where an image
    cannot be read; nothing is kept."""
    parts: list[Floats] = []
    for extractor in extractors()[:count]:
        values = np.full((len(samples.ids), extractor.width), np.nan, dtype=np.float32)
        for start in range(0, len(values), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(values)))
            readable, features = _extract(samples, extractor, positions)
            values[readable] = features
        parts.append(values)
    return np.concatenate(parts, axis=1)


def image_methods() -> list[str]:
    """Return how features of images are called that can be taken here: of the first kind, of the
    first and the second, ..."""
    names = [one.method for one in extractors()]
    return [", with ".join(names[: i + 1]) for i in range(len(names))]


def extractors() -> list[Extractor]:
    """Return the kinds of image features that there are here, the quickest first."""
    quick = [Extractor(STATISTICS, SIDE, image_statistics)]
    if importlib.util.find_spec(PACKAGE) is None:
        return quick
    return [*quick, Extractor(NETWORK, NETWORK_SIDE, network_features(NETWORK_SIDE))]


def _standardise(values: Floats, method: str) -> SampleFeatures:
    readable = np.isfinite(values).all(axis=1)
    features = np.full(values.shape, np.nan, dtype=np.float32)
    width = values.shape[1]
    mean, deviation = np.zeros(width, np.float32), np.ones(width, np.float32)
    if readable.any():
        mean, deviation = mean_and_deviation(values[readable])
        features[readable] = (values[readable] - mean) / deviation
    return SampleFeatures(features, method, mean, deviation)


def _image_features(
    folder: Path, samples: ImageSamples, extractor: Extractor, pause: Callable[[], None]
) -> Floats:
    """(n, d), NaN where an image cannot be decoded; taken where the store does not have them."""
    store = _open_store(folder, extractor)
    digests = _digests(samples)
    missing = np.flatnonzero(store.places(digests)[:, 0] < 0)
    for start in range(0, len(missing), _CHUNK):
        _take_block(store, samples, extractor, digests, missing[start : start + _CHUNK].tolist())
        pause()
    places = store.places(digests)
    there = places[:, 0] >= 0
    values = np.full((len(digests), store.width), np.nan, dtype=np.float32)
    blocks = [map_block(path, (store.width,)) for path in store.blocks]
    values[there] = gather(blocks, places[there], store.width).numpy()
    return values


def _open_store(folder: Path, extractor: Extractor) -> FeatureStore:
    """Where a project keeps its features of a kind."""
    key = hashlib.sha256(f"{extractor.method}/{extractor.side}".encode()).hexdigest()[:16]
    where = folder / "features" / key
    with disk_errors(where):
        make_folder(where)
    return FeatureStore(where, extractor.width)


def _take_block(
    store: FeatureStore,
    samples: ImageSamples,
    extractor: Extractor,
    digests: Sequence[bytes],
    positions: Sequence[int],
) -> None:
    """Store the features of those images that can be decoded."""
    readable, features = _extract(samples, extractor, positions)
    if readable:
        store.add([digests[position] for position in readable], torch.from_numpy(features))


def _extract(
    samples: ImageSamples, extractor: Extractor, positions: Sequence[int]
) -> tuple[list[int], Floats]:
    """(positions of those images that can be decoded, their features)."""
    pixels, readable = [], []
    for position in positions:
        try:
            pixels.append(samples.pixels(position, extractor.side))
        except DataError:
            continue  # told as unreadable, and tried again when the project is opened again
        readable.append(position)
    if not pixels:
        return [], np.empty((0, extractor.width), dtype=np.float32)
    return readable, extractor.extract(np.stack(pixels)).astype(np.float32)


def _digests(samples: ImageSamples) -> list[bytes]:
    """Of what the features of each image depend on: its id, and its file's size and time."""
    digests = []
    for id_ in samples.ids:
        digest = hashlib.sha256(id_.encode("utf-8", "surrogatepass") + b"\0")
        if isinstance(samples, FolderImages):
            try:
                status = (samples.root / id_).stat()
                digest.update(f"{status.st_size}/{status.st_mtime_ns}".encode())
            except OSError:  # gone since the folder was opened: told as unreadable
                digest.update(b"gone")
        digests.append(digest.digest())
    return digests
