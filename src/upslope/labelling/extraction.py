"""Features of all samples of a project, taken in chunks, and kept in its folder.

    for features in take_features(folder, samples, pause): ...       # the quick ones first

What was taken is taken again where a file has changed, or where it cannot be read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upslope.errors import DataError
from upslope.files import write_atomically
from upslope.labelling.features import (
    NETWORK,
    NETWORK_SIDE,
    SIDE,
    STATISTICS,
    Floats,
    image_statistics,
    network_features,
    row_features,
    standardise,
)
from upslope.labelling.samples import FolderImages, ImageSamples, Samples, TableRows
from upslope.models.efficientnet import PACKAGE

_CHUNK = 64  # images between two calls of `pause`


@dataclass(frozen=True)
class Extractor:
    """A kind of image features. side: pixels along an edge. extract: (n, 3, side, side) uint8 to
    (n, d)."""

    method: str
    side: int
    extract: Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class SampleFeatures:
    """values: (n, d), each feature with mean 0 and deviation 1; NaN rows where a sample cannot be
    read. method: what they are, in words."""

    values: Floats
    method: str


def take_features(
    folder: Path, samples: Samples, pause: Callable[[], None] = lambda: None
) -> Iterator[SampleFeatures]:
    """Yield features of all samples: of images once more when the slower kinds are there too.

    pause: is called now and then while features are taken.
    """
    if isinstance(samples, TableRows):
        values, method = row_features(samples.cells)
        yield SampleFeatures(_standardised(values), method)
        return
    parts: list[Floats] = []
    methods: list[str] = []
    for extractor in extractors():
        # All kinds together are better than the best alone (docs/labelling.md).
        parts.append(_image_features(folder, samples, extractor, pause))
        methods.append(extractor.method)
        values = _standardised(np.concatenate(parts, axis=1))
        yield SampleFeatures(values, ", with ".join(methods))


def extractors() -> list[Extractor]:
    """Return the kinds of image features that there are here, the quickest first."""
    quick = [Extractor(STATISTICS, SIDE, image_statistics)]
    if importlib.util.find_spec(PACKAGE) is None:
        return quick
    return [*quick, Extractor(NETWORK, NETWORK_SIDE, network_features(NETWORK_SIDE))]


def _standardised(values: Floats) -> Floats:
    readable = np.isfinite(values).all(axis=1)
    scaled = np.full(values.shape, np.nan, dtype=np.float32)
    if readable.any():
        scaled[readable] = standardise(values[readable])
    return scaled


def _image_features(
    folder: Path, samples: ImageSamples, extractor: Extractor, pause: Callable[[], None]
) -> Floats:
    """(n, d), NaN where an image cannot be decoded; from the cache where nothing changed."""
    cache = folder / f"features-{_digest(samples, extractor)}.npy"
    if cache.is_file():
        try:
            return np.asarray(np.load(cache, allow_pickle=False), dtype=np.float32)
        except (OSError, ValueError, EOFError):
            cache.unlink(missing_ok=True)  # torn or foreign: taken again
    parts = []
    for chunk in _chunks(samples, extractor):
        parts.append(chunk)
        pause()
    width = next((part.shape[1] for part in parts if part.shape[1]), 1)
    rows = [p if p.shape[1] else np.full((len(p), width), np.nan) for p in parts]
    values = np.concatenate(rows).astype(np.float32)
    write_atomically(cache, lambda path: _save(path, values))
    return values


def _chunks(samples: ImageSamples, extractor: Extractor) -> Iterator[Floats]:
    for start in range(0, len(samples.ids), _CHUNK):
        positions = range(start, min(start + _CHUNK, len(samples.ids)))
        pixels, readable = [], []
        for position in positions:
            try:
                pixels.append(samples.pixels(position, extractor.side))
                readable.append(True)
            except DataError:
                readable.append(False)
        if not pixels:
            yield np.zeros((len(positions), 0), dtype=np.float32)
            continue
        features = extractor.extract(np.stack(pixels))
        values = np.full((len(positions), features.shape[1]), np.nan, dtype=np.float32)
        values[readable] = features
        yield values


def _digest(samples: ImageSamples, extractor: Extractor) -> str:
    """Of what the features depend on: method, ids, and the files' sizes and times."""
    digest = hashlib.sha256(f"{extractor.method}/{extractor.side}".encode())
    for id_ in samples.ids:
        digest.update(id_.encode("utf-8", "surrogatepass") + b"\0")
        if isinstance(samples, FolderImages):
            status = (samples.root / id_).stat()
            digest.update(f"{status.st_size}/{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _save(path: Path, values: Floats) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
