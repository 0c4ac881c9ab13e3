"""Strategies as functions, from arrays to positions: no network, no data set, no run.

    from upslope.functional import badge

    positions = badge(probabilities, features, budget=50, seed=0)

Arrays are of NumPy or torch, on any device, one row per candidate. A function is made of each entry
of the registry whose signals can be read from such arrays, and chooses the positions that the
strategy does. Those that ask the network itself, gradient norms and what trains networks of its
own, are refused by name: `upslope.query` chooses with them.
"""

from __future__ import annotations

from upslope import strategies
from upslope.errors import ConfigError
from upslope.functional.arrays import SIGNALS
from upslope.functional.functions import Select, function_of, reads_arrays

FUNCTIONS: dict[str, Select] = {
    name.replace("-", "_"): function_of(name, strategy)
    for name, strategy in strategies.REGISTRY.items()
    if reads_arrays(strategy)
}
"""Name -> function, for every strategy that reads arrays alone."""


globals().update(FUNCTIONS)
__all__ = [*FUNCTIONS]


def __getattr__(name: str) -> Select:
    strategy = strategies.REGISTRY.get(name.replace("_", "-"))
    if strategy is None:
        raise AttributeError(f"module 'upslope.functional' has no attribute {name!r}")
    needs = [need.name for need in strategy().needs if need.name not in SIGNALS] or ["labels"]
    raise ConfigError(
        f"Expected a strategy that reads arrays alone but {strategy.name} asks the network for "
        f"{', '.join(needs)}. Choose with upslope.query(model, pool, strategy={strategy.name!r})."
    )
