"""Save the sound part of a damaged log: all events before the first damaged one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import RunError
from upslope.files import from_json
from upslope.ledger.chain import CHAIN, COLUMNS, End, start_of
from upslope.ledger.events import Event
from upslope.ledger.log import LogFormat, create_tables, open_to_read, sqlite_errors


@dataclass(frozen=True)
class Salvage:
    """meta: what the log began with. rows: sound events, as `COLUMNS` and, where chained, their
    digests. reason: why no more, empty where nothing is lost."""

    meta: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    chained: bool
    reason: str


def save_what_is_sound(path: Path, new: Path, kind: LogFormat[Any]) -> tuple[int, tuple[str, ...]]:
    """Write the sound part of a log as a new one, in a folder that exists.

    path: of the damaged log. new: of the other. kind: what kind of log it is.

    Returns: how many events were saved, and what could not be, a sentence each.

    Raises:
        RunError: there is no log, what it began with cannot be read, or the disk is full.
    """
    salvage = read_what_is_sound(path, kind)
    rows = salvage.rows[: _count_in_turn(salvage.rows, kind)]
    write_ledger(new, salvage.meta, rows, salvage.chained, kind)
    if not salvage.reason and len(rows) == len(salvage.rows):
        return len(rows), ()
    return len(rows), (
        f"the ledger from event {len(rows) + 1} on: {salvage.reason or 'out of turn'}",
    )


def _count_in_turn(rows: Sequence[Sequence[Any]], kind: LogFormat[Any]) -> int:
    """Return how many events follow from each other, from the first on."""
    count = 0

    def events() -> Iterator[Event]:
        nonlocal count
        for row in rows:
            yield Event(row[3], row[2], from_json(row[4]))
            count += 1  # the next is asked for: this one followed

    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        kind.fold(events())
    return count


def read_what_is_sound(path: Path, kind: LogFormat[Any]) -> Salvage:
    """Read a log as far as it is sound.

    Raises:
        RunError: there is none, or what it began with cannot be read.
    """
    if not path.is_file():
        raise RunError(
            f"Expected a ledger at {path} but there is no such file. Give the folder of a run, "
            "which holds ledger.sqlite, or of a labelling project, which holds labels.sqlite."
        )
    with open_to_read(path) as db:
        with sqlite_errors(path):
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
            has_chain = CHAIN in meta
            columns = f"{COLUMNS}, chain" if has_chain else COLUMNS
            cursor = db.execute(f"SELECT {columns} FROM events ORDER BY number")
        rows: list[Sequence[Any]] = []
        reason = ""
        try:
            rows.extend(cursor)
        except sqlite3.Error as error:
            reason = str(error)
    try:
        for key in kind.keys:
            from_json(meta[key])
        if has_chain:
            rows, fault = _sound(meta, rows)
            reason = fault or reason
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"Expected what {path} began with to be readable but it is damaged: {error}."
            " Restore the ledger from a copy."
        ) from error
    return Salvage(meta, rows, has_chain, reason)


def _sound(
    meta: Mapping[str, str], rows: Sequence[Sequence[Any]]
) -> tuple[list[Sequence[Any]], str]:
    """Return the rows up to the first that breaks the chain, and why it does."""
    chain = from_json(meta[CHAIN])
    good = [row for row in rows if row[0] <= chain["after"]]
    if start_of(meta, good) != chain["start"]:
        raise ValueError("it is not what was recorded")
    end = End(chain["after"], chain["start"])
    for row in rows[len(good) :]:
        try:
            next_end = end.after(row[:5])
        except TypeError:  # bytes in place of a text
            next_end = None
        if next_end is None or row[0] != end.number + 1 or next_end.chain != row[5]:
            return good, f"event {end.number + 1} is not what was recorded"
        good.append(row)
        end = next_end
    return good, ""


def write_ledger(
    path: Path,
    meta: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    has_chain: bool,
    kind: LogFormat[Any],
) -> None:
    """Write a new log of these events; where they have no chain, one begins after them.

    path: in a folder that exists.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    values = dict(meta)
    if not has_chain:
        after = rows[-1][0] if rows else 0
        values[CHAIN] = json.dumps({"start": start_of(meta, rows), "after": after})
    with sqlite_errors(path):
        db = sqlite3.connect(path, isolation_level=None)
        try:
            create_tables(db, kind, values, [(*row, None)[:6] for row in rows])
        finally:
            db.close()
