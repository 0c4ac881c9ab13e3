"""Open a run again from what its ledger says, without the command that began it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from upslope import datasets
from upslope.config.assemble import Setup, assemble, data_options, data_place
from upslope.config.read import load
from upslope.config.recorded import find_run
from upslope.config.schema import Config
from upslope.datasets.base import Dataset
from upslope.errors import ConfigError
from upslope.experiment import Experiment
from upslope.ledger import RunResult
from upslope.progress import Observer, no_progress

_SECTIONS = ("data", "model", "task", "experiment", "training")


def recorded_run(path: Path, root: str | None = None) -> tuple[Path, Config]:
    """Return the folder of a run and the configuration that its ledger holds.

    path: the folder, or one above a single run. root: where the data lie now; where they lay when
    the run began, if not given.

    Raises:
        RunError: no run there.
        ConfigError: several; one begun in Python, whose ledger does not say what it is made of.
    """
    run = find_run(path)
    folder = run.path
    if missing := [section for section in (*_SECTIONS, "strategy") if section not in run.config]:
        raise ConfigError(
            f"Expected the run in {folder} to have recorded {', '.join(missing)} but it was begun "
            "in Python without. Open it there, and call `tell` of the Experiment."
        )
    document = {section: dict(run.config[section]) for section in _SECTIONS}
    document["experiment"].pop("seed", None)
    recorded_root = datasets.recorded_root(run.config, run.info)
    if root is not None or recorded_root is not None:
        document["data"]["root"] = root if root is not None else recorded_root
    return folder, load(
        {**document, "strategies": [dict(run.config["strategy"])], "seeds": [run.seed]}
    )


def recorded_pool(run: RunResult, progress: Observer = no_progress) -> tuple[Dataset, Config]:
    """Return the pool of a run as its data set lies there now, and the part of the configuration
    that says which it is.

    run: read from its folder. progress: is told of samples read.

    Raises:
        ConfigError: a run begun in Python, whose ledger does not say what its data are.
        DataError: its data are not where they lay.
    """
    if "name" not in run.config.get("data", {}):
        raise ConfigError(
            f"Expected the run in {run.path} to have recorded its data set but it was begun in "
            "Python without. Give `compare` or `Experiment` a `config` that has `data`."
        )
    data = dict(run.config["data"])
    if (root := datasets.recorded_root(run.config, run.info)) is not None:
        data["root"] = root
    skips = run.config.get("experiment", {}).get("on_corrupt", "fail")
    config = load({"data": data, "experiment": {"on_corrupt": skips}})
    splits = datasets.load(config.data.name, config.root, progress=progress, **data_options(config))
    return splits.pool, config


def open_run(
    folder: Path, config: Config, observer: Observer = no_progress, setup: Setup | None = None
) -> Experiment:
    """Return the run of a configuration's one strategy and first seed; nothing is trained.

    folder: of the run. config: of the run. observer: is told of progress. setup: what `assemble`
    made of the configuration, where it has been called already.

    Raises:
        DataError: its data are not where they lay.
        RunError: the folder is in use by another process, or the ledger is damaged.
    """
    setup = assemble(config, observer) if setup is None else setup
    ((_, strategy),) = setup.strategies.items()
    return Experiment(
        folder,
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=strategy,
        settings=replace(config.experiment, seed=config.seeds[0]),
        training=config.training,
        config=config.protocol(),
        root=data_place(config),
        device=config.device,
        observer=observer,
    )
