"""Too little memory: a command with a limit on its addresses (`ulimit -v`); then gone on with."""

from __future__ import annotations

import math
import re
import resource
import signal
from pathlib import Path

import psutil
from tests.faults.commands import Subject, frequent_checkpoints
from tests.faults.kills import finish
from tests.faults.trials import Trial

_LEAST, _MOST = 1 << 19, 1 << 28
"""Bytes that a command may have beyond what it starts with; the tiny ones take some 10^8."""
_START = 80 << 20
"""With less a command is refused before it has begun."""
_BEYOND_THE_START = 0.8
_REFUSED = 6
_ERROR = re.compile(r"^error .*memory", re.MULTILINE)
_NATIVE = re.compile(r"^(cannot allocate memory for thread-local data: ABORT|.*std::bad_alloc)$",
                     re.MULTILINE)  # fmt: skip
"""What the loader of the system and C++ say as they end the process, which nothing can prevent."""


def starve(trial: Trial, subject: Subject, folder: Path) -> None:
    """Limit the memory of a command and of its workers, and finish it without a limit.

    It must end as without the limit, or with one error that says that memory is short.
    """
    rng = trial.rng
    room = int(math.exp(rng.uniform(math.log(_LEAST), math.log(_MOST))))
    if rng.random() < _BEYOND_THE_START:
        room += _START
    subject.command.begins(folder)

    def before() -> None:
        frequent_checkpoints()
        most = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    ended = subject.start(folder, folder.parent / "starved.log", before).end()
    trial.faults += 1
    what = f"{room >> 10} KiB"
    if fault := ended.fault:
        trial.note(fault[0], f"{what}: {fault[1]}")
    elif (ended.code == _REFUSED and _ERROR.search(ended.output)) or (
        ended.code in (127, -signal.SIGABRT) and _NATIVE.search(ended.output)
    ):
        trial.note("refused")
    elif ended.code is not None and ended.code < 0:
        trial.note("crashed", f"{what}: exit code {ended.code}: {ended.output[-800:]}")
    elif ended.code != subject.command.done:
        trial.note("different", f"{what}: exit code {ended.code}: {ended.output[-800:]}")
    if lost := subject.command.lost(folder, ended.output):
        trial.note("unnoticed", f"{what}: {lost}")
    finish(trial, subject, folder)
