"""The temperature of a posterior: p = softmax(z / T), and how T is fitted.

A network trained until it has learnt its few labels is far too sure of everything else, and a score
that reads its posterior cannot tell near from far. As Bae et al. (ICLR 2025) do before they choose,
a network is trained anew on 70% of the labels; T is that among 1, 1.1, ..., 19.9 which leaves the
other 30% the smallest expected calibration error,

    ECE(T) = sum over bins b of |b| / n * | accuracy of b - mean confidence of b |

15 bins of equal width by confidence (Guo et al., ICML 2017); of equal ones, the smallest T. With
fewer than 4 labels T is 1. Of masks, every k-th labelled position is taken, 100,000 at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import ConfigError
from upslope.options import Options
from upslope.posterior import BINS, calibration_bins
from upslope.signals.base import FitContext, Signal
from upslope.signals.fitting import read
from upslope.tasks.base import IgnoresTargets

HELD_OUT = 0.3
LEAST = 4
BATCH = 256
POSITIONS = 100_000


def scale_logits(logits: Tensor, temperature: float | str) -> Tensor:
    """Return the logits divided by the temperature.

    Raises:
        ConfigError: the temperature is still to be fitted.
    """
    if isinstance(temperature, str):
        raise ConfigError(
            f"Expected a number for `temperature` but got {temperature!r}, which is fitted where "
            "signals are computed for a run. Give a number, or `fit` the signal first."
        )
    return logits if temperature == 1 else logits / temperature


@dataclass(frozen=True)
class FittedTemperature:
    """A signal of the posterior whose temperature is fitted to the labels first."""

    signal: Options

    @property
    def name(self) -> str:
        """The name of the signal that is wrapped."""
        return self.signal.name

    def at(self, temperature: float) -> Signal:
        """Return the signal with this temperature."""
        signal: Any = self.signal
        return cast(Signal, replace(signal, temperature=temperature))

    def fit(self, context: FitContext) -> Signal:
        """Return the signal with the temperature that calibrates it.

        Raises:
            ConfigError: there is no run whose training could be repeated.
        """
        return self.at(fit_temperature(context))


def fit_temperature(context: FitContext) -> float:
    """Return the temperature that calibrates networks trained on most of the labels."""
    if context.train is None:
        raise ConfigError(
            "Expected `temperature` to be a number here but got 'fitted', which trains a network "
            "on part of a run's labels. Give a number, as in {name: u-herding, temperature: 1}, or "
            "choose within a run."
        )
    n = len(context.labelled)
    if n < LEAST:
        return 1.0
    held_out = max(1, round(HELD_OUT * n))
    order = torch.randperm(n, generator=context.rng).tolist()
    model = context.train(sorted(order[held_out:]))
    places = sorted(order[:held_out])
    logits, targets = [], []
    with torch.no_grad():
        for start in range(0, held_out, BATCH):
            part = places[start : start + BATCH]
            outputs = model(read(context, [context.labelled[place] for place in part]))
            logits.append(_positions(context.task.logits(outputs).float().cpu()))
            targets.append(context.targets[part].flatten().long().cpu())
    z, y = torch.cat(logits), torch.cat(targets)
    valid = (y >= 0) & (y < z.shape[1])
    if isinstance(context.task, IgnoresTargets):
        valid &= y != context.task.ignore_index
    z, y = z[valid], y[valid]
    every = -(-len(y) // POSITIONS) or 1
    return calibrating_temperature(z[::every], y[::every])


def calibrating_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T among 1, 1.1, ..., 19.9 of least calibration error. logits: (n, C)."""
    if not len(targets):
        return 1.0
    temperatures = [step / 10 for step in range(10, 200)]
    errors = [calibration_error((logits / t).softmax(dim=1), targets) for t in temperatures]
    return temperatures[errors.index(min(errors))]


def calibration_error(p: Tensor, targets: Tensor) -> float:
    """Return the expected calibration error. p: (n, C); targets: (n,)."""
    confidence, answers = p.double().max(dim=1)
    right = (answers == targets).double()
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, calibration_bins(confidence), right - confidence)
    return float(gaps.abs().sum() / len(targets))


def _positions(logits: Tensor) -> Tensor:
    """(n, C, ...) -> (positions, C)."""
    return logits.movedim(1, -1).flatten(0, -2)
