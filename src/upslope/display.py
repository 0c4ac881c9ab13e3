"""Progress of long work on the screen: bars in a terminal, a line now and then elsewhere.

The command line shows it always (`watching`); `Experiment` and `compare` show it to whoever sits
before a terminal or a notebook (`watching_unless_observed`), and to nobody else.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.text import Text

from upslope.counts import format_count
from upslope.errors import RunError
from upslope.file_limits import size_advice
from upslope.progress import Observer, Progress, no_progress

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, and those that turn the direction of what follows."""

UNREAD_EXIT_CODE = 141
"""Of a command whose output nobody reads any more: 128 + SIGPIPE, as the signal itself has it."""


class SafeConsole(Console):
    """Shows control characters of a text as their codes, where a terminal would obey them.

    Names of classes, files and people come from whoever made the data. One with an escape sequence
    could clear the screen, change its title, or hide what stands before it. Colours and bars are
    the console's own, and are added after this.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as rich does.

        Where standard error cannot be written, as on a full disk, the work goes on untold.

        Raises:
            RunError: standard output cannot be written.
            SystemExit: nobody reads it any more.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            drop_output(self.file)
            if not self.stderr:
                raise unwritable_output(error) from error

    def on_broken_pipe(self) -> None:
        """End the command where nobody reads its results any more, as `head` that has its lines.

        Where nobody reads standard error, the work goes on untold.
        """
        drop_output(self.file)
        if not self.stderr:
            raise SystemExit(UNREAD_EXIT_CODE)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text in its style, without a command in it, so that its width is right."""
        return super().render_str(_COMMANDS.sub(_code, text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the pieces of what is printed, without a command among them."""
        for segment in super().render(renderable, options):
            if segment.control is None and _COMMANDS.search(segment.text):
                yield Segment(_COMMANDS.sub(_code, segment.text), segment.style)
            else:
                yield segment


def drop_output(stream: IO[str]) -> None:
    """Let what a stream still holds go nowhere: Python would write it again as it ends, and fail
    with a traceback."""
    with suppress(OSError, ValueError):  # a stream of no file, such as that of a notebook
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, stream.fileno())
        os.close(number)


def unwritable_output(error: OSError) -> RunError:
    """Return the error of a command that cannot print what it has to say."""
    fixes = ["Free some space", size_advice(), "let it print to another file"]
    return RunError(
        f"Expected to be able to write what the command prints but got: {error}. "
        f"{', or '.join(filter(None, fixes))}; what it had recorded before is kept."
    )


def _code(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
"""Where progress, warnings and errors go."""

UNITS = {
    "read": "images",
    "simulate": "volumes",
    "compare": "images",
    "features": "samples",
    "train": "batches",
    "evaluate": "samples",
    "score": "samples",
    "shards": "shards",
    "fit": "steps",
}
_VERBS = {"shards": "score"}
"""What is done in phases that are not named by it."""
_WHOLE_PHASES = ("score", "shards")
"""Phases that are all of the work, where they belong to no run."""
QUIET_SECONDS = 10.0
"""Without a terminal, no more than one line about finished cycles in this time."""
REMINDER_SECONDS = 30.0
"""Without a terminal, a line about what is being done after so long without any."""
_LOOK_SECONDS = 1.0


@contextmanager
def watching(runs: int) -> Iterator[Observer]:
    """An observer for so many runs, on the terminal or as plain lines."""
    if err.is_terminal:
        with _Bars(runs) as bars:
            yield bars
    else:
        with _reminding(Lines(runs, lambda line: err.print(line, markup=False))) as lines:
            yield lines


@contextmanager
def watching_unless_observed(
    observer: Observer | None, runs: int, *, progress: bool
) -> Iterator[Observer]:
    """The observer that was given, or one for the terminal or notebook that this runs in.

    progress: False for none. Neither a terminal nor a notebook: none.
    """
    if observer is not None:
        yield observer
    elif progress and _in_notebook():
        with _reminding(Lines(runs, print)) as lines:
            yield lines
    elif progress and err.is_terminal:
        with _Bars(runs) as bars:
            yield bars
    else:
        yield no_progress


def _in_notebook() -> bool:
    """Return whether a kernel of Jupyter runs this: nothing else defines this shell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class Share:
    """How much of all runs is done, from the reports of each."""

    def __init__(self, runs: int) -> None:
        self.runs = max(1, runs)
        self._share_done: dict[str, float] = {}

    def update(self, progress: Progress) -> float:
        """Runs done, with fractions, after this report."""
        if progress.phase == "run":
            self.runs = max(1, progress.total)
            if progress.run:
                self._share_done[progress.run] = 1.0
        if progress.phase == "cycle" and progress.cycles:
            self._share_done[progress.run] = (progress.cycle + 1) / progress.cycles
        if (
            progress.phase in _WHOLE_PHASES
            and not (progress.run or progress.cycles)
            and progress.total
        ):
            self._share_done[progress.run] = progress.done / progress.total
        return sum(self._share_done.values())


class Lines:
    """Plain lines: what was reached, how far, how long still; and what takes long meanwhile."""

    def __init__(
        self,
        runs: int,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._write, self._clock = Share(runs), write, clock
        self._last = self._last_cycle = clock()
        self._share_done = 0.0
        self._first: tuple[float, float] | None = None  # (time, runs done) at the first cycle
        self._doing: Progress | None = None
        self._lock = Lock()  # `remind` is called from another thread

    def __call__(self, progress: Progress) -> None:
        """Write a line where a cycle is finished and the last such line is long enough ago, or
        where there was no line for long."""
        with self._lock:
            self._share_done = self._share.update(progress)
            self._doing = progress
            now = self._clock()
            if progress.phase == "cycle" and self._first is None:
                self._first = now, self._share_done
            if progress.phase == "cycle" and now - self._last_cycle >= QUIET_SECONDS:
                self._last = self._last_cycle = now
                self._write(self._progress_words(progress, now))
        self.remind()

    def remind(self) -> None:
        """Write what is being done, where there was no line for long."""
        with self._lock:
            now = self._clock()
            if self._doing is None or now - self._last < REMINDER_SECONDS:
                return
            self._last = now
            self._write(f"{self._percent()}  {_doing_words(self._doing)}")

    def _progress_words(self, progress: Progress, now: float) -> str:
        return f"{self._percent()}  {about(progress)}{self._time_left(now)}"

    def _time_left(self, now: float) -> str:
        """Say how long still, by what was done since the first cycle: before it, data is read, and
        a run that goes on has cycles of earlier calls."""
        start, before = self._first or (now, self._share_done)
        progress_share = self._share_done - before
        if progress_share <= 0:
            return ""
        seconds = (now - start) / progress_share * (self._share.runs - self._share_done)
        return f"  about {_clock_words(seconds)} left"

    def _percent(self) -> str:
        return f"{100 * self._share_done / self._share.runs:3.0f}%"


@contextmanager
def _reminding(lines: Lines) -> Iterator[Lines]:
    """Let a thread call `remind`: some work, such as a selection, reports nothing for long."""
    end_event = Event()

    def remind() -> None:
        while not end_event.wait(_LOOK_SECONDS):
            lines.remind()

    thread = Thread(target=remind, name="upslope-reminder", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        end_event.set()
        thread.join()


class _Bars:
    """Two bars: all runs, and what the present one is doing, with its rate."""

    def __init__(self, runs: int) -> None:
        self._share = Share(runs)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._all = self._bars.add_task("runs", total=runs, unit="")
        self._now = self._bars.add_task("preparing", total=None, unit="")
        self._doing: tuple[str, str, int] | None = None

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        progress_share = self._share.update(progress)
        if progress.phase in ("cycle", "run"):
            self._bars.update(self._all, completed=round(progress_share, 2), total=self._share.runs)
        if progress.phase == "cycle":
            self._bars.console.print(about(progress), style="dim", markup=False)
        if progress.phase not in UNITS:
            return
        doing = (progress.phase, progress.run, progress.cycle)
        if doing != self._doing:
            self._doing = doing
            where = (
                f"{progress.run}, {format_count(progress.labelled, 'label')}: "
                if progress.run
                else ""
            )
            self._bars.reset(
                self._now,
                total=progress.total,
                description=where + _VERBS.get(progress.phase, progress.phase),
                unit=UNITS[progress.phase],
            )
        self._bars.update(self._now, completed=progress.done)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the rate of a bar, such as `1,234 samples/s`."""
        if not task.speed or not task.fields.get("unit"):
            return Text("")
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s", style="progress.data.speed")


def about(progress: Progress) -> str:
    """`margin/seed-0  cycle 3 of 7  280 labels  accuracy 91.2%`."""
    cycle = f"cycle {progress.cycle + 1} of {progress.cycles}"
    train = _figures(progress.train, "training ")
    figures = _figures(progress.metrics, "")
    if not progress.fitted:
        figures.append(f"not fitted: {', '.join(train)}")
    elif not figures:
        figures = train
    return "  ".join(
        [progress.run, cycle, format_count(progress.labelled, "label"), *figures]
    ).strip()


def _doing_words(progress: Progress) -> str:
    """`margin/seed-0  cycle 3 of 7  280 labels: train 1,234 of 9,000 batches`."""
    cycle = f"cycle {progress.cycle + 1} of {progress.cycles}" if progress.cycles else ""
    labels = format_count(progress.labelled, "label") if progress.labelled else ""
    where = "  ".join(part for part in (progress.run, cycle, labels) if part)
    count = f" {progress.done:,} of {progress.total:,} {UNITS.get(progress.phase, '')}".rstrip()
    verb = _VERBS.get(progress.phase, progress.phase)
    return f"{where}: {verb}{count}" if where else f"{verb}{count}"


def _figures(metrics: Mapping[str, float], before: str) -> list[str]:
    return [
        f"{before}{name} {100 * value:.1f}%"
        for name, value in metrics.items()
        if name in ("accuracy", "miou", "map", "r2")
    ]


def _clock_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
