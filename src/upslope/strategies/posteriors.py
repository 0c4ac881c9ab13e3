"""The signals of a posterior at a temperature, as strategies ask for them."""

from __future__ import annotations

from typing import Any

from upslope.pool import Need

Temper = float | str
"""A number, or "fitted"."""


def posterior_need(temperature: Temper, *, labelled: bool = False) -> Need:
    """Return the need of the posterior, over the labelled set too where `labelled`."""
    return Need.of("probabilities", labelled=labelled, **_at(temperature))


def uncertainty_need(measure: str, temperature: Temper) -> Need:
    """Return the need of an uncertainty that is read from the posterior."""
    return Need.of("uncertainty", measure=measure, **_at(temperature))


def gradient_need(signal: str, temperature: Temper, **options: Any) -> Need:
    """Return the need of a gradient norm whose loss is read from the posterior."""
    return Need.of(signal, **options, **_at(temperature))


def _at(temperature: Temper) -> dict[str, Any]:
    # Left out at 1, so that a need is equal to, and as random as, what it was in older runs.
    return {} if temperature == 1 else {"temperature": temperature}
