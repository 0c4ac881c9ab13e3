"""Signals: what a strategy may ask about a sample, computed with the model, shared by strategies.

    signal = build(Need.of("gradnorm", loss="entropy"))
    values = signal.compute(model, task, inputs)        # (n, ...)

A new signal is a file beside this one and a line in `SIGNALS`.
"""

from __future__ import annotations

from typing import cast

from upslope import tables
from upslope.options import Options
from upslope.pool import Need
from upslope.signals.base import FitContext, FittedSignal, Signal
from upslope.signals.committee import Committee
from upslope.signals.features import Features
from upslope.signals.gradnorm import ExpectedGradientLength, GradNorm
from upslope.signals.isal import Influence
from upslope.signals.mc_dropout import McDropout, McPosteriors
from upslope.signals.probabilities import Probabilities, Uncertainty
from upslope.signals.sraal import Sraal
from upslope.signals.vaal import Vaal

SIGNALS: dict[str, type[Options]] = {
    "probabilities": Probabilities,
    "uncertainty": Uncertainty,
    "features": Features,
    "gradnorm": GradNorm,
    "egl": ExpectedGradientLength,
    "mc-dropout": McDropout,
    "mc-posteriors": McPosteriors,
    "committee": Committee,
    "influence": Influence,
    "vaal": Vaal,
    "sraal": Sraal,
}


def build(need: Need) -> Signal:
    """The signal that a need names, with its options.

    One that has something to train first, a `FittedSignal`, has `fit`, which gives the signal.

    Raises:
        ConfigError: no such signal, no such option, or a value that the option may not take.
    """
    signal = tables.lookup("signal", SIGNALS, need.name)
    options = dict(need.options)
    return cast(
        Signal, signal(**tables.check_options(f"signal {need.name!r}", signal, options, ()))
    )


def describe() -> list[tables.Description]:
    """Every signal: its name, one line about it, its options with defaults and help."""
    return [tables.describe(name, signal, ()) for name, signal in SIGNALS.items()]


__all__ = ["SIGNALS", "FitContext", "FittedSignal", "Signal", "build", "describe"]
