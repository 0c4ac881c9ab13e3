"""Random kills and requests to stop of a process, a worker or the group; then gone on with."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.faults.children import Child, Ended
from tests.faults.commands import Subject, frequent_checkpoints
from tests.faults.trials import Trial

_MOST = 3  # faults in one trial, one a sitting
_AS_IT_IS = 0.1  # share of the trials whose workers start as they do, with a Python of their own
_START_OF_PYTHON = 3.0  # seconds that this takes
_ENDING = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_STOPPED = (0, 130, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a command that was asked to stop. By the signal itself it ends before its rules for
signals hold, while it reads the data."""


def kill_at_random(trial: Trial, subject: Subject, seconds: float, folder: Path) -> None:
    """Interrupt a command one to three times, finish it, and compare what it leaves.

    seconds: that an undisturbed call takes: the moment is drawn from these.
    """
    rng = trial.rng
    subject.command.begins(folder)
    python = rng.random() < _AS_IT_IS
    for sitting in range(rng.randint(1, _MOST)):
        log = folder.parent / f"kill-{sitting}.log"
        child = subject.start(folder, log, frequent_checkpoints, python=python)
        time.sleep(rng.uniform(0, seconds + (_START_OF_PYTHON if python else 0)))
        what = _strike(child, subject, rng)
        ended = child.end()
        if what:
            trial.faults += 1
        if lost := subject.command.lost(folder, ended.output):
            trial.note("unnoticed", f"{what}: {lost}")
        if fault := _judge(ended, what, subject):
            trial.note(fault[0], f"{what}: {fault[1]}")
            if fault[0] in ("hung", "foreign"):
                break
    finish(trial, subject, folder)


def finish(trial: Trial, subject: Subject, folder: Path) -> None:
    """Call the command once more, undisturbed, and compare what it leaves."""
    ended = subject.start(folder, folder.parent / "finish.log").end()
    if fault := ended.fault:
        trial.note(fault[0], f"when gone on with: {fault[1]}")
    elif ended.code != subject.command.done:
        trial.note("different", f"cannot be gone on with, exit code {ended.code}: {ended.output}")
    elif differences := subject.differences(folder):
        for outcome, files in differences.items():
            trial.note(outcome, ", ".join(files[:5]))
    else:
        trial.note("same")


def _strike(child: Child, subject: Subject, rng: random.Random) -> str:
    """Send one or two signals; returns what was sent to whom, or nothing where it had ended."""
    if not child.running():
        return ""
    number = rng.choice(_ENDING)
    whom = rng.choice(("process", "group", "worker") if subject.command.workers else ("process",))
    workers = child.workers() if whom == "worker" else []
    if workers:
        number = signal.SIGKILL if number == signal.SIGINT else number  # which workers ignore
        victim = rng.choice(workers)
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            return ""
        return f"{number.name} to worker {victim}"
    whom = "process" if whom == "worker" else whom  # there is none yet
    times = 2 if number != signal.SIGKILL and rng.random() < 0.2 else 1
    for _ in range(times):
        if whom == "group":
            child.send_all(number)
        else:
            child.send(number)
        time.sleep(rng.uniform(0, 0.3) if times == 2 else 0)
    return f"{times} {number.name} to the {whom}"


def _judge(ended: Ended, what: str, subject: Subject) -> tuple[str, str] | None:
    """Return a bad outcome and its description, None where it ended as asked."""
    if ended.fault:
        return ended.fault
    if "worker" in what:
        return None if ended.code in (0, 6, 130) else ("crashed", _told(ended))
    if "SIGKILL" in what:
        good = (subject.command.done, -signal.SIGKILL)
        return None if ended.code in good else ("crashed", _told(ended))
    if ended.code in (_STOPPED if what else (subject.command.done,)):
        return None
    return "crashed" if ended.code is not None and ended.code < 0 else "foreign", _told(ended)


def _told(ended: Ended) -> str:
    return f"exit code {ended.code}: {ended.output.strip()[-800:]}"
