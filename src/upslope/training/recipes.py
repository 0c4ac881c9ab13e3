"""Recipes: names for sets of training options, each tuned once for one kind of task.

A recipe is read where settings are made, from `training.recipe` of a configuration or by
`TrainingSettings.from_recipe`. The settings, and what a run records, hold the values and not the
name: a run stays what it was when a recipe gets better values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upslope import registry

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fast": {
        "sample_passes": 100_000,
        "batch_size": 125,
        "optimizer": "muon",
        "lr": 0.2,
        "sgd_lr": 0.05,
        "momentum": 0.6,
        "weight_decay": 0.1,
        "schedule": "triangular",
        "label_smoothing": 0.2,
        "flip": "alternate",
        "whitening": True,
        "batch_statistics": "recomputed",
        "channels_last": True,
    },
}
"""name -> options of `TrainingSettings`. Each is described in `docs/training.md`."""


def with_recipe(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a recipe stands for, with `options` on top.

    `epochs` among them takes the place of the recipe's `sample_passes`.

    name: of the recipe.

    Raises:
        ConfigError: an unknown recipe.
    """
    values = dict(registry.lookup("recipe", RECIPES, name))
    if "epochs" in options:
        values.pop("sample_passes", None)
    return values | dict(options)
