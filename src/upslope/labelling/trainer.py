"""The process that trains and ranks while people label: `python -m upslope.labelling.trainer`.

It reads the project, and writes nothing there but a cache of features. A line on standard input
says that there are new answers; it ends with its parent, when standard input ends. On standard
output it writes one `Ranking` per line, as JSON, whenever it has a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from upslope.errors import DataError, UpslopeError
from upslope.files import write_atomically
from upslope.labelling.features import (
    SIDE,
    STATISTICS,
    Floats,
    image_statistics,
    row_features,
    standardise,
)
from upslope.labelling.learner import Learner
from upslope.labelling.project import read_project
from upslope.labelling.queue import Queue
from upslope.labelling.samples import FolderImages, ImageSamples, Samples, TableRows, open_samples
from upslope.labelling.settings import ProjectSettings

_CHUNK = 64  # images between two looks at whether there are new answers
_NICE = 10  # the page goes first


@dataclass(frozen=True)
class Extractor:
    """A kind of image features. side: pixels along an edge. extract: (n, 3, side, side) uint8 to
    (n, d)."""

    method: str
    side: int
    extract: Callable[[np.ndarray], Floats]


class Trainer:
    """Ranks the samples of a project again whenever there are new answers.

    changed: is set when there are. out: where rankings are written.
    """

    def __init__(self, folder: Path, changed: threading.Event, out: TextIO) -> None:
        self._folder, self._changed, self._out = folder, changed, out
        self._settings: ProjectSettings
        self._settings, _ = read_project(folder)
        settings = self._settings
        self._samples: Samples = open_samples(settings.data, settings.classes, settings.target)
        self._queue = Queue(self._samples.ids, settings)
        self._learner: Learner | None = None

    def run(self) -> None:
        """Take features, the quick ones first, and rank for ever."""
        if isinstance(self._samples, TableRows):
            values, method = row_features(self._samples.cells)
            self._look_at(values, method)
        else:
            for extractor in extractors():
                self._look_at(self._image_features(self._samples, extractor), extractor.method)
        while True:
            self._changed.wait()
            self._rank()

    def _look_at(self, values: Floats, method: str) -> None:
        readable = np.isfinite(values).all(axis=1)
        scaled = np.full(values.shape, np.nan, dtype=np.float32)
        scaled[readable] = standardise(values[readable])
        self._learner = Learner(self._settings, self._samples.ids, self._queue, scaled, method)
        self._rank()

    def _rank(self) -> None:
        """Write a ranking of what is not answered yet."""
        if self._learner is None:
            return
        self._changed.clear()  # before reading: what comes later counts for the next ranking
        _, state = read_project(self._folder)
        self._out.write(json.dumps(self._learner.rank(state).record()) + "\n")
        self._out.flush()

    def _image_features(self, samples: ImageSamples, extractor: Extractor) -> Floats:
        """(n, d), NaN where an image cannot be decoded; from the cache where nothing changed."""
        cache = self._folder / f"features-{_digest(samples, extractor)}.npy"
        if cache.is_file():
            try:
                return np.asarray(np.load(cache, allow_pickle=False), dtype=np.float32)
            except (OSError, ValueError, EOFError):
                cache.unlink(missing_ok=True)  # torn or foreign: taken again
        parts = []
        for chunk in self._chunks(samples, extractor):
            parts.append(chunk)
            if self._changed.is_set():
                self._rank()
        width = next((part.shape[1] for part in parts if part.shape[1]), 1)
        rows = [p if p.shape[1] else np.full((len(p), width), np.nan) for p in parts]
        values = np.concatenate(rows).astype(np.float32)
        write_atomically(cache, lambda path: _save(path, values))
        return values

    def _chunks(self, samples: ImageSamples, extractor: Extractor) -> Iterator[Floats]:
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


def extractors() -> list[Extractor]:
    """Return the kinds of image features that there are here, the quickest first."""
    return [Extractor(STATISTICS, SIDE, image_statistics)]


def main() -> None:
    """Serve the parent until it ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no ranking
    if hasattr(os, "nice"):
        os.nice(_NICE)
    changed = threading.Event()

    def listen() -> None:
        for _ in sys.stdin:
            changed.set()
        os._exit(0)  # the parent has ended

    threading.Thread(target=listen, daemon=True, name="upslope-listen").start()
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    try:
        Trainer(Path(sys.argv[1]), changed, out).run()
    except UpslopeError as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        out.flush()
        raise SystemExit(1) from None


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


if __name__ == "__main__":
    main()
