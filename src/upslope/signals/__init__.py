"""Signals: what a strategy may ask about a sample, computed with the model, shared by strategies.

    signal = build(Need.of("gradnorm", loss="entropy"))
    values = signal.compute(model, task, inputs)        # (n, ...)

A new signal is a file beside this one and a line in `REGISTRY`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from upslope import registry
from upslope.autodiff import evaluating
from upslope.options import Options
from upslope.pool import Need
from upslope.signals.base import ChecksModel, FitContext, FittedSignal, HasTemperature, Signal
from upslope.signals.boundary import BoundaryLength
from upslope.signals.committee import Committee
from upslope.signals.contrastive import ContrastiveFeatures
from upslope.signals.extracted import ExtractedFeatures
from upslope.signals.feature_dropout import FeatureDropout
from upslope.signals.features import Features
from upslope.signals.gradient_sketch import GradientSketch
from upslope.signals.gradnorm import ExpectedGradientLength, GradNorm
from upslope.signals.isal import Influence
from upslope.signals.latents import Latents
from upslope.signals.mc_dropout import McDropout, McPosteriors
from upslope.signals.model_change import ModelChange
from upslope.signals.predicted_classes import PredictedClasses
from upslope.signals.predictions import Predictions
from upslope.signals.probabilities import Probabilities, Uncertainty
from upslope.signals.sraal import Sraal
from upslope.signals.temperature import FittedTemperature
from upslope.signals.vaal import Vaal
from upslope.tasks.base import Task

REGISTRY: dict[str, type[Options]] = {
    "probabilities": Probabilities,
    "predictions": Predictions,
    "uncertainty": Uncertainty,
    "predicted-classes": PredictedClasses,
    "features": Features,
    "feature-dropout": FeatureDropout,
    "extracted-features": ExtractedFeatures,
    "contrastive-features": ContrastiveFeatures,
    "gradnorm": GradNorm,
    "egl": ExpectedGradientLength,
    "gradient-sketch": GradientSketch,
    "mc-dropout": McDropout,
    "mc-posteriors": McPosteriors,
    "committee": Committee,
    "model-change": ModelChange,
    "boundary-length": BoundaryLength,
    "influence": Influence,
    "vaal": Vaal,
    "sraal": Sraal,
    "latents": Latents,
}


_FORMER_NAMES = {"answers": "predictions"}
"""Names that strategies written earlier ask for -> the names of today."""


def build(need: Need) -> Signal:
    """The signal that a need names, with its options.

    One that has something to train first, a `FittedSignal`, has `fit`, which gives the signal.

    Raises:
        ConfigError: no such signal, no such option, or a value that the option may not take.
    """
    name = _FORMER_NAMES.get(need.name, need.name)
    signal = registry.lookup("signal", REGISTRY, name)
    options = dict(need.options)
    signal_built = signal(**registry.check_options(f"signal {need.name!r}", signal, options, ()))
    if isinstance(signal_built, HasTemperature) and signal_built.temperature == "fitted":
        return cast(Signal, FittedTemperature(cast(Options, signal_built)))
    return cast(Signal, signal_built)


def check(
    needs: Iterable[Need], model: nn.Module, task: Task, inputs: Tensor
) -> dict[Need, Tensor]:
    """Compute each signal once on a prepared batch, so that one that the model or the task cannot
    give is told before any training; returns them. Signals that must be fitted first are asked
    whether they can be; those that are not in the table belong to what trains along.

    The mode of every module is as before afterwards.

    needs: the signals. inputs: a prepared batch.

    Returns: need -> its values.

    Raises:
        UpslopeError: what the signal itself raises: no dropout layer, no features, dense logits.
    """
    values: dict[Need, Tensor] = {}
    with evaluating(model):
        for need in needs:
            is_in_registry = _FORMER_NAMES.get(need.name, need.name) in REGISTRY
            signal = build(need) if is_in_registry else None
            signal_of_module: object = signal
            if isinstance(signal_of_module, FittedTemperature):
                # No shape depends on the temperature.
                signal_of_module = signal = signal_of_module.at(1.0)
            if isinstance(signal_of_module, ChecksModel):
                signal_of_module.check(model, task, inputs)
            elif signal is not None and not isinstance(signal_of_module, FittedSignal):
                values[need] = signal.compute(model, task, inputs)
    return values


def describe() -> list[registry.Description]:
    """Every signal: its name, one line about it, its options with defaults and help."""
    return [registry.describe(name, signal, ()) for name, signal in REGISTRY.items()]


__all__ = ["REGISTRY", "FitContext", "FittedSignal", "Signal", "build", "check", "describe"]
