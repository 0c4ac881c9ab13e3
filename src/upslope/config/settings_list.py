"""The sections `experiment` and `training` with their options, as `upslope list` shows them."""

from __future__ import annotations

from dataclasses import replace

from upslope import registry
from upslope.experiment import ExperimentSettings
from upslope.training import RECIPES, TrainingSettings

_RECIPE = registry.OptionInfo(
    "recipe",
    f"one of {', '.join(RECIPES)}",
    None,
    "name of a set of values; options beside it have the last word",
)


def describe_settings() -> list[registry.Description]:
    """Return what a configuration may hold under `experiment` and `training`.

    Without `experiment.seed`, which a configuration gives as `seeds`.
    """
    training = registry.describe(TrainingSettings.name, TrainingSettings, ())
    return [
        registry.describe(ExperimentSettings.name, ExperimentSettings, ("seed",)),
        replace(training, options=(_RECIPE, *training.options)),
    ]
