"""Open a run again from what its ledger says, without the command that began it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from upslope.config.assemble import Setup, assemble, data_place
from upslope.config.read import load
from upslope.config.recorded import find_run
from upslope.config.schema import Config
from upslope.errors import ConfigError
from upslope.experiment import Experiment
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
    known = run.info.get("root")
    if root is not None or known is not None:
        document["data"]["root"] = root if root is not None else known
    return folder, load(
        {**document, "strategies": [dict(run.config["strategy"])], "seeds": [run.seed]}
    )


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
