"""Trials and their record: what was done to Upslope, and how it ended.

Every trial has a number and draws from (seed, kind, number) alone, so that it can be made again by
itself. The record is a file of JSON lines, to which each trial is added when it ends: a campaign
that was interrupted goes on with the trials that are not in it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GOOD = {
    "same": "ended as the undisturbed run, bit for bit; of an input: read as it is",
    "refused": "one error of Upslope's that names what is wrong",
    "skipped": "left out, as the command asked, and said so",
}
BAD = {
    "different": "ended otherwise than the undisturbed run",
    "unnoticed": "damage that was read as if it were sound, or a record that is gone",
    "hung": "neither ended nor went on within the time limit",
    "foreign": "an error that is not Upslope's own, or more memory than the limit",
    "crashed": "the process ended by a signal that nobody sent",
    "left over": "processes or files that stayed behind",
}
OUTCOMES = {**GOOD, **BAD}


@dataclass
class Trial:
    """One trial. faults: how many were injected; outcomes: how often each occurred; finds: what
    went wrong, a line each, enough to make it again."""

    kind: str
    subject: str
    number: int
    seed: int
    faults: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    finds: list[str] = field(default_factory=list)
    commit: str = ""

    @property
    def rng(self) -> random.Random:
        """A new generator of this trial's own."""
        return random.Random(f"{self.seed}/{self.kind}/{self.subject}/{self.number}")

    def note(self, outcome: str, find: str = "") -> None:
        """Count an outcome; of a bad one, `find` says what happened."""
        if outcome not in OUTCOMES:
            raise ValueError(outcome)
        self.outcomes[outcome] += 1
        if outcome in BAD:
            self.finds.append(f"{outcome}: {find}")

    @property
    def failed(self) -> bool:
        """Anything went wrong."""
        return any(self.outcomes[name] for name in BAD)


class Record:
    """The trials of a campaign, in `<folder>/trials.jsonl`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = folder / "trials.jsonl"

    def __iter__(self) -> Iterator[Trial]:
        if not self._file.exists():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
            except ValueError:  # the campaign was killed while it wrote this line
                continue
            yield Trial(**{**fields, "outcomes": Counter(fields["outcomes"])})

    def numbers(self, kind: str, subject: str, seed: int) -> set[int]:
        """Return the numbers of the trials that are done."""
        return {
            trial.number
            for trial in self
            if (trial.kind, trial.subject, trial.seed) == (kind, subject, seed)
        }

    def add(self, trial: Trial) -> None:
        """Add a trial that has ended."""
        trial.commit = commit()
        line = json.dumps(vars(trial), ensure_ascii=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@cache
def commit() -> str:
    """Return the commit of this tree, with "+" where it has changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, changes = (
            subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except OSError:
        return ""
    return head + ("+" if changes else "")


def scratch_folder() -> str | None:
    """Return where trials keep their files: in memory where the system has such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
