"""An event log in one SQLite file: one transaction a step, readable by any tool.

`Ledger` (the record of a run) and the record of a labelling project are such logs. The table `meta`
holds what was begun (JSON texts), `events` what happened, as a chain of digests (`chain`); the view
`labels` lists every label as it stands.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from upslope.errors import NothingRecordedError, RunError
from upslope.file_limits import size_advice
from upslope.files import disk_errors, from_json, make_folder
from upslope.ledger.chain import CHAIN, COLUMNS, End, check_chain, start_of
from upslope.ledger.events import Event
from upslope.ledger.lock import RunLock

VIEW = """
CREATE VIEW labels AS
    SELECT cycle, id, label FROM (
        SELECT e.kind AS kind, l.key AS id, l.value AS label,
            min(e.cycle) OVER (PARTITION BY l.key) AS cycle,
            min(e.number) OVER (PARTITION BY l.key) AS first,
            row_number() OVER (PARTITION BY l.key ORDER BY e.number DESC) AS age
        FROM events AS e, json_each(e.body, '$.labels') AS l
        WHERE e.kind IN ('labelled', 'corrected', 'taken_back')
    ) WHERE age = 1 AND kind <> 'taken_back' ORDER BY first;
"""
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, cycle INTEGER NOT NULL, kind TEXT NOT NULL,
    body TEXT NOT NULL, chain TEXT
);
{VIEW}
"""
_BUSY_SECONDS = 60.0  # to wait for readers and copies; each takes a moment
_HALF_WRITTEN = (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY)
"""What SQLite says of a file that it must mend first, to who may not write."""

S = TypeVar("S")


@dataclass(frozen=True)
class LogFormat(Generic[S]):
    """A kind of event log.

    file: name of the file in its folder. application: the number in the header of the file that
    tells this kind of log from other databases. version: the newest, which this program writes;
    logs of an earlier one are read. keys: the entries of `meta` that every log has. fold: returns
    the state after events, given the state before them, or raises ValueError. settle_every: records
    after which what SQLite's own log holds is moved into the file itself: with 1, a copy of the
    file alone is whole at any time, and a record takes several times as long.
    """

    file: str
    application: int
    version: int
    keys: tuple[str, ...]
    fold: Callable[..., S]
    settle_every: int = 1


class EventLog(Generic[S]):
    """An event log open for writing, and locked against other processes.

    meta: what a new log begins with; an existing one keeps its own.

    Raises:
        RunError: locked by another process, damaged, foreign, or on a disk that is full.
    """

    def __init__(self, folder: Path, kind: LogFormat[S], meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self.kind = kind
        self.path = folder / kind.file
        self._records_in_log = 0  # records since SQLite's log was last moved into the file
        with disk_errors(folder):
            make_folder(folder)
        self._lock = RunLock(folder)
        try:
            self._check_folder()
            with sqlite_errors(self.path):
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_SECONDS)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                if _is_empty(self._db):
                    self._create(meta)
                elif 1 <= _version(self._db) < kind.version:
                    self._upgrade()
                self._settle()
            self.meta, self.state, self._end = read_log(self._db, self.path, kind)
        except BaseException:
            self.close()
            raise

    def _check_folder(self) -> None:
        """Raise RunError where no log may be begun in the folder; every log may by default."""

    def _create(self, meta: Mapping[str, Any]) -> None:
        rows = {key: to_text(value) for key, value in meta.items()}
        rows[CHAIN] = to_text({"start": start_of(rows, ()), "after": 0})
        create_tables(self._db, self.kind, rows)

    def _upgrade(self) -> None:
        """Make an earlier log one of this version: its events stay, and the chain begins after
        them, from all of them."""
        read_log(self._db, self.path, self.kind)  # nothing damaged or foreign is sealed
        meta = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        rows = self._db.execute(f"SELECT {COLUMNS} FROM events ORDER BY number").fetchall()
        chain = {"start": start_of(meta, rows), "after": rows[-1][0] if rows else 0}
        self._db.executescript(
            f"BEGIN IMMEDIATE;\nDROP VIEW IF EXISTS labels;\n{VIEW}\n"
            "ALTER TABLE events ADD COLUMN chain TEXT;\n"
            f"INSERT INTO meta VALUES ({_quote(CHAIN)}, {_quote(to_text(chain))});\n"
            f"PRAGMA user_version = {self.kind.version};\nCOMMIT;"
        )

    def record(self, *events: Event) -> S:
        """Record events in one transaction: after it they are on the disk, all or none.

        With `settle_every` 1 they are then in the log's file itself: a copy of it alone holds them.

        Raises:
            RunError: the disk is full, or another process has written here, which no lock kept
                out; nothing recorded before is lost.
            ValueError: an event that cannot follow those before it; nothing is recorded.
        """
        state = self.kind.fold(events, self.state)
        rows, end = [], self._end
        for e in events:
            row = (end.number + 1, time.time(), e.cycle, e.kind, to_text(e.body))
            end = end.after(row)
            rows.append((*row, end.chain))
        with sqlite_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._check_alone()
                self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self.state, self._end = state, end
            self._records_in_log += 1
            if self._records_in_log >= self.kind.settle_every:
                self._settle()
        return state

    def _check_alone(self) -> None:
        """Raise RunError where the last event is not the one that this process knows as such."""
        last = self._db.execute(
            "SELECT number, chain FROM events ORDER BY number DESC LIMIT 1"
        ).fetchone()
        end = self._end
        if last is not None and last != (end.number, end.chain if end.chained else None):
            raise RunError(
                f"Expected to be alone in {self.folder} but another process has recorded something "
                "there, and the file system's locks did not keep it out. End one of the two, and "
                "run the same command again; choose a folder on a local disk for the next run."
            )

    def _settle(self) -> None:
        """Move what is recorded from SQLite's log into the file itself, on the disk."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._records_in_log = 0

    def close(self) -> None:
        """Close the file and let other processes in."""
        if hasattr(self, "_db"):
            # A ledger at rest is one plain file; the log stays where something else still reads.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.close()
        self._lock.release()


def create_tables(
    db: sqlite3.Connection,
    kind: LogFormat[Any],
    meta: Mapping[str, str],
    rows: Sequence[Sequence[Any]] = (),
) -> None:
    """Make an empty database an event log, in one transaction.

    meta: JSON texts by their keys. rows: events as `COLUMNS` and digest.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA.strip().split(";\n"):
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.execute(f"PRAGMA application_id = {kind.application}")
        db.execute(f"PRAGMA user_version = {kind.version}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def read_log(
    db: sqlite3.Connection, path: Path, kind: LogFormat[S]
) -> tuple[dict[str, Any], S, End]:
    """Return what a log began with, its state, and the end of its chain of events.

    Raises:
        NothingRecordedError: empty.
        RunError: damaged, of another program, or of a later version.
    """
    with sqlite_errors(path):
        if _is_empty(db):
            raise NothingRecordedError(
                f"Expected something recorded in {path} but there is nothing: the process that "
                "made it ended as it began. Run the same command again."
            )
        _check_application(db, path, kind)
        if not 1 <= (version := _version(db)) <= kind.version:
            raise RunError(
                f"Expected {path} to have ledger version 1 to {kind.version} but it has {version}. "
                "Read it with the version of Upslope that wrote it."
            )
        db.execute("BEGIN")  # all of it as it is at one moment, while others write
        try:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            texts = dict(db.execute("SELECT key, value FROM meta").fetchall())
            chain_columns = [name for _, name, *_ in db.execute("PRAGMA table_info(events)")]
            columns = COLUMNS if "chain" not in chain_columns else f"{COLUMNS}, chain"
            rows = db.execute(f"SELECT {columns} FROM events ORDER BY number").fetchall()
        finally:
            db.execute("ROLLBACK")
        try:
            end = check_chain(
                texts, rows, what_is_wanted=version == kind.version or "chain" in chain_columns
            )
            meta = {key: from_json(texts[key]) for key in kind.keys}
            state = kind.fold(
                Event(name, cycle, from_json(body)) for _, _, cycle, name, body, *_ in rows
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise sqlite3.DatabaseError(f"its events do not add up: {error}") from error
    return meta, state, end


@contextmanager
def open_to_read(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that writes nothing, but for taking back what a kill left half written.

    Raises:
        RunError: it cannot be opened.
    """
    with sqlite_errors(file):
        db = _connect(file, "ro")
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            db.close()
            if error.sqlite_errorcode not in _HALF_WRITTEN:
                raise
            # SQLite does so only where no living process holds the file.
            db = _connect(file, "rw")
    try:
        yield db
    finally:
        db.close()


def is_begun(file: Path) -> bool:
    """Say whether a log has begun; also where it is damaged, as reading it tells.

    A process that was killed as it began leaves a file without a table, or none.
    """
    if not file.is_file() or file.stat().st_size == 0:
        return False
    try:
        with open_to_read(file) as db, sqlite_errors(file):
            return not _is_empty(db)
    except RunError:
        return True


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None,
        timeout=_BUSY_SECONDS,
    )  # fmt: skip


def _check_application(db: sqlite3.Connection, path: Path, kind: LogFormat[Any]) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != kind.application:
        raise RunError(
            f"Expected {path} to be a ledger of Upslope but it is another program's database. "
            "Choose another folder."
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _is_empty(db: sqlite3.Connection) -> bool:
    """Return whether a file has no table: new, or left by a kill before a first transaction."""
    return bool(db.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()[0])


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the ledger `path` into a RunError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            fixes = ", or ".join(filter(None, ["Free some space", size_advice()]))
            raise RunError(
                f"Expected room on the disk for {path} but SQLite says: {text}. {fixes}, and run "
                "the same command again: nothing recorded before is lost."
            ) from error
        raise RunError(
            f"Expected to be able to use the ledger {path} but SQLite says: {text}. Check that "
            "the folder can be written and that no other program holds the file."
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise RunError(
            f"Expected {path} to be a sound ledger but it is damaged: {error}. Restore it from a "
            "copy, or save what can be read with `upslope repair`."
        ) from error


def to_text(value: Any) -> str:
    """Return the JSON text of a value, as a log holds it."""
    return json.dumps(value)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
