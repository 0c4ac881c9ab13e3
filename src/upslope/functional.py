"""Strategies as functions, from arrays to positions: no network, no data set, no run.

    from upslope.functional import badge

    positions = badge(probabilities, features, budget=50, seed=0)

Arrays are of NumPy or torch, on any device, one row per candidate. A function is made of each entry
of the registry whose signals can be read from such arrays, and chooses the positions that the
strategy does. Those that ask the network itself, gradient norms and what trains networks of its
own, are refused by name: `upslope.query` chooses with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope import strategies
from upslope.errors import ConfigError, DataError
from upslope.pool import CostBudgeted, Need, PoolView
from upslope.registry import describe
from upslope.seeds import generator
from upslope.signals import mc_dropout, probabilities
from upslope.signals.temperature import tempered
from upslope.strategies.base import QueryStrategy
from upslope.strategies.features import Features, Steps

Array = NDArray[Any] | Tensor
Select = Callable[..., list[int]]


@dataclass(frozen=True)
class Argument:
    """An array that functions take. help: one line for their docstrings; dimensions: how many it
    has; posterior: its last dimension sums to 1; example: Python that makes one of n rows."""

    name: str
    help: str
    dimensions: int
    posterior: bool
    example: str


PROBABILITIES = Argument(
    "probabilities",
    "(n, C) posteriors, rows that sum to 1",
    2,
    True,
    "rng.dirichlet(np.ones(3), size={n})",
)
FEATURES = Argument(
    "features",
    "(n, d) features, as of the last layer but one",
    2,
    False,
    "rng.normal(size=({n}, 8))",
)
GRADIENTS = Argument(
    "gradients",
    "(n, d) gradients, or sketches of them",
    2,
    False,
    "rng.normal(size=({n}, 8))",
)
POSTERIORS = Argument(
    "posteriors",
    "(n, T, C) posteriors of T networks: dropout passes, or members of a committee",
    3,
    True,
    "rng.dirichlet(np.ones(3), size=({n}, 6))",
)
ARGUMENTS = (PROBABILITIES, FEATURES, GRADIENTS, POSTERIORS)
"""In the order in which functions take them."""

Reader = Callable[[Need, Tensor], Tensor]


def _as_it_is(need: Need, values: Tensor) -> Tensor:  # noqa: ARG001
    return values


def _posterior(need: Need, p: Tensor) -> Tensor:
    """The posterior at the temperature of the need. p: (n, ..., C)."""
    temperature: Any = dict(need.options).get("temperature", 1.0)
    if temperature == 1:
        return p
    smallest = torch.finfo(p.dtype).tiny
    return tempered(p.clamp(min=smallest).log(), temperature).softmax(dim=-1)


def _measure(measures: Mapping[str, Callable[[Tensor], Tensor]]) -> Reader:
    return lambda need, p: measures[str(dict(need.options)["measure"])](_posterior(need, p))


SIGNALS: dict[str, tuple[Argument, Reader]] = {
    "probabilities": (PROBABILITIES, _posterior),
    "uncertainty": (PROBABILITIES, _measure(probabilities.MEASURES)),
    "features": (FEATURES, _as_it_is),
    "gradient-sketch": (GRADIENTS, _as_it_is),
    "mc-posteriors": (POSTERIORS, _as_it_is),
    "mc-dropout": (POSTERIORS, _measure(mc_dropout.MEASURES)),
    "committee": (POSTERIORS, lambda _, p: mc_dropout.bald(p)),
}
"""Signal -> the array that it is read from, and how."""


def reads_arrays(strategy: type[QueryStrategy]) -> bool:
    """Tell whether every signal of a strategy can be read from arrays, and nothing else is read."""
    beside = strategy.reads_labels or strategy.sees_labels
    return not beside and all(need.name in SIGNALS for need in strategy().needs)


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
    """
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
    return [int(chosen) for chosen in strategy.select(view, budget, rng).ids]


def _ids(prefix: str, count: int) -> list[str]:
    """Ids whose order is that of the rows, as strategies break ties by ids."""
    width = len(str(count))
    return [f"{prefix}{i:0{width}d}" for i in range(count)]


def function_of(name: str, strategy: type[QueryStrategy]) -> Select:
    """Make the function of a strategy, with its signature and docstring."""
    needs = strategy().needs
    arguments = _arguments(needs)
    beside = _arguments(need for need in needs if need.labelled)
    options = _options(strategy)

    def select(*args: Any, **given: Any) -> list[int]:
        bound = signature.bind(*args, **given)
        bound.apply_defaults()
        values = bound.arguments
        arrays = {a.name: as_tensor(values[a.name], a, a.name) for a in arguments}
        size = _size(arrays) if arguments else _whole(values["size"])
        labelled = {
            a.name: as_tensor(values[f"labelled_{a.name}"], a, f"labelled_{a.name}")
            for a in beside
            if values[f"labelled_{a.name}"] is not None
        }
        if labelled and len(labelled) < len(beside):
            raise DataError(
                f"Expected {' and '.join(f'labelled_{a.name}' for a in beside)} together but got "
                f"{', '.join(f'labelled_{key}' for key in labelled)} alone."
            )
        _size(labelled)
        _check_widths(arrays, labelled)
        built = strategies.build(name, **{key: values[key] for key in options})
        return select_from_arrays(built, arrays, labelled, size, values["budget"], values["seed"])

    signature = _signature(arguments, beside, strategy, options)
    select.__name__ = select.__qualname__ = name.replace("-", "_")
    select.__signature__ = signature  # type: ignore[attr-defined]
    select.__doc__ = _docstring(name, strategy, arguments, beside, options)
    return select


def _arguments(needs: Iterable[Need]) -> list[Argument]:
    wanted = {SIGNALS[need.name][0] for need in needs}
    return [argument for argument in ARGUMENTS if argument in wanted]


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
        f"labelled_{a.name}: the same of the m labelled samples; None for nothing labelled."
        for a in beside
    ]
    lines += [f"{key}: {helps[key]}." for key in options]
    function = name.replace("-", "_")
    made = [f">>> {a.name} = {a.example.format(n=100)}" for a in arguments]
    made += [f">>> labelled_{a.name} = {a.example.format(n=10)}" for a in beside]
    call = [*(a.name for a in arguments), *(() if arguments else ("100",)), "budget=5"]
    call += [f"labelled_{a.name}=labelled_{a.name}" for a in beside]
    needs_numpy = [">>> import numpy as np", ">>> rng = np.random.default_rng(0)"] if made else []
    example = [
        f">>> from upslope.functional import {function}",
        *needs_numpy,
        *made,
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
            "    DataError: arrays of other shapes, or rows that are no posteriors.",
            "    SelectionError: a budget above the candidates, NaN or infinity.",
            "",
            f"Reference: {strategy.reference}.",
            "",
            *example,
        ]
    )


def as_tensor(values: Any, argument: Argument, name: str) -> Tensor:
    """Return an array as a tensor on the CPU, floats of 32 or 64 bits.

    Raises:
        DataError: another number of dimensions, or rows that are no posteriors.
    """
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    tensor = tensor.detach().cpu()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if tensor.ndim != argument.dimensions or not len(tensor):
        raise DataError(
            f"Expected `{name}` to be {argument.help} but got shape {tuple(tensor.shape)}."
        )
    if argument.posterior:
        low, total = float(tensor.min()), tensor.sum(dim=-1)
        if low < 0 or not bool(((total - 1).abs() < 1e-2).all()):
            finite = bool(torch.isfinite(tensor).all())
            raise DataError(
                f"Expected the rows of `{name}` to be posteriors, of at least 0 and a sum of 1, "
                f"but got values from {low:g} and sums from {float(total.min()):g} to "
                f"{float(total.max()):g}. "
                + ("Logits become posteriors by a softmax." if finite else "Look at NaN values.")
            )
    return tensor


def _size(arrays: dict[str, Tensor]) -> int:
    """The number of rows. Raises DataError where arrays differ in it."""
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            "Expected arrays of one length, a row per sample, but got "
            f"{', '.join(f'{name} {size}' for name, size in sizes.items())}."
        )
    return next(iter(sizes.values()), 0)


def _check_widths(arrays: dict[str, Tensor], labelled: dict[str, Tensor]) -> None:
    for name, values in labelled.items():
        if values.shape[1:] != arrays[name].shape[1:]:
            raise DataError(
                f"Expected `labelled_{name}` to have rows as those of `{name}`, "
                f"{tuple(arrays[name].shape[1:])}, but got {tuple(values.shape[1:])}."
            )


def _whole(size: Any) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise DataError(f"Expected `size`, the number of candidates, at least 1, but got {size!r}.")
    return size


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
