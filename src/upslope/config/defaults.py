"""The strategy of `upslope run` where no configuration names one, by what was measured.

docs/verdict.md has the evidence, results/verdict the curves. It is about frozen features with few
labels; for everything else nothing was measured, and the strategy that costs one forward stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upslope.config.evidence import ONE_CLASS
from upslope.config.schema import Config
from upslope.ledger import read_run
from upslope.ledger.store import has_begun


@dataclass(frozen=True)
class DefaultStrategy:
    """name: of the strategy. why: a sentence for whoever did not choose it."""

    name: str
    why: str


def default_strategy(config: Config) -> DefaultStrategy:
    """Return the strategy for a data set, network and task.

    `u-herding` where features stay as they are and each sample has one class; `emcm` for numbers,
    which have no posterior; `margin` otherwise.

    config: its strategies are not looked at.
    """
    if config.task.name == "regression":
        return DefaultStrategy(
            "emcm",
            "published for regression, where there is no posterior; not measured here",
        )
    if config.freeze and config.task.name in ONE_CLASS:
        return DefaultStrategy(
            "u-herding",
            "first on frozen features with 2 to 20 labels per class: 3.3 to 4.1 points of area "
            "ahead of random (docs/verdict.md)",
        )
    where = "this task" if config.freeze else "networks whose features are trained"
    return DefaultStrategy(
        "margin", f"it costs one forward; for {where} no evidence speaks for another"
    )


def strategy_begun_with(folder: Path, config: Config) -> DefaultStrategy | None:
    """Return the strategy of a run that an earlier command without a strategy began in a folder.

    So the same command goes on with the same run, also where the default has changed since. None
    where there is no such run.

    folder: of the command. config: its seeds name the runs.
    """
    why = "the run in this folder has it"
    seed = f"seed-{config.seeds[0]}"
    now = default_strategy(config).name
    for name in (now, "margin"):  # what versions before took
        if has_begun(folder / name / seed):
            return DefaultStrategy(name, why)
    if has_begun(folder) and read_run(folder).strategy in (now, "margin"):
        return DefaultStrategy(read_run(folder).strategy, why)
    return None
