"""Save the sound part of a damaged ledger: all events before the first damaged one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import RunError
from upslope.files import from_json
from upslope.ledger.chain import CHAIN, COLUMNS, End, start_of
from upslope.ledger.log import create_tables, open_to_read, sqlite_errors
from upslope.ledger.store import FORMAT, META


@dataclass(frozen=True)
class Salvage:
    """meta: what the run began with. rows: sound events, as `COLUMNS` and, where chained, their
    digests. reason: why no more, empty where nothing is lost."""

    meta: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    chained: bool
    reason: str


def read_what_is_sound(path: Path) -> Salvage:
    """Read a ledger as far as it is sound.

    Raises:
        RunError: there is none, or what the run began with cannot be read.
    """
    if not path.is_file():
        raise RunError(f"Expected a ledger at {path} but there is no such file.")
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
        for key in META:
            from_json(meta[key])
        if has_chain:
            rows, fault = _sound(meta, rows)
            reason = fault or reason
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"Expected what the run of {path} began with to be readable but it is damaged: {error}."
            " Restore the ledger from a copy."
        ) from error
    return Salvage(meta, rows, has_chain, reason)


def _sound(
    meta: Mapping[str, str], rows: Sequence[Sequence[Any]]
) -> tuple[list[Sequence[Any]], str]:
    """The rows up to the first that breaks the chain, and why it does."""
    chain = from_json(meta[CHAIN])
    good = [row for row in rows if row[0] <= chain["after"]]
    if start_of(meta, good) != chain["start"]:
        raise ValueError("it is not what was recorded")
    end = End(chain["after"], chain["start"])
    for row in rows[len(good) :]:
        following = end.after(row[:5])
        if row[0] != end.number + 1 or following.chain != row[5]:
            return good, f"event {end.number + 1} is not what was recorded"
        good.append(row)
        end = following
    return good, ""


def write_ledger(
    path: Path, meta: Mapping[str, str], rows: Sequence[Sequence[Any]], has_chain: bool
) -> None:
    """Write a new ledger of these events; where they have no chain, one begins after them.

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
            create_tables(db, FORMAT, values, [(*row, None)[:6] for row in rows])
        finally:
            db.close()
