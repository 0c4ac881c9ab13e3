"""Check the folder of a run, and save what is sound of a damaged one into a new folder."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from upslope.checkpoints import file_sha256
from upslope.counts import format_count
from upslope.errors import NothingRecordedError, RunError
from upslope.files import from_json, name_in_use, new_folder, write_atomically
from upslope.ledger import RunResult, read_run
from upslope.ledger.salvage import save_what_is_sound
from upslope.ledger.store import FILE, FORMAT, chain_start, has_begun, has_trained


@dataclass(frozen=True)
class Verification:
    """What a check found. events: how many the ledger holds. sound: files that are what was
    recorded. problems: what is lost, a sentence each. notes: what could not be checked."""

    events: int
    sound: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Repair:
    """What was saved. events: those of the ledger; lost: what could not be saved, a sentence each;
    files: the models copied."""

    events: int
    lost: tuple[str, ...]
    files: tuple[str, ...]


def verify_run(folder: Path | str) -> Verification:
    """Check a run's ledger and every file whose digest it holds; nothing is changed.

    Raises:
        RunError: the folder holds no run.
    """
    folder = Path(folder)
    if not ((folder / FILE).is_file() or has_trained(folder)):
        read_run(folder)  # raises the error for a folder without a run
    try:
        run = read_run(folder)
        begins, events = chain_start(folder / FILE)
        files = _files(run)
    except NothingRecordedError as error:
        return Verification(0, (), (), (str(error),))
    except RunError as error:
        return Verification(0, (), (str(error),), ())
    sound, problems = [], []
    for name, digest, is_needed in files:
        path = folder / name
        if path.is_file() and file_sha256(path) == digest:
            sound.append(name)
        elif path.is_file():
            problems.append(f"{name} is not what was recorded{_AGAIN}")
        elif is_needed:
            problems.append(f"{name} is missing{_AGAIN}")
    return Verification(events, tuple(sound), tuple(problems), chain_notes(begins, events))


def chain_notes(begins: int | None, events: int) -> tuple[str, ...]:
    """Return what of a log could not be checked.

    begins: the first event with a chain, None without one. events: how many there are.
    """
    if begins is None:
        return (f"no chain: {format_count(events, 'event')} of an earlier version of Upslope",)
    if begins > 1:
        return (f"no chain before event {begins}: an earlier version of Upslope wrote those",)
    return ()


_AGAIN = "; the command that began the run makes it again where it needs it"


def repair_run(folder: Path | str, out: Path | str) -> Repair:
    """Save what is sound of a run into a new folder, where the same command goes on with it.

    Of the ledger, that is every event before the first damaged one.

    Raises:
        NothingRecordedError: there is nothing to save.
        RunError: `out` is not empty or cannot be written, or what the run began with cannot be
            read. Nothing is then left of `out`.
    """
    folder, out = Path(folder), Path(out)
    check_new_folder(out)
    if (folder / FILE).is_file() and not has_begun(folder):
        read_run(folder)  # raises the error for an empty ledger
    saved_names = []
    with new_folder(out) as new:
        count, losses = save_what_is_sound(folder / FILE, new / FILE, FORMAT)
        for name, digest, _ in _files(read_run(new)):
            if (folder / name).is_file() and file_sha256(folder / name) == digest:
                write_atomically(new / name, partial(shutil.copyfile, folder / name))
                saved_names.append(name)
    return Repair(count, losses, tuple(saved_names))


def check_new_folder(folder: Path) -> None:
    """Raise RunError where a folder for what is saved has content, or cannot be made."""
    if problem := name_in_use(folder, as_file=False):
        raise RunError(f"Expected {folder} to be a new folder but {problem}")
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"Expected {folder} to be a new folder but it has content. Choose another.")


def _files(run: RunResult) -> list[tuple[str, str, bool]]:
    """(name, SHA-256, whether it must be there) of the files whose digests a ledger holds."""
    digests = recorded_files(run.path / FILE)
    kept_all = run.config.get("experiment", {}).get("keep_models") == "all"
    last = max((cycle for cycle, _ in digests.values()), default=0)
    return [(name, sha, kept_all or cycle == last) for name, (cycle, sha) in digests.items()]


def recorded_files(ledger: Path) -> Mapping[str, tuple[int, str]]:
    """Return name -> (cycle, SHA-256) of the models and companions that a ledger records.

    Raises:
        RunError: a name leads out of the run's folder, where a repair would write.
    """
    files: dict[str, tuple[int, str]] = {}
    db = sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True)
    try:
        rows = db.execute("SELECT cycle, body FROM events WHERE kind = 'trained' ORDER BY number")
        for cycle, text in rows.fetchall():
            body: dict[str, Any] = from_json(text)
            files[body["file"]] = (cycle, body["sha256"])
            if "companion_sha256" in body:
                companion = str(Path(body["file"]).with_suffix(".companion"))
                files[companion] = (cycle, body["companion_sha256"])
    finally:
        db.close()
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(
                f"Expected the models of a run in its own folder but {ledger} names {name!r}, "
                "which no run records. Restore the ledger from a copy."
            )
    return files
