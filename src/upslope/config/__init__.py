"""Configuration: YAML and `--set a.b=c`, checked as a whole, and what it stands for.

    config = load("configs/digits.yaml", sets=["training.epochs=5"])
    job = assemble(config)            # data set, task, model factory, strategies
    job = fitting(config, job)        # told before any training: strategies that cannot work
    costs = estimate(config, job, plan(config, job))      # a few steps measured: time, memory

Sections: `data`, `model`, `task` (a `name`, the rest are its options), `strategies` (names, or
mappings with `name` and options), `seeds` (how many, or a list), `experiment`, `training`,
`device`, `full_data` (seeds that get a model trained on every label of the pool).
"""

from __future__ import annotations

from upslope.config.assemble import (
    Job,
    Plan,
    Trained,
    assemble,
    data_place,
    fitting,
    outlined,
    plan,
    scorers,
    to_plan,
    trained,
)
from upslope.config.estimate import Estimate, estimate
from upslope.config.read import load, shipped
from upslope.config.recorded import Source, find_source
from upslope.config.schema import Choice, Config, parse

__all__ = [
    "Choice",
    "Config",
    "Estimate",
    "Job",
    "Plan",
    "Source",
    "Trained",
    "assemble",
    "data_place",
    "estimate",
    "find_source",
    "fitting",
    "load",
    "outlined",
    "parse",
    "plan",
    "scorers",
    "shipped",
    "to_plan",
    "trained",
]
