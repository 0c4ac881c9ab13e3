"""Networks that a run has trained: which data, network, classes and statistics they belong to.

`upslope score` and `upslope predict` take the folder of a run, a checkpoint in it, or a checkpoint
from anywhere; the first two carry their configuration in the ledger.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope import datasets
from upslope.checkpoints import file_sha256
from upslope.config.read import load
from upslope.config.schema import Config
from upslope.counts import list_some
from upslope.errors import ConfigError, ModelError, RunError
from upslope.ledger import RunResult, read_run
from upslope.ledger.store import FILE, check_is_folder, folders_of_runs

ENCODED_BY_POOL = ("table", "text")
"""Data sets whose inputs are scaled, or made into numbers, by what all rows of the pool hold."""

_OF_THE_POOL = ("limit", "test_limit", "validation", "test_share")
_MOST_NAMES = 8


@dataclass(frozen=True)
class Source:
    """A checkpoint, and what is known about it.

    config: data set, network and task. run: the run that trained it; None for a checkpoint from
    elsewhere. elsewhere: the data were asked from another place than the run's.
    """

    checkpoint: Path
    config: Config
    run: RunResult | None = None
    elsewhere: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the network was trained for; empty where not known."""
        return tuple(self.run.info["classes"]) if self.run else ()

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) that inputs were normalised by in training; None where not recorded."""
        if self.run is None or "mean" not in self.run.info or "mean" in self.config.data.options:
            return None
        if self.run.info.get("input_type") == "float":  # beside which statistics say nothing
            return (), ()
        return tuple(self.run.info["mean"]), tuple(self.run.info["std"])

    @property
    def input_type(self) -> str | None:
        """What numbers the network was trained on, as `datasets.readable.input_type` names them.

        Earlier versions did not record it: statistics are those of uint8. None where not known.
        """
        if self.run is None:
            return None
        recorded_type = self.run.info.get("input_type")
        return recorded_type or ("uint8" if self.run.info.get("mean") else None)


def find_source(
    path: Path | str,
    config: Path | None = None,
    *,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Source:
    """Return a checkpoint and the configuration that belongs to it.

    path: the folder of a run (its last model is taken), a folder above a single run, or a
    checkpoint, within a run or not. config: of a checkpoint that no run explains. sets,
    overrides: on top, as for `load`; with another `data.root` than the run's, all samples there
    are meant, whatever part of its own data the run took.

    Raises:
        ConfigError: several runs; a configuration beside a run that has its own, or none at all.
        RunError: no run there, or one that has trained nothing yet.
        ModelError: no such file; a checkpoint that is not the one which the run has recorded.
    """
    path, sets = Path(path), list(sets)
    if not path.exists():
        raise ModelError(
            f"Expected a checkpoint or the folder of a run at {path} but there is no such file or "
            "folder."
        )
    folder = run_folder(path)
    if folder is None:
        return Source(path, load(config, sets=sets, overrides=overrides))
    run = read_run(folder)
    checkpoint = _last_model(run) if path.is_dir() else path
    if not checkpoint.is_file():
        raise ModelError(
            f"Expected the network of the run's last cycle at {checkpoint} but there is no such "
            "file. Restore it from a copy, or give the checkpoint of another cycle."
        )
    _check_recorded(run, checkpoint)
    document = {
        key: dict(run.config[key]) for key in ("data", "model", "task") if key in run.config
    }
    if len(document) < 3:
        return Source(checkpoint, _without_record(path, config, sets, overrides), run)
    if config is not None:
        raise ConfigError(
            f"Expected no configuration beside {path}, whose run has its own, but got {config}. "
            "Leave it out, and change single values with --set."
        )
    settings = run.config.get("experiment", {})
    document["experiment"] = {
        key: settings[key] for key in ("score_batch", "on_corrupt") if key in settings
    }
    recorded_root = datasets.recorded_root(run.config, run.info)
    asked_root = load({}, sets=[s for s in sets if s.partition("=")[0].strip() == "data.root"]).root
    elsewhere = asked_root is not None and _is_elsewhere(
        str(document["data"].get("name")), asked_root, recorded_root
    )
    if elsewhere:  # limits and drawn parts are those of the run's own files
        document["data"] = {k: v for k, v in document["data"].items() if k not in _OF_THE_POOL}
    elif recorded_root is not None and Path(recorded_root).exists():
        document["data"]["root"] = recorded_root
    return Source(checkpoint, load(document, sets=sets, overrides=overrides), run, elsewhere)


def _is_elsewhere(name: str, asked_root: str, recorded_root: str | None) -> bool:
    """Return whether a data set is asked from another place than a run's, however both are written.

    Through links, by ~ and as the folder that the data set lies in, it is the same place.
    """
    place = datasets.root_of(name, asked_root)
    if place is None or recorded_root is None:
        return True
    return os.path.realpath(place) != os.path.realpath(recorded_root)


def find_run(path: Path | str) -> RunResult:
    """Return the run in a folder, or the only run below it.

    path: of the folder.

    Raises:
        ConfigError: several runs.
        RunError: none, or one that cannot be read.
    """
    path = Path(path)
    check_is_folder(path)
    folder = run_folder(path)
    assert folder is not None  # a folder that exists is a run or raises
    return read_run(folder)


def run_folder(path: Path) -> Path | None:
    """Return the folder of the run that a path is in, or is above; None for a checkpoint of none.

    Raises:
        RunError: a folder without a run.
        ConfigError: a folder with several.
    """
    if path.is_file():
        folder = path.absolute().parent.parent
        return folder if path.parent.name == "models" and (folder / FILE).is_file() else None
    if (path / FILE).is_file():
        return path
    folders = folders_of_runs(path)
    if not folders:
        raise RunError(
            f"Expected {path} to be the folder of a run, which holds {FILE}, or a checkpoint, but "
            "it is neither. Give runs/NAME/STRATEGY/seed-0 of a comparison, or a file."
        )
    if len(folders) > 1:
        names = list_some([*map(str, folders)], _MOST_NAMES)
        raise ConfigError(
            f"Expected one run but {path} holds {len(folders)}: {names}. Name one of them."
        )
    return folders[0]


def _last_model(run: RunResult) -> Path:
    if not run.cycles:
        raise RunError(
            f"Expected a trained network in {run.path} but none has been trained and evaluated "
            f"yet. `upslope status {shlex.quote(str(run.path))}` says what comes next in this run."
        )
    return run.path / run.cycles[-1].model_file


def _check_recorded(run: RunResult, checkpoint: Path) -> None:
    for cycle in run.cycles:
        if (run.path / cycle.model_file).absolute() == checkpoint.absolute():
            if file_sha256(checkpoint) != cycle.model_sha256:
                raise ModelError(
                    f"Expected {checkpoint} to be the network that the run recorded but its "
                    "content has changed since. Restore it from a copy, or move it out of the run "
                    "to use it as a checkpoint of its own."
                )
            return


def _without_record(
    path: Path,
    config: Path | None,
    sets: list[str],
    overrides: Mapping[str, Any] | None,
) -> Config:
    """A run that was begun in Python may have recorded neither data set nor network."""
    names = {s.partition("=")[0].strip().removesuffix(".name") for s in sets}
    if path.is_dir() and config is None and not {"data", "model"} <= names:
        raise ConfigError(
            f"Expected the run in {path} to have recorded its data set and network but it was "
            "begun in Python without them. Say which: -s data.name=NAME -s model.name=NAME, or a "
            'configuration; or give `Experiment` a `config` with "data", "model" and "task".'
        )
    return load(config, sets=sets, overrides=overrides)
