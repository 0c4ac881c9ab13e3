"""The time that a study will take; `upslope reproduce --dry-run` calls it."""

from __future__ import annotations

from dataclasses import dataclass

from upslope.config import Config, Estimate, Plan, assemble_from_published_sizes, estimate, plan
from upslope.errors import DataError
from upslope.reproduction.studies.runner import StudyRunner

NOT_COUNTED = (
    "Not counted: what is measured on finished runs (Tables 1, 2, 4, 5, Figure 3), the deeper "
    "network of Table 6, and the trainings of equal steps."
)


@dataclass(frozen=True)
class Cost:
    """The plan of a study, and what it will cost.

    config: its configuration. plan: sizes and steps. estimate: seconds and memory.
    missing: why published sizes were taken; empty where the data is at hand.
    """

    config: Config
    plan: Plan
    estimate: Estimate
    missing: str = ""

    @property
    def seconds(self) -> float:
        """Return the seconds until all runs are done, by as many workers as the study has."""
        return self.estimate.total / min(self.config.workers, len(self.config.seeds))


def estimate_cost(runner: StudyRunner, name: str) -> Cost:
    """Time a few steps of a study, on its data or, where that is missing, at published sizes.

    name: of the study.

    Raises:
        DataError: the data is missing, and its sizes are not known.
        ConfigError, ModelError: data, network and strategies do not fit together.
    """
    config, missing = runner.config(name), ""
    try:
        setup = runner.open(name).setup
    except DataError as error:
        # The plan of a study on a machine without its data is what a dry run is for.
        outline = assemble_from_published_sizes(config)
        if outline is None:
            raise
        setup, missing = outline, str(error)
    sizes = plan(config, setup)
    return Cost(config, sizes, estimate(config, setup, sizes), missing)
