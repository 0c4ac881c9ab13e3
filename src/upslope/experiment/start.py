"""The strategy that chooses the initial set, where it is not drawn at random.

Before the first label there is no trained network, so that only strategies will do that read
features: learnt from the pool without labels, of an extractor of the user's own, or, of inputs
that are not images, of the network with its initial weights, a random projection of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from upslope import strategies
from upslope.errors import ConfigError
from upslope.pool import InitialSelector, Strategy
from upslope.registry import OptionConflict, OptionsError, WrongOption
from upslope.strategies.features import CONTRASTIVE

_NEED_NO_TRAINING = ("features", "contrastive-features", "extracted-features", "latents")
_WHERE = "experiment"
_SMALLEST = 8  # pixels a side of the images that features are learnt from


def start_strategy(start: str | Mapping[str, Any], shape: Sequence[int] = ()) -> Strategy | None:
    """Return the strategy that `start` names, None for a random initial set.

    start: a name, or a mapping of `name` and options. shape: of one input; features of images are
    learnt from the pool, unless the options say which.

    Raises:
        ConfigError: an unknown strategy or option, or one that reads a trained network.
    """
    options = {"name": start} if isinstance(start, str) else dict(start)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise OptionsError([WrongOption(_WHERE, "start", "a strategy with its name", str(options))])
    if name == "random" and not options:
        return None
    if "steps" in options:  # of learning features: nothing else takes them
        options.setdefault("features", CONTRASTIVE)
    try:
        strategy: Any = strategies.build(name, **options)
    except ConfigError as error:
        raise OptionsError([OptionConflict(_WHERE, f"start: {error}")]) from error
    wrong = [need.name for need in strategy.needs if need.name not in _NEED_NO_TRAINING]
    if wrong or name == "random":
        able = [n for n in strategies.REGISTRY if _needs_no_labels(n)]
        wanted_words = f"random or one of {', '.join(able)}, which need no trained network,"
        got = f"{name!r}, which reads {', '.join(wrong) or 'options'}"
        raise OptionsError([WrongOption(_WHERE, "start", wanted_words, got)])
    images = len(shape) == 3 and min(shape[1:]) >= _SMALLEST
    learns = "features" in {field.name for field in fields(strategy)}
    if images and learns and strategy.features is None:
        strategy = replace(strategy, features=CONTRASTIVE)
    able_strategy: Strategy = strategy
    return able_strategy


def initial_selector(
    strategy: Strategy, start: str | Mapping[str, Any], shape: Sequence[int]
) -> tuple[Strategy | None, bool]:
    """Return what chooses the initial set, None for chance, and whether all strategies share it.

    strategy: of the run, which may have a way of its own. start, shape: as of `start_strategy`.

    Raises:
        ConfigError: both have a way; otherwise as `start_strategy` does.
    """
    own_start = strategy.start if isinstance(strategy, InitialSelector) else None
    shared_start = start_strategy(start, shape)
    if own_start is not None and shared_start is not None:
        raise ConfigError(
            f"Expected one way to choose the initial set but {strategy.name} has its own and "
            f"`experiment.start` is {start!r}. Leave one of them out."
        )
    return own_start or shared_start, own_start is None


def _needs_no_labels(name: str) -> bool:
    needs = strategies.build(name).needs
    return bool(needs) and all(need.name in _NEED_NO_TRAINING for need in needs)
