"""The process that trains and ranks while people label: `python -m upslope.labelling.trainer`.

It reads the project, and writes nothing there but a cache of features. A line on standard input
says that there are new answers; it ends with its parent, when standard input ends. On standard
output it writes one `Ranking` per line, as JSON, whenever it has a new one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from upslope.errors import UpslopeError
from upslope.labelling.advice import advise
from upslope.labelling.copies import find_copies
from upslope.labelling.doubt import doubtful_labels
from upslope.labelling.extraction import take_features
from upslope.labelling.learner import Learner
from upslope.labelling.project import read_project
from upslope.labelling.queue import Queue
from upslope.labelling.ranking import Ranking
from upslope.labelling.samples import samples_of
from upslope.memory import take_buffers

_NICE = 10  # the page goes first
_ADVISE_EVERY, _ADVISE_GROWTH = 25, 1.05
"""Advice takes some forty models: it is given anew after 25 answers and 5% more of them."""


class Trainer:
    """Ranks the samples of a project again whenever there are new answers.

    folder: of the project. change_event: is set when there are. out: where rankings are written.
    """

    def __init__(self, folder: Path, change_event: threading.Event, out: TextIO) -> None:
        self._folder, self._change_event, self._out = folder, change_event, out
        self._settings, _ = read_project(folder)
        settings = self._settings
        self._samples = samples_of(settings)
        self._queue = Queue(self._samples.ids, settings)
        self._learner: Learner | None = None
        self._advice: dict[str, Any] | None = None
        self._doubtful: dict[str, str] = {}
        self._copies: dict[str, str] | None = None
        self._labels_at_advice = (
            -_ADVISE_EVERY
        )  # samples with a label when the last advice was given

    def run(self) -> None:
        """Take features, the quick ones first, and rank for ever."""
        for features in take_features(self._folder, self._samples, self._rank_if_changed):
            self._learner = Learner(
                self._settings, self._samples.ids, self._queue, features.values, features.method
            )
            self._labels_at_advice = -_ADVISE_EVERY  # advice of poorer features holds no more
            self._rank()
        self._copies = find_copies(self._samples, self._rank_if_changed)
        self._rank()
        while True:
            self._change_event.wait()
            self._rank()

    def _rank_if_changed(self) -> None:
        if self._change_event.is_set():
            self._rank()

    def _rank(self) -> None:
        """Write a ranking of what is not answered yet."""
        if self._learner is None:
            return
        self._change_event.clear()  # before reading: what comes later counts for the next ranking
        _, state = read_project(self._folder)
        ranking = self._learner.rank(state)
        self._write(ranking)
        due = max(self._labels_at_advice + _ADVISE_EVERY, _ADVISE_GROWTH * self._labels_at_advice)
        if state.tally.labelled < due:
            return
        self._labels_at_advice = state.tally.labelled
        advice = advise(self._learner, state)
        if advice is not None:
            self._advice = advice.record()
        self._doubtful = doubtful_labels(self._learner, state)
        self._write(ranking)

    def _write(self, ranking: Ranking) -> None:
        """Write a ranking with what was found out beside it."""
        whole = replace(ranking, advice=self._advice, doubtful=self._doubtful, copies=self._copies)
        self._out.write(json.dumps(whole.record()) + "\n")
        self._out.flush()


def main() -> None:
    """Serve the parent until it ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no ranking
    if hasattr(os, "nice"):
        os.nice(_NICE)
    change_event = threading.Event()

    def listen() -> None:
        try:
            for _ in sys.stdin:
                change_event.set()
        finally:
            os._exit(0)  # the parent has ended, or can be heard no more

    threading.Thread(target=listen, daemon=True, name="upslope-listen").start()
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    try:
        take_buffers()
        Trainer(Path(sys.argv[1]), change_event, out).run()
    except BrokenPipeError:
        os._exit(0)  # the parent was killed: nobody reads rankings any more
    except UpslopeError as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        out.flush()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
