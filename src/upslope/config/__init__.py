"""Configuration: YAML and `--set a.b=c`, checked as a whole, and what it stands for.

    config = load("configs/digits.yaml", sets=["training.epochs=5"])
    setup = assemble(config)                  # data set, task, model factory, strategies
    setup = check_compatible(config, setup)   # told before any training: what cannot work
    costs = estimate(config, setup, plan(config, setup))  # from a few steps: time, memory

Sections: `data`, `model`, `task` (a `name`, the rest are its options), `strategies` (names, or
mappings with `name` and options), `seeds` (how many, or a list), `experiment`, `training`,
`device`, `full_data` (seeds that get a model trained on every label of the pool).
"""

from __future__ import annotations

from upslope.config.assemble import (
    Setup,
    assemble,
    check_compatible,
    data_options,
    data_place,
)
from upslope.config.defaults import DefaultStrategy, default_strategy, strategy_begun_with
from upslope.config.estimate import Estimate, estimate
from upslope.config.evidence import warnings
from upslope.config.plan import Plan, assemble_from_published_sizes, plan, size_check, to_plan
from upslope.config.pool_plan import PoolPlan, plan_pool
from upslope.config.read import list_shipped, load
from upslope.config.recorded import Source, find_run, find_source, run_folder
from upslope.config.reopen import open_run, recorded_pool, recorded_run
from upslope.config.schema import Choice, Config, parse
from upslope.config.scoring import (
    TrainedModel,
    find_strategies,
    find_strategy,
    load_trained_model,
    scorers,
)
from upslope.config.settings_list import describe_settings
from upslope.config.sharded import open_sharded, parse_shape

__all__ = [
    "Choice",
    "Config",
    "DefaultStrategy",
    "Estimate",
    "Plan",
    "PoolPlan",
    "Setup",
    "Source",
    "TrainedModel",
    "assemble",
    "assemble_from_published_sizes",
    "check_compatible",
    "data_options",
    "data_place",
    "default_strategy",
    "describe_settings",
    "estimate",
    "find_run",
    "find_source",
    "find_strategies",
    "find_strategy",
    "list_shipped",
    "load",
    "load_trained_model",
    "open_run",
    "open_sharded",
    "parse",
    "parse_shape",
    "plan",
    "plan_pool",
    "recorded_pool",
    "recorded_run",
    "run_folder",
    "scorers",
    "size_check",
    "strategy_begun_with",
    "to_plan",
    "warnings",
]
