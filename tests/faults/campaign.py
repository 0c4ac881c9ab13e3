"""All kinds of faults, and the trials of each, one after the other."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType

from tests.faults import guided, syscalls
from tests.faults.children import kill_all
from tests.faults.commands import COMMANDS, Subject
from tests.faults.flips import SUBJECT as RUN
from tests.faults.flips import FlippedRun, flip_a_bit
from tests.faults.formats import Format
from tests.faults.inputs import Damage, read_damaged
from tests.faults.kills import kill_at_random
from tests.faults.memory import starve
from tests.faults.mutations import mutate
from tests.faults.power import cut_power
from tests.faults.races import run_together
from tests.faults.trials import Record, Trial, scratch_folder
from tests.faults.write_errors import count_calls, fail_a_call

LONG = {
    "kills": 500,
    "errors": 1000,
    "power": 500,
    "races": 100,
    "memory": 100,
    "flips": 5000,
    "inputs": 10**6,
    "guided": 10**5,
}
"""Trials of the long form; of flips, inputs and guided inputs, which have many in a trial, how
many there are."""
KINDS = tuple(LONG)
_WHOLE_RUNS = 5
"""Flips after which a whole run goes on, to each trial of what is stored."""

_SHARES = {"run": 4, "score": 2, "compare": 1, "reproduce": 1, "features": 2, "label": 2}
"""How often a command is tried: those that take longer less."""
_IMPORTS = (
    "upslope.cli.app", "upslope.cli.show", "upslope.cli.sitting", "upslope.config",
    "upslope.comparison", "upslope.report", "upslope.scoring", "upslope.reproduction",
    "upslope.experiment.verify", "sklearn.datasets", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "torch.optim", "pyarrow.parquet", "torch._dynamo",
    "upslope.frozen", "upslope.labelling.samples", "upslope.labelling.training_process",
    "tests.faults.frozen_network",
)  # fmt: skip
"""What commands import: once here, not in each of them."""


class Campaign:
    """Runs trials and records them.

    until: the time, as `time.monotonic` has it, from which no further trial begins. subjects: the
    commands that are tried, None for all. keep: the files of the last trial stay.
    """

    def __init__(
        self,
        record: Record,
        seed: int,
        until: float = float("inf"),
        subjects: list[str] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.record, self.seed, self.until, self.keep = record, seed, until, keep
        self.shares = {n: s for n, s in _SHARES.items() if subjects is None or n in subjects}
        self._scratch = Path(tempfile.mkdtemp(prefix="upslope-faults-", dir=scratch_folder()))
        self._subjects: dict[str, tuple[Subject, float]] = {}
        self._calls: dict[str, int] = {}
        if importlib.util.find_spec("uvicorn") is None and self.shares.pop("label", 0):
            print("label: left out, it needs the packages of the page (starlette, uvicorn)")
        page = ("upslope.labelling.server",) if "label" in self.shares else ()
        for module in (*_IMPORTS, *page):
            importlib.import_module(module)

    def __enter__(self) -> Campaign:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kill_all()
        if self.keep:
            print(f"kept: {self._scratch}")
        else:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, kind: str, count: int) -> None:
        """Make so many trials of a kind, without those that are recorded already."""
        done: dict[str, set[int]] = {}
        for subject, number in self._trials(kind, count):
            if subject not in done:
                done[subject] = self.record.numbers(kind, subject, self.seed)
            if number in done[subject]:
                continue
            if time.monotonic() > self.until:
                return
            self.record.add(self.one(kind, subject, number))

    def one(self, kind: str, subject: str, number: int | str) -> Trial:
        """Make one trial."""
        trial = Trial(kind, subject, int(number), self.seed)
        folder = self._scratch / "trial" / "folder"
        folder.mkdir(parents=True)
        try:
            self._kinds[kind](trial, folder)
        except Exception:  # a trial that cannot be judged counts, and is told
            trial.note("foreign", f"in the campaign itself: {traceback.format_exc()[-1500:]}")
        finally:
            if not self.keep:
                shutil.rmtree(folder.parent)
        return trial

    def _trials(self, kind: str, count: int) -> Iterator[tuple[str, int]]:
        """Yield (subject, number): commands in turn, by their shares."""
        if kind in ("flips", "inputs"):
            yield from self._many(kind, count)
            return
        if kind == "guided":
            yield from self._guided(count)
            return
        if kind == "memory" and sys.platform != "linux":
            print("memory: left out, it needs Linux")
            return
        if kind in ("errors", "power") and not syscalls.SUPPORTED:
            print(f"{kind}: left out, they need Linux on x86-64")
            return
        shares = dict(self.shares)
        if kind == "memory":
            shares.pop("label", None)  # the person at the page needs memory of the same process
        turns = [name for name, share in shares.items() for _ in range(share)]
        if not turns:
            return
        numbers = dict.fromkeys(turns, 0)
        for i in range(count):
            name = turns[i % len(turns)]
            yield name, numbers[name]
            numbers[name] += 1

    def _many(self, kind: str, count: int) -> Iterator[tuple[str, int]]:
        """Yield trials of so many flips or inputs together, each format in turn."""
        whole = 0
        for turn in itertools.count():
            for name, form in self._formats(kind).items():
                if count <= 0:
                    return
                yield name, turn
                count -= form.at_once
                for _ in range(_WHOLE_RUNS if kind == "flips" else 0):
                    yield RUN, whole
                    whole, count = whole + 1, count - 1

    def _guided(self, count: int) -> Iterator[tuple[str, int]]:
        """Yield trials of so many guided inputs together, each reader in turn."""
        from tests.faults.readers import READERS

        if not guided.available():
            print("guided: left out, it needs the package atheris")
            return
        for turn in itertools.count():
            for name in READERS:
                if count <= 0:
                    return
                yield name, turn
                count -= guided.RUNS

    def _formats(self, kind: str) -> Mapping[str, Format]:
        from tests.faults.collections import COLLECTIONS
        from tests.faults.formats import FORMATS
        from tests.faults.readers import READERS
        from tests.faults.stored import STORED

        return STORED if kind == "flips" else {**FORMATS, **COLLECTIONS, **READERS}

    @cached_property
    def _kinds(self) -> dict[str, Callable[[Trial, Path], None]]:
        return {
            "kills": lambda t, folder: kill_at_random(t, *self._timed(t.subject), folder),
            "races": lambda t, folder: run_together(t, *self._timed(t.subject), folder),
            "memory": lambda t, folder: starve(t, self._subject(t.subject), folder),
            "errors": lambda t, folder: fail_a_call(
                t, self._subject(t.subject), folder, self._count(t.subject)
            ),
            "power": lambda t, folder: cut_power(
                t, self._subject(t.subject), folder, self._count(t.subject)
            ),
            "flips": self._flip,
            "inputs": self._read_inputs,
            "guided": lambda t, folder: guided.fuzz(t, folder, self.record.folder / "finds"),
        }

    def _flip(self, trial: Trial, folder: Path) -> None:
        if trial.subject == RUN:
            self._flipped.flip(trial, folder)
        else:
            self._read_damaged(trial, folder, flip_a_bit, exact=True)

    def _read_inputs(self, trial: Trial, folder: Path) -> None:
        self._read_damaged(trial, folder, mutate)

    def _read_damaged(
        self, trial: Trial, folder: Path, damage: Damage, *, exact: bool = False
    ) -> None:
        form = self._formats(trial.kind)[trial.subject]
        read_damaged(trial, folder, form, self.record.folder / "finds", damage, exact=exact)

    @cached_property
    def _flipped(self) -> FlippedRun:
        return FlippedRun(self._scratch / "flips")

    def _subject(self, name: str) -> Subject:
        return self._timed(name)[0]

    def _timed(self, name: str) -> tuple[Subject, float]:
        """Return a command, and the seconds of an undisturbed call."""
        if name not in self._subjects:
            subject = Subject(COMMANDS[name].name, self._scratch)
            folder = self._scratch / "timed"
            folder.mkdir()
            subject.command.begins(folder)
            started = time.monotonic()
            subject.start(folder, self._scratch / "timed.log").end()
            self._subjects[name] = subject, time.monotonic() - started
            shutil.rmtree(folder)
        return self._subjects[name]

    def _count(self, name: str) -> int:
        if name not in self._calls:
            folder = self._scratch / "counted"
            folder.mkdir()
            self._calls[name] = count_calls(self._subject(name), folder)
            shutil.rmtree(folder)
        return self._calls[name]
