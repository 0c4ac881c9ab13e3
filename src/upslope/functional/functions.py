"""Makes the function of a strategy: its signature, its docstring, and its choice."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import torch
from torch import Tensor

from upslope import strategies
from upslope.errors import ConfigError, DataError
from upslope.functional.arrays import (
    ARGUMENTS,
    SIGNALS,
    Argument,
    as_tensor,
    check_widths,
    size_of,
)
from upslope.pool import CostBudgeted, Need, PoolView
from upslope.registry import describe
from upslope.seeds import generator
from upslope.strategies.base import QueryStrategy
from upslope.strategies.features import Features, Steps

Select = Callable[..., list[int]]


def reads_arrays(strategy: type[QueryStrategy]) -> bool:
    """Tell whether every signal of a strategy can be read from arrays, and nothing else is read."""
    beside = strategy.reads_labels or strategy.sees_labels
    return not beside and all(need.name in SIGNALS for need in strategy().needs)


def function_of(name: str, strategy: type[QueryStrategy]) -> Select:
    """Make the function of a strategy, with its signature and docstring."""
    needs = strategy().needs
    arguments = _arguments(needs)
    beside = _arguments(need for need in needs if need.labelled)
    options = _options(strategy)

    def select(*args: Any, **named_values: Any) -> list[int]:
        bound = signature.bind(*args, **named_values)
        bound.apply_defaults()
        values = bound.arguments
        arrays = {a.name: as_tensor(values[a.name], a, a.name) for a in arguments}
        size = size_of(arrays) if arguments else _whole("size", values["size"])
        labelled = {
            a.name: as_tensor(values[f"labelled_{a.name}"], a, f"labelled_{a.name}", least=0)
            for a in beside
            if values[f"labelled_{a.name}"] is not None
        }
        if labelled and len(labelled) < len(beside):
            raise DataError(
                f"Expected {' and '.join(f'labelled_{a.name}' for a in beside)} together but got "
                f"{', '.join(f'labelled_{key}' for key in labelled)} alone."
            )
        size_of(labelled)
        check_widths(arrays, labelled)
        strategy_built = strategies.build(name, **{key: values[key] for key in options})
        budget, seed = _whole("budget", values["budget"]), values["seed"]
        if not isinstance(seed, torch.Generator):
            seed = _whole("seed", seed)
        return select_from_arrays(strategy_built, arrays, labelled, size, budget, seed)

    signature = _signature(arguments, beside, strategy, options)
    select.__name__ = select.__qualname__ = name.replace("-", "_")
    select.__module__ = "upslope.functional"
    select.__signature__ = signature  # type: ignore[attr-defined]
    select.__doc__ = _docstring(name, strategy, arguments, beside, options)
    return select


def select_from_arrays(
    strategy: QueryStrategy,
    arrays: dict[str, Tensor],
    labelled: dict[str, Tensor],
    size: int,
    budget: int,
    seed: int | torch.Generator,
) -> list[int]:
    """Return the positions that a strategy chooses among `size` candidates.

    arrays, labelled: argument -> rows of the candidates and of the labelled samples.

    Raises:
        DataError: no candidate.
    """
    if size < 1:
        raise DataError(f"Expected at least 1 candidate, by `size`, but got {size}.")
    count = len(next(iter(labelled.values()))) if labelled else 0
    needs = strategy.needs
    view = PoolView(
        _ids("", size),
        {need: SIGNALS[need.name][1](need, arrays[SIGNALS[need.name][0].name]) for need in needs},
        _ids("labelled-", count),
        {
            need: SIGNALS[need.name][1](need, labelled[SIGNALS[need.name][0].name])
            for need in needs
            if need.labelled and count
        },
    )
    rng = seed if isinstance(seed, torch.Generator) else generator(seed, "select", 0)
    return [int(position) for position in strategy.select(view, budget, rng).ids]


def _ids(prefix: str, count: int) -> list[str]:
    """Ids whose order is that of the rows, as strategies break ties by ids."""
    width = len(str(count))
    return [f"{prefix}{i:0{width}d}" for i in range(count)]


def _arguments(needs: Iterable[Need]) -> list[Argument]:
    names = {SIGNALS[need.name][0] for need in needs}
    return [argument for argument in ARGUMENTS if argument in names]


def _options(strategy: type[QueryStrategy]) -> tuple[str, ...]:
    """The options that change the choice; those that say which signal to compute are the caller's
    business here, and costs by ids have no meaning among positions."""
    of_signals = {key for need in strategy().needs for key, _ in need.options} - {"temperature"}
    if isinstance(strategy(), CostBudgeted):
        of_signals |= {"costs", "cost_budget", "cost_unit"}
    hints = get_type_hints(strategy, include_extras=True)
    return tuple(
        field.name
        for field in fields(strategy)
        if field.name not in of_signals and hints[field.name] not in (Features, Steps)
    )


def _signature(
    arguments: Sequence[Argument],
    beside: Sequence[Argument],
    strategy: type[QueryStrategy],
    options: Sequence[str],
) -> inspect.Signature:
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    default = {f.name: f.default for f in fields(strategy) if f.default is not MISSING}
    if default.get("temperature") == "fitted":
        default["temperature"] = 1.0  # there is no training to repeat
    return inspect.Signature(
        [
            *(inspect.Parameter(a.name, either, annotation="Array") for a in arguments),
            *(() if arguments else [inspect.Parameter("size", either, annotation="int")]),
            inspect.Parameter("budget", either, default=50, annotation="int"),
            inspect.Parameter("seed", either, default=0, annotation="int | torch.Generator"),
            *(
                inspect.Parameter(
                    f"labelled_{a.name}", keyword, default=None, annotation="Array | None"
                )
                for a in beside
            ),
            *(inspect.Parameter(key, keyword, default=default[key]) for key in options),
        ],
        return_annotation="list[int]",
    )


def _docstring(
    name: str,
    strategy: type[QueryStrategy],
    arguments: Sequence[Argument],
    beside: Sequence[Argument],
    options: Sequence[str],
) -> str:
    summary = (strategy.__doc__ or "").partition("\n")[0]
    helps = {option.name: option.help for option in describe(name, strategy, ()).options}
    lines = [f"{a.name}: {a.help}." for a in arguments] or ["size: number of candidates."]
    lines += ["budget: how many to choose. seed: of random numbers, as `upslope.query` takes it."]
    lines += [
        f"labelled_{a.name}: the same of the m labelled samples; None, or no rows, for none."
        for a in beside
    ]
    lines += [f"{key}: {helps[key]}." for key in options]
    function = name.replace("-", "_")
    examples = [f">>> {a.name} = {a.example.format(n=100)}" for a in arguments]
    examples += [f">>> labelled_{a.name} = {a.example.format(n=10)}" for a in beside]
    call = [*(a.name for a in arguments), *(() if arguments else ("100",)), "budget=5"]
    call += [f"labelled_{a.name}=labelled_{a.name}" for a in beside]
    needs_numpy = (
        [">>> import numpy as np", ">>> rng = np.random.default_rng(0)"] if examples else []
    )
    example = [
        f">>> from upslope.functional import {function}",
        *needs_numpy,
        *examples,
        f">>> positions = {function}(",
        f"...     {', '.join(call)}",
        "... )",
        ">>> len(positions), len(set(positions)), all(0 <= i < 100 for i in positions)",
        "(5, 5, True)",
    ]
    return "\n".join(
        [
            f"Choose positions by {name}: {summary[0].lower()}{summary[1:]}",
            "",
            *lines,
            "",
            "Returns positions in order of choice.",
            "",
            "Raises:",
            "    ConfigError: options of another kind; a budget, size or seed that is no number.",
            "    DataError: arrays of other shapes, or rows that are no posteriors.",
            "    SelectionError: a budget above the candidates, NaN or infinity.",
            "",
            f"Reference: {strategy.reference}.",
            "",
            *example,
        ]
    )


def _whole(name: str, value: Any) -> int:
    """Return a whole number of Python, NumPy or torch as an int. name: of the argument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        also = " or a torch.Generator" if name == "seed" else ""
        raise ConfigError(
            f"Expected `{name}` to be a whole number{also} but got {value!r}."
        ) from None
