"""Power that fails at any call: what was not synced is dropped, or reaches the disk in part.

The watcher knows what is on the disk for certain: of a file, its content when it was last synced;
of a folder, its names when that was. At a moment drawn at random everything is killed, and the
folder is made again from what is certain. Of the rest, either nothing has reached the disk, or each
name and each block of 4 KiB has or has not, by a coin.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.commands import LEDGER, Subject, frequent_checkpoints
from tests.faults.kills import finish
from tests.faults.syscalls import SYNCS, Call, Watched, kill_quietly
from tests.faults.trials import Trial
from tests.faults.write_errors import concerns

_BLOCK = 4096


@dataclass
class Disk:
    """What is certain of a folder. files: the content of each by its inode; names: of each folder
    by its inode, name -> (inode, whether that is a folder)."""

    root: Path
    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)

    def sync(self, path: str) -> None:
        """Note that a file or folder is on the disk as it is now."""
        try:
            if os.path.isdir(path):  # noqa: PTH112
                self.names[os.stat(path).st_ino] = _names(path)  # noqa: PTH116
            else:
                with open(path, "rb") as file:  # noqa: PTH123
                    self.files[os.fstat(file.fileno()).st_ino] = file.read()
        except FileNotFoundError:  # removed while it was open: it needs no place
            return

    def restore(self, rng: random.Random | None) -> None:
        """Make the folder what the disk holds after the power failed.

        rng: decides what else has reached the disk; None: nothing has.
        """
        now_files, now_names = _present(self.root)
        top = self.root.stat().st_ino
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._fill(self.root, top, now_files, now_names, rng)

    def _fill(
        self,
        folder: Path,
        inode: int,
        now_files: Mapping[int, bytes],
        now_names: Mapping[int, Mapping[str, tuple[int, bool]]],
        rng: random.Random | None,
    ) -> None:
        before, now = self.names.get(inode, {}), now_names.get(inode, {})
        for name in sorted(before.keys() | now.keys()):
            changed = rng is not None and rng.random() < 0.5
            entry = now.get(name) if changed else before.get(name)
            if entry is None:
                continue
            number, is_folder = entry
            if is_folder:
                (folder / name).mkdir()
                self._fill(folder / name, number, now_files, now_names, rng)
            else:
                certain = self.files.get(number, b"")
                content = certain if rng is None else _mix(certain, now_files.get(number), rng)
                (folder / name).write_bytes(content)


def cut_power(trial: Trial, subject: Subject, folder: Path, calls: int) -> None:
    """Cut the power at a random call, restore what is certain, finish, and compare.

    calls: of an undisturbed command, as `write_errors.count_calls` gives it.
    """
    rng = trial.rng
    moment, partly = rng.randrange(calls), rng.random() < 0.5
    subject.command.begins(folder)
    disk, watched, count = Disk(folder), Watched(), 0
    for path in (folder, *folder.rglob("*")):
        disk.sync(str(path))
    told = folder.parent / "recorded"
    told.unlink(missing_ok=True)

    def before() -> None:
        frequent_checkpoints()
        _tell_of_records(told)
        watched.enter()

    child = subject.start(folder, folder.parent / "power.log", before)

    def answer(call: Call) -> int:
        nonlocal count
        if not concerns(call, folder):
            return 0
        count += 1
        if count > moment:
            kill_quietly(child.pid)
        elif call.name in SYNCS:
            disk.sync(call.path)
        return 0

    watched.watch(child.running, answer)
    ended = child.end()
    trial.faults += 1
    disk.restore(rng if partly else None)
    what = f"power cut at call {moment}, {'in part' if partly else 'nothing else'} on the disk"
    if lost := _lost(told) or subject.command.lost(folder, ended.output):
        trial.note("unnoticed", lost)
    finish(trial, subject, folder)
    trial.finds = [f"{find} ({what})" for find in trial.finds]


def _tell_of_records(file: Path) -> None:
    """Write the number of events to a file outside of the folder after each record returns."""
    from upslope.ledger import Ledger

    record = Ledger.record

    def and_tell(self: Ledger, *events: object) -> object:
        state = record(self, *events)  # type: ignore[arg-type]
        with file.open("a", encoding="utf-8") as notes:
            notes.write(f"{self._end.number}\t{self.path}\n")
        return state

    Ledger.record = and_tell  # type: ignore[method-assign,assignment]


def _lost(told: Path) -> str:
    """Say which ledger has fewer events than were told to be recorded; "" where none has."""
    if not told.exists():
        return ""
    counts = dict(line.split("\t")[::-1] for line in told.read_text("utf-8").splitlines())
    for ledger, count in counts.items():
        there = _events(Path(ledger))
        if there < int(count):
            return f"{count} events were recorded in {ledger}, {there} are left"
    return ""


def _events(ledger: Path) -> int:
    """Count the events of a copy of a ledger and its log: reading changes them."""
    copy = Path(tempfile.mkdtemp())
    try:
        for path in ledger.parent.glob(f"{LEDGER}*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(copy / LEDGER)) as db:
            return int(db.execute("SELECT count(*) FROM events").fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        shutil.rmtree(copy)


def _mix(certain: bytes, now: bytes | None, rng: random.Random) -> bytes:
    """Return a file whose blocks have reached the disk or not, each by a coin."""
    if now is None or now == certain:
        return certain
    length = len(now) if rng.random() < 0.5 else len(certain)
    before, after = certain.ljust(length, b"\0"), now.ljust(length, b"\0")
    blocks = (
        (after if rng.random() < 0.5 else before)[i : min(i + _BLOCK, length)]
        for i in range(0, length, _BLOCK)
    )
    return b"".join(blocks)


def _names(folder: str) -> dict[str, tuple[int, bool]]:
    with os.scandir(folder) as entries:
        return {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}


def _present(root: Path) -> tuple[dict[int, bytes], dict[int, dict[str, tuple[int, bool]]]]:
    """Return files and names as `Disk` has them, as they are now."""
    files, names = {}, {root.stat().st_ino: _names(str(root))}
    for path in root.rglob("*"):
        if path.is_dir():
            names[path.stat().st_ino] = _names(str(path))
        else:
            files[path.stat().st_ino] = path.read_bytes()
    return files, names
