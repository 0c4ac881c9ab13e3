"""The same command twice at the same time, in one folder."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.commands import Subject, frequent_checkpoints
from tests.faults.kills import finish
from tests.faults.trials import Trial

_REFUSED = 6


def run_twice(trial: Trial, subject: Subject, seconds: float, folder: Path) -> None:
    """Start a command while it already runs; each must end as alone, or say that it is not.

    seconds: that an undisturbed call takes; the second starts within these.
    """
    children = []
    subject.command.begins(folder)
    for number in range(2):
        log = folder.parent / f"race-{number}.log"
        children.append(subject.start(folder, log, frequent_checkpoints))
        if number == 0:
            time.sleep(trial.rng.uniform(0, 0.8 * seconds))
    trial.faults += 1
    for child in children:
        ended = child.end()
        if fault := ended.fault:
            trial.note(*fault)
        elif ended.code == _REFUSED:
            trial.note("refused")
        elif ended.code != subject.command.done:
            outcome = "crashed" if ended.code is not None and ended.code < 0 else "different"
            trial.note(outcome, f"exit code {ended.code}: {ended.output[-800:]}")
    finish(trial, subject, folder)
