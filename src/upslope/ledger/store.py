"""The ledger of a run: an event log (`log`) whose state is where Algorithm 1 stands.

`meta` holds what the run began with: config, environment, info.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import RunError
from upslope.ledger.chain import chain_begins
from upslope.ledger.events import Event, Label, State, fold
from upslope.ledger.log import (
    EventLog,
    LogFormat,
    is_begun,
    open_to_read,
    read_log,
    sqlite_errors,
    to_text,
)
from upslope.ledger.records import RunResult
from upslope.ledger.status import SHEET

FILE = "ledger.sqlite"
_APPLICATION = 0x55505350  # "UPSP" in the header of the file: a ledger and not just any database
_VERSION = 3
"""2: annotators pass, correct and take back; runs are extended. 3: events form a chain (`chain`).
Earlier ones are read, and gone on with as version 3."""
META = ("config", "environment", "info")
MISSING = "absent"
_MODELS, _MODEL, _CHECKPOINT = "models", "cycle-*.safetensors", "training.safetensors"
"""Where `experiment.model_store` keeps what is trained."""

FORMAT = LogFormat(FILE, _APPLICATION, _VERSION, META, fold)

Differences = Mapping[str, tuple[Any, Any]]
"""Key of the configuration, as `training.epochs` -> (value recorded, value given)."""


class Ledger(EventLog[State]):
    """The ledger of a run directory, open for writing and locked against other processes.

    config: what the run is; it must equal the one that is recorded, except for what `reconcile`
    takes: given the differences, the state and the info, it returns the events that make up for
    them, and raises what it cannot take. Without it, no difference is taken. environment: where
    the run began. info: strategy, seed, primary figure and sizes.

    folder: the run directory.

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
        super().__init__(
            folder, FORMAT, {"config": config, "environment": environment, "info": info}
        )
        try:
            differences = _differences(self.state.config(self.meta["config"]), config)
            events = reconcile(differences, self.state, self.meta["info"]) if reconcile else ()
            if events:
                self.record(*events)
                differences = _differences(self.state.config(self.meta["config"]), config)
            refuse(differences, folder)
        except BaseException:
            self.close()
            raise

    def _check_folder(self) -> None:
        """Raise RunError where a run has been and its ledger is gone or empty."""
        _refuse_lost(self.folder)

    @property
    def network(self) -> Mapping[str, Any]:
        """Return what is recorded of the network; empty in ledgers of earlier versions."""
        network: Mapping[str, Any] = self.state.network or self.meta["info"].get("network", {})
        return network

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

    def digests_of_model(self, cycle: int) -> dict[str, str]:
        """Return the SHA-256 of each file of a cycle's model, as `ModelStore.save` gave them."""
        with sqlite_errors(self.path):
            (text,) = self._db.execute(
                "SELECT body FROM events WHERE kind = 'trained' AND cycle = ?", (cycle,)
            ).fetchone()
        body = json.loads(text)
        return {key: body[key] for key in ("sha256", "companion_sha256") if key in body}

    def ids_withdrawn(self) -> frozenset[str]:
        """Return the ids whose answers or passes were taken back at some time."""
        with sqlite_errors(self.path):
            rows = self._db.execute("SELECT body FROM events WHERE kind = 'taken_back'").fetchall()
        bodies = [json.loads(body) for (body,) in rows]
        return frozenset(i for body in bodies for i in (*body["labels"], *body["passed"]))


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
    """Say whether a run is recorded in a folder, sound or damaged."""
    return is_begun(folder / FILE)


def check_is_folder(path: Path) -> None:
    """Raise RunError where there is no folder at a path that is to hold runs."""
    if path.is_dir():
        return
    if path.exists():
        raise RunError(
            f"Expected the folder of a run, or one above runs, but {path} is a file. Give the "
            f"folder in which {FILE} lies."
        )
    raise RunError(
        f"Expected {path} to be the folder of a run, or one above runs, but there is no such "
        "folder."
    )


def run_folders(path: Path) -> list[Path]:
    """Return the folders of all runs in a folder, itself included, in the order of their names.

    Raises:
        RunError: no such folder, or no run in it.
    """
    check_is_folder(path)
    folders = folders_of_runs(path)
    if not folders:
        raise RunError(
            f"Expected {path} to hold runs, each with a {FILE}, but there is none. Start one with "
            "`upslope compare` or `upslope run`."
        )
    return folders


def folders_of_runs(path: Path) -> list[Path]:
    """Return the folders at or below a path in which a run is, in the order of their names; of one
    whose ledger is gone, what it has trained tells: reading it raises the error.
    """
    folders = set()
    for folder, _, names in os.walk(path):
        if FILE in names or _CHECKPOINT in names:
            folders.add(Path(folder))
        if Path(folder).name == _MODELS and any(Path(name).match(_MODEL) for name in names):
            folders.add(Path(folder).parent)
    return sorted(folders)


def read_run(path: Path | str) -> RunResult:
    """Return what a run directory, or its ledger file, holds, while it runs or after.

    path: the folder or the file.

    Raises:
        RunError: no ledger there, or one that is damaged or foreign.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> info = {"strategy": "margin", "seed": 0, "primary": "accuracy", "cycles": 2}
        >>> with TemporaryDirectory() as folder:
        ...     Ledger(Path(folder), config={}, environment={}, info=info).close()
        ...     read_run(folder).strategy
        'margin'
    """
    run_path = Path(path)
    file = run_path / FILE if run_path.is_dir() else run_path
    if run_path.is_dir() and has_trained(run_path):
        _refuse_lost(run_path)  # no run that has only begun, which has no models
    if not file.is_file():
        raise RunError(
            f"Expected {run_path} to be a run directory, which holds {FILE}, but there is none. "
            "Give "
            "the folder of a run, or start one there."
        )
    with open_to_read(file) as db:
        meta, state, _ = read_log(db, file, FORMAT)
    config = state.config(meta["config"])
    info = {**meta["info"], **({"network": state.network} if state.network else {})}
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
        labels_from=state.labels_from,
        unreadable=tuple(sorted(state.skipped)),
    )


def has_trained(folder: Path) -> bool:
    """Say whether a run has trained, or begun to train, in a folder."""
    return any((folder / _MODELS).glob(_MODEL)) or (folder / _CHECKPOINT).is_file()


def _refuse_lost(folder: Path) -> None:
    """Raise RunError where a run has been and its ledger is gone or empty."""
    if has_begun(folder):
        return
    path = folder / FILE
    # Beside a file with content, a log may be all that a kill left of a ledger's first moment.
    log = path.with_name(f"{FILE}-wal") if not (path.is_file() and path.stat().st_size) else None
    left = [
        *(file.name for file in sorted((folder / _MODELS).glob(_MODEL))[:1]),
        *(name for name in (_CHECKPOINT, SHEET) if (folder / name).is_file()),
        *([log.name] if log and log.is_file() and log.stat().st_size > 0 else []),
    ]
    if left:
        what = "empty" if path.is_file() else "missing"
        raise RunError(
            f"Expected the ledger {path}, since {left[0]} is left of its run, but it is {what}. A "
            "run is not begun anew over another: restore the ledger from a copy, or choose another "
            "folder."
        )


def refuse(differences: Differences, folder: Path) -> None:
    """Raise RunError where a run's configuration differs from the recorded one, naming the keys.

    differences: key -> (recorded, now). folder: the run directory.
    """
    if differences:
        lines = [f"  {key}: {a} there, {b} now" for key, (a, b) in sorted(differences.items())]
        raise RunError(
            f"Expected the run in {folder} to have this configuration but it differs:\n"
            + "\n".join(lines)
            + "\nGo on with the configuration that it began with, or choose another folder."
        )


def _differences(old_value: Mapping[str, Any], new_value: Mapping[str, Any]) -> Differences:
    before, now = _flat(old_value), _flat(json.loads(to_text(new_value)))
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
