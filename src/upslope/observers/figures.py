"""The figures of a run, read from its progress: what all observers write."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from upslope.errors import first_line, warn_user
from upslope.progress import Observer, Progress

Write = Callable[[str, int, Mapping[str, float]], None]
"""Called with (run, labels used, name -> figure) once per cycle."""

STEPS_TO_TIME = ("train", "evaluate", "fit", "score", "select")
"""Phases whose seconds are figures, too."""


class Figures:
    """An observer that collects figures and hands them to `write` at the end of each cycle.

    Names begin with `test/` and `train/`, or are `seconds/` and a phase. Figures that are not
    finite are left out. The run is "<strategy>/seed-<s>" in a comparison, else empty. What `write`
    raises ends no run: it is told by a warning, and tried again at the end of the next cycle.

    place: where `write` writes to, for that warning.
    """

    def __init__(self, write: Write, place: str = "their place") -> None:
        self._write, self._place = write, place
        self._unwritten: deque[tuple[str, int, Mapping[str, float]]] = deque()
        self._is_told = False
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
        self._unwritten.append((progress.run, progress.labelled, finite))
        self.flush()

    def flush(self) -> None:
        """Write what is not written yet, as far as that succeeds."""
        while self._unwritten:
            try:
                self._write(*self._unwritten[0])
            except Exception as error:  # whatever a library, a disk or a server may raise
                if not self._is_told:
                    self._is_told = True
                    warn_user(
                        f"Figures cannot be written to {self._place}: {type(error).__name__}: "
                        f"{first_line(error)}. The run goes on, and they are tried again with "
                        "those of the next cycle; its ledger has them all.",
                        UserWarning,
                    )
                return
            self._unwritten.popleft()
            self._is_told = False


def together(*observers: Observer) -> Observer:
    """Return an observer that tells several, in order."""

    def tell(progress: Progress) -> None:
        for observer in observers:
            observer(progress)

    return tell
