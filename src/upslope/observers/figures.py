"""The figures of a run, read from its progress: what all observers write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from upslope.progress import Observer, Progress

Write = Callable[[str, int, Mapping[str, float]], None]
"""Called with (run, labels used, name -> figure) once per cycle."""

STEPS_TO_TIME = ("train", "evaluate", "fit", "score", "select")
"""Phases whose seconds are figures, too."""


class Figures:
    """An observer that collects figures and hands them to `write` at the end of each cycle.

    Names begin with `test/` and `train/`, or are `seconds/` and a phase. Figures that are not
    finite are left out. The run is "<strategy>/seed-<s>" in a comparison, else empty.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._began: dict[tuple[str, str], float] = {}
        self._seconds: dict[str, dict[str, float]] = {}

    def __call__(self, progress: Progress) -> None:
        """Write the figures of one report."""
        if progress.phase == "cycle":
            self._finish(progress)
        elif progress.phase in STEPS_TO_TIME:
            self._time(progress)

    def _time(self, progress: Progress) -> None:
        place = (progress.run, progress.phase)
        if progress.done == 0 or place not in self._began:
            self._began[place] = time.monotonic()
        if progress.done >= progress.total:
            time_taken = time.monotonic() - self._began.pop(place)
            seconds = self._seconds.setdefault(progress.run, {})
            seconds[progress.phase] = seconds.get(progress.phase, 0.0) + time_taken

    def _finish(self, progress: Progress) -> None:
        seconds = self._seconds.pop(progress.run, {})
        figures = {
            **{f"test/{name}": value for name, value in progress.metrics.items()},
            **{f"train/{name}": value for name, value in progress.train.items()},
            **{f"seconds/{phase}": value for phase, value in seconds.items()},
        }
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._write(progress.run, progress.labelled, finite)


def together(*observers: Observer) -> Observer:
    """Return an observer that tells several, in order."""

    def tell(progress: Progress) -> None:
        for observer in observers:
            observer(progress)

    return tell
