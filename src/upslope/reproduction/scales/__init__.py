"""The three scales: which studies there are, on which data, with which network, for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upslope import tables
from upslope.reproduction.scales.cpu import cpu
from upslope.reproduction.scales.declare import READINGS, Reading, Scale, Theory
from upslope.reproduction.scales.paper import paper
from upslope.reproduction.scales.smoke import smoke

__all__ = ["READINGS", "SCALES", "Reading", "Scale", "Theory", "scale"]

SCALES: Mapping[str, Callable[[Reading], Scale]] = {
    "smoke": smoke,
    "cpu": cpu,
    "paper": paper,
}
"""name -> what builds it from a reading."""


def scale(name: str, reading: str = "code") -> Scale:
    """The studies of a scale in one reading.

    Raises:
        ConfigError: an unknown scale or reading.
    """
    build: Callable[[Reading], Scale] = tables.lookup("scale", SCALES, name)
    return build(tables.lookup("reading", READINGS, reading))
