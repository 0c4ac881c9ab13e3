"""What a study will do and cost, before it does it."""

from __future__ import annotations

from dataclasses import dataclass

from upslope.config import Config, Estimate, Plan, estimate, outlined, plan
from upslope.errors import DataError
from upslope.reproduction.bench import Bench

NOT_COUNTED = (
    "Not counted: what is measured on finished runs (Tables 1, 2, 4, 5, Figure 3), the deeper "
    "network of Table 6, and the trainings of equal steps."
)


@dataclass(frozen=True)
class Cost:
    """missing: why sizes are the published ones, empty where the data is at hand."""

    config: Config
    plan: Plan
    estimate: Estimate
    missing: str = ""

    @property
    def seconds(self) -> float:
        """Of all runs, the workers sharing them."""
        return self.estimate.total / min(self.config.workers, len(self.config.seeds))


def cost(bench: Bench, name: str) -> Cost:
    """Measure a few steps of a study, on its data or, where that is missing, at published sizes.

    Raises:
        DataError: the data is missing, and its sizes are not known.
    """
    config, missing = bench.config(name), ""
    try:
        job = bench.opened(name).job
    except DataError as error:
        outline = outlined(config)
        if outline is None:
            raise
        job, missing = outline, str(error)
    planned = plan(config, job)
    return Cost(config, planned, estimate(config, job, planned), missing)
