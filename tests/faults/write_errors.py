"""A disk that is full, or fails, at the n-th call that changes something; then gone on with."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.faults.children import Ended
from tests.faults.commands import Subject, frequent_checkpoints
from tests.faults.kills import finish
from tests.faults.syscalls import OPENS, RENAMES, SYNCS, WRITES, Answer, Call, Watched
from tests.faults.trials import Trial

_TAKES_ROOM = WRITES | RENAMES | {"mkdir", "mkdirat", "fallocate", "ftruncate", "creat", "symlink"}


def count_calls(subject: Subject, folder: Path) -> int:
    """Return how many calls of an undisturbed command change something in its folder."""
    calls: list[Call] = []
    subject.command.begins(folder)

    def answer(call: Call) -> int:
        if concerns(call, folder):
            calls.append(call)
        return 0

    _run(subject, folder, answer)
    return len(calls)


def fail_a_call(trial: Trial, subject: Subject, folder: Path, calls: int) -> None:
    """Let one call fail, or that and all later ones; finish the command, and compare.

    calls: as `count_calls` gave it: the trials go through them, from places that are drawn.
    """
    rng = trial.rng
    subject.command.begins(folder)
    nth = rng.randrange(calls)
    code = rng.choice((errno.ENOSPC, errno.EIO))
    lasts = rng.random() < 0.5
    count, struck = 0, ""

    def answer(call: Call) -> int:
        nonlocal count, struck
        if not concerns(call, folder):
            return 0
        count += 1
        if count - 1 < nth or (struck and not lasts) or not _can_fail(call, code):
            return 0
        struck = struck or f"{call.name} of {Path(call.path).relative_to(folder)}"
        return code

    ended = _run(subject, folder, answer)
    what = f"{errno.errorcode[code]} {'from' if lasts else 'at'} call {nth}, {struck or 'none'}"
    trial.faults += bool(struck)
    if ended.fault:
        trial.note(ended.fault[0], f"{what}: {ended.fault[1]}")
    elif ended.code is not None and ended.code < 0:
        trial.note("crashed", f"{what}: exit code {ended.code}: {ended.output[-800:]}")
    elif ended.code != subject.command.done or "\nrefused: " in ended.output:
        trial.note("refused")
    if lost := subject.command.lost(folder, ended.output):
        trial.note("unnoticed", f"{what}: {lost}")
    finish(trial, subject, folder)


def _run(subject: Subject, folder: Path, answer: Answer) -> Ended:
    watched = Watched()

    def before() -> None:
        frequent_checkpoints()
        watched.enter()

    child = subject.start(folder, folder.parent / "fault.log", before)
    watched.watch(child.running, answer)
    return child.end()


def concerns(call: Call, folder: Path) -> bool:
    """Whether a call changes the folder or something below it."""
    if call.name in OPENS and not call.creates:
        return False
    return any(f"{path}/".startswith(f"{folder}/") for path in (call.path, call.target))


def _can_fail(call: Call, code: int) -> bool:
    """Whether the system gives this error for such a call: a full disk still removes and syncs."""
    if code == errno.ENOSPC:
        return call.name in _TAKES_ROOM or (call.name in OPENS and call.creates)
    return call.name in _TAKES_ROOM | SYNCS | OPENS | {"unlink", "unlinkat", "rmdir", "chmod"}
