"""Configuration: YAML and `--set a.b=c`, checked as a whole, and what it stands for.

    config = load("configs/digits.yaml", sets=["training.epochs=5"])
    job = assemble(config)            # data set, task, model factory, strategies
    job = fitting(config, job)        # told before any training: strategies that cannot work

Sections: `data`, `model`, `task` (a `name`, the rest are its options), `strategies` (names, or
mappings with `name` and options), `seeds` (how many, or a list), `experiment`, `training`,
`device`, `full_data` (seeds that get a model trained on every label of the pool).
"""

from __future__ import annotations

from upslope.config.assemble import Job, Plan, Trained, assemble, fitting, plan, scorers, trained
from upslope.config.read import load
from upslope.config.schema import Choice, Config, parse

__all__ = [
    "Choice",
    "Config",
    "Job",
    "Plan",
    "Trained",
    "assemble",
    "fitting",
    "load",
    "parse",
    "plan",
    "scorers",
    "trained",
]
