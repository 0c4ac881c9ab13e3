"""The ledger of a run: one SQLite file, one transaction a step, readable by any tool.

`meta` holds what the run began with (config, environment, info), `events` what happened, as JSON;
the view `labels` lists every label as it stands, with the cycle that asked for it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upslope.errors import RunError
from upslope.files import disk_errors, make_folder
from upslope.ledger.chain import CHAIN, COLUMNS, End, chain_begins, check_chain, start_of
from upslope.ledger.events import Event, Label, State, fold
from upslope.ledger.lock import RunLock
from upslope.ledger.records import RunResult
from upslope.ledger.status import SHEET

FILE = "ledger.sqlite"
_APPLICATION = 0x55505350  # "UPSP" in the header of the file: a ledger and not just any database
_VERSION = 3
"""2: annotators pass, correct and take back; runs are extended. 3: events form a chain (`chain`).
Earlier ones are read, and gone on with as version 3."""
_VIEW = """
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
{_VIEW}
"""
_BUSY_SECONDS = 60.0  # to wait for readers and copies; each takes a moment
_HALF_WRITTEN = (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY)
"""What SQLite says of a file that it must mend first, to who may not write."""
META = ("config", "environment", "info")
MISSING = "absent"

Differences = Mapping[str, tuple[Any, Any]]
"""Key of the configuration, as `training.epochs` -> (value recorded, value given)."""


class Ledger:
    """The ledger of a run directory, open for writing and locked against other processes.

    config: what the run is; it must equal the one that is recorded, except for what `reconcile`
    takes: given the differences, the state and the info, it returns the events that make up for
    them, and raises what it cannot take. Without it, no difference is taken. environment: where
    the run began. info: strategy, seed, primary figure and sizes.

    Raises:
        RunError: locked by another process, of another configuration, damaged, foreign, or on a
            disk that is full.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        info: Mapping[str, Any],
        reconcile: Callable[[Differences, State, Mapping[str, Any]], Sequence[Event]] | None = None,
    ) -> None:
        self.folder = folder
        self.path = folder / FILE
        with disk_errors(folder):
            make_folder(folder)
        self._lock = RunLock(folder)
        try:
            _refuse_lost(folder)
            with sqlite_errors(self.path):
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_SECONDS)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                if _is_empty(self._db):
                    self._create({"config": config, "environment": environment, "info": info})
                elif 1 <= _version(self._db) < _VERSION:
                    self._upgrade()
                self._settle()
            self.meta, self.state, self._end = read_ledger(self._db, self.path)
            differences = _differences(self.state.config(self.meta["config"]), config)
            events = reconcile(differences, self.state, self.meta["info"]) if reconcile else ()
            if events:
                self.record(*events)
                differences = _differences(self.state.config(self.meta["config"]), config)
            refuse(differences, folder)
        except BaseException:
            self.close()
            raise

    def _create(self, meta: Mapping[str, Any]) -> None:
        rows = {key: _json(value) for key, value in meta.items()}
        rows[CHAIN] = _json({"start": start_of(rows, ()), "after": 0})
        create_tables(self._db, rows)

    def _upgrade(self) -> None:
        """Make an earlier ledger one of this version: its events stay, and the chain begins after
        them, from all of them."""
        read_ledger(self._db, self.path)  # nothing damaged or foreign is sealed
        meta = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        rows = self._db.execute(f"SELECT {COLUMNS} FROM events ORDER BY number").fetchall()
        chain = {"start": start_of(meta, rows), "after": rows[-1][0] if rows else 0}
        self._db.executescript(
            f"BEGIN IMMEDIATE;\nDROP VIEW IF EXISTS labels;\n{_VIEW}\n"
            "ALTER TABLE events ADD COLUMN chain TEXT;\n"
            f"INSERT INTO meta VALUES ({_quote(CHAIN)}, {_quote(_json(chain))});\n"
            f"PRAGMA user_version = {_VERSION};\nCOMMIT;"
        )

    def record(self, *events: Event) -> State:
        """Record events in one transaction: after it they are on the disk, all or none.

        They are then in the ledger's file itself: a copy of it alone holds them.

        Raises:
            RunError: the disk is full, or another process has written here, which no lock kept
                out; nothing recorded before is lost.
            ValueError: an event that cannot follow those before it; nothing is recorded.
        """
        state = fold(events, self.state)
        rows, end = [], self._end
        for e in events:
            row = (end.number + 1, time.time(), e.cycle, e.kind, _json(e.body))
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
            self._settle()
        return state

    def labels_trained_on(self, cycle: int) -> Mapping[str, Label]:
        """Return the labels as they stood when the model of a cycle was trained."""
        state = State()
        with sqlite_errors(self.path):
            rows = self._db.execute("SELECT kind, cycle, body FROM events ORDER BY number")
            for kind, of, body in rows.fetchall():
                if kind == "trained" and of == cycle:
                    break
                state = fold([Event(kind, of, json.loads(body))], state)
        return state.labels

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

    def close(self) -> None:
        """Close the file and let other processes in."""
        if hasattr(self, "_db"):
            # A ledger at rest is one plain file; the log stays where something else still reads.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.close()
        self._lock.release()


def create_tables(
    db: sqlite3.Connection, meta: Mapping[str, str], rows: Sequence[Sequence[Any]] = ()
) -> None:
    """Make an empty database a ledger, in one transaction.

    meta: JSON texts by their keys. rows: events as `COLUMNS` and digest.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA.strip().split(";\n"):
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def chain_start(file: Path) -> tuple[int | None, int]:
    """Return the number of the first event with a chain, None without one, and the events' count.

    Raises:
        RunError: the ledger cannot be read.
    """
    with open_to_read(file) as db, sqlite_errors(file):
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        (count,) = db.execute("SELECT count(*) FROM events").fetchone()
    return chain_begins(meta), count


def has_begun(folder: Path) -> bool:
    """Whether a run is recorded in a folder; also where it is damaged, as reading it tells.

    A process that was killed as it began leaves a ledger without a table.
    """
    path = folder / FILE
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        with open_to_read(path) as db, sqlite_errors(path):
            return not _is_empty(db)
    except RunError:
        return True


def read_run(path: Path | str) -> RunResult:
    """Read a run directory, or its ledger file, while it runs or after.

    Raises:
        RunError: no ledger there, or one that is damaged or foreign.
    """
    given = Path(path)
    file = given / FILE if given.is_dir() else given
    if not file.is_file():
        raise RunError(
            f"Expected {given} to be a run directory, which holds {FILE}, but there is none. Give "
            "the folder of a run, or start one there."
        )
    with open_to_read(file) as db:
        meta, state, _ = read_ledger(db, file)
    config = state.config(meta["config"])
    info = dict(meta["info"])
    if state.changes:
        info |= {"cycles": config["experiment"]["cycles"], "pool": config["samples"]["pool"]}
    return RunResult(
        path=file.parent,
        config=config,
        environment=meta["environment"],
        info=info,
        cycles=state.cycles,
        initial=state.initial,
        labels=state.labels,
        pending=state.pending,
        finished=len(state.cycles) >= info["cycles"],
        passed=state.passed,
        changes=state.changes,
    )


def read_ledger(db: sqlite3.Connection, path: Path) -> tuple[dict[str, Any], State, End]:
    """Return what the run began with, its state, and the end of its chain of events.

    Raises:
        RunError: damaged, of another program, or of a later version.
    """
    with sqlite_errors(path):
        if _is_empty(db):
            raise RunError(
                f"Expected {path} to hold a run but nothing is recorded in it: the process that "
                "made it ended as it began. Run the same command again."
            )
        _check_application(db, path)
        if not 1 <= (version := _version(db)) <= _VERSION:
            raise RunError(
                f"Expected {path} to have ledger version 1 to {_VERSION} but it has {version}. "
                "Read it with the version of Upslope that wrote it."
            )
        db.execute("BEGIN")  # all of it as it is at one moment, while others write
        try:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            texts = dict(db.execute("SELECT key, value FROM meta").fetchall())
            chained = [name for _, name, *_ in db.execute("PRAGMA table_info(events)")]
            columns = COLUMNS if "chain" not in chained else f"{COLUMNS}, chain"
            rows = db.execute(f"SELECT {columns} FROM events ORDER BY number").fetchall()
        finally:
            db.execute("ROLLBACK")
        try:
            end = check_chain(texts, rows, expected=version == _VERSION or "chain" in chained)
            meta = {key: json.loads(texts[key]) for key in META}
            state = fold(
                Event(kind, cycle, json.loads(body)) for _, _, cycle, kind, body, *_ in rows
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise sqlite3.DatabaseError(f"its events do not add up: {error}") from error
    return meta, state, end


def _refuse_lost(folder: Path) -> None:
    """Raise RunError where a run has been and its ledger is gone or empty."""
    if has_begun(folder):
        return
    path = folder / FILE
    # Beside a file with content, a log may be all that a kill left of a ledger's first moment.
    log = path.with_name(f"{FILE}-wal") if not (path.is_file() and path.stat().st_size) else None
    left = [
        *(file.name for file in sorted(folder.glob("models/cycle-*.safetensors"))[:1]),
        *(name for name in ("training.safetensors", SHEET) if (folder / name).is_file()),
        *([log.name] if log and log.is_file() and log.stat().st_size > 0 else []),
    ]
    if left:
        what = "empty" if path.is_file() else "missing"
        raise RunError(
            f"Expected the ledger {path}, since {left[0]} is left of its run, but it is {what}. A "
            "run is not begun anew over another: restore the ledger from a copy, or choose another "
            "folder."
        )


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


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None,
        timeout=_BUSY_SECONDS,
    )  # fmt: skip


def _check_application(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION:
        raise RunError(
            f"Expected {path} to be a ledger of Upslope but it is another program's database. "
            "Choose another folder."
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _is_empty(db: sqlite3.Connection) -> bool:
    """A file without a table: new, or left by a kill before the first transaction."""
    return bool(db.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()[0])


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the ledger `path` into a RunError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            raise RunError(
                f"Expected room on the disk for {path} but SQLite says: {text}. Free some space "
                "and run the same command again: nothing recorded before is lost."
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


def refuse(differences: Differences, folder: Path) -> None:
    """Raise RunError where a run's configuration differs from the recorded one, naming the keys."""
    if differences:
        lines = [f"  {key}: {a} there, {b} now" for key, (a, b) in sorted(differences.items())]
        raise RunError(
            f"Expected the run in {folder} to have this configuration but it differs:\n"
            + "\n".join(lines)
            + "\nGo on with the configuration that it began with, or choose another folder."
        )


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Differences:
    before, now = _flat(stored), _flat(json.loads(_json(given)))
    values = {k: (before.get(k, MISSING), now.get(k, MISSING)) for k in before.keys() | now.keys()}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _json(value: Any) -> str:
    return json.dumps(value)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
