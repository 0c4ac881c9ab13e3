"""Checks before a run spends anything, and of every selection that a strategy makes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.batches import read_targets
from upslope.counts import format_count, list_some
from upslope.datasets.left_out import name_some
from upslope.datasets.splits import Splits
from upslope.errors import ConfigError, DataError, ModelError, SelectionError
from upslope.ledger import Label
from upslope.options import options_to_record
from upslope.pool import CostBudgeted, InitialSelector, PoolView, Selection, Strategy
from upslope.signals import check as check_signals
from upslope.strategies import QueryStrategy
from upslope.tasks.base import Task
from upslope.tasks.common import CommonTask
from upslope.training import auxiliary_module

_MOST_NAMES = 5
_MOST_LOOKED_AT = 8
"""Samples of a split among which one with a target is looked for: each may be a file of a mask."""


def positions(ids: Sequence[str]) -> dict[str, int]:
    """Id -> position.

    Raises:
        DataError: an empty pool, or ids that are not distinct.
    """
    if not len(ids):
        raise DataError("Expected samples in the pool but it is empty. Check the data set's files.")
    position = {id_: i for i, id_ in enumerate(ids)}
    if len(position) != len(ids):
        twice = next(id_ for i, id_ in enumerate(ids) if position[id_] != i)
        raise DataError(f"Expected the ids of the pool to be distinct but {twice!r} comes twice.")
    return position


def whole_number(name: str, value: Any, example: str) -> int:
    """Return a whole number of Python, NumPy or torch as an int.

    name: of the argument. example: a call that would do, for the message.

    Raises:
        ConfigError: a fraction, text, a truth value, or anything else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ConfigError(
            f"Expected `{name}` to be a whole number but got {value!r}. Give it as {example}."
        ) from None


def check_classes(classes: Sequence[str], task: Task) -> None:
    """Raise ConfigError where the data have more classes, or numbers, than the task."""
    if isinstance(task, CommonTask) and len(classes) > task.num_classes:
        raise ConfigError(
            f"Expected a task of at least the {len(classes)} classes of the data, the last of them "
            f"{classes[-1]!r}, but it has {task.num_classes}. Make it with "
            f"num_classes={len(classes)}, or correct the labels."
        )


def check_targets(splits: Splits, task: Task) -> None:
    """Raise DataError where the data hold targets of another kind than the task learns.

    Of each split the first sample with a target is looked at, so that this costs nothing; all are
    when they are read.
    """
    parts = (splits.pool, splits.test, *([splits.validation] if splits.validation else []))
    for part in parts:
        for index in range(min(len(part), _MOST_LOOKED_AT)):
            try:
                part.targets([index])
            except DataError:  # nobody knows it, or its file is damaged: told where it is needed
                continue
            read_targets(part, task, [index])
            break


def check_factory(model: Any) -> None:
    """Raise ConfigError unless `model` is a function that makes a network."""
    if isinstance(model, nn.Module):
        raise ConfigError(
            "Expected `model` to be a function that makes a network, as every training begins with "
            f"a fresh one, but got a network, {type(model).__name__}. Give a function that makes "
            "it, such as `lambda: MyNetwork(10)`."
        )
    if not callable(model):
        raise ConfigError(
            "Expected `model` to be a function that makes a network but got "
            f"{model!r}. Give one, such as `lambda: MyNetwork(10)`."
        )
    try:
        inspect.signature(model).bind()
    except TypeError as error:
        raise ConfigError(
            "Expected `model` to be a function that makes a network from nothing but it needs "
            f"arguments: {error}. Give them, as in `lambda: MyNetwork(10)`."
        ) from error
    except ValueError:  # of C code, which has no signature to look at
        return


def check_state(model: nn.Module) -> None:
    """Raise ModelError where a network's state holds what no file of weights can: all but tensors.

    model: with its initial weights.
    """
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in model.state_dict().items()
        if not isinstance(value, Tensor)
    ]
    if others:
        raise ModelError(
            f"Expected the state of {type(model).__name__} to be tensors alone, as its weights are "
            f"kept in safetensors files, but got {list_some(others, _MOST_NAMES)}. Return a tensor "
            "from `get_extra_state`, or keep what it returns elsewhere."
        )


def check_layers(model: nn.Module, names: Collection[str]) -> None:
    """Raise ModelError where a forward pass made layers: each training begins with a network made
    anew, which has none of them.

    names: of the tensors in the network's state before the forward pass.
    """
    late = sorted(set(model.state_dict()) - set(names))
    if late:
        raise ModelError(
            f"Expected {type(model).__name__} to have all layers once it is made but its forward "
            f"pass made {name_some(late)}, which a network made anew for the next training has "
            "not. Make them in `__init__`, as lazy layers (nn.LazyLinear) where sizes are open."
        )


def check_total(initial: int, budget: int, cycles: int, pool: int) -> None:
    """Raise SelectionError unless all cycles together fit the pool."""
    total = initial + (cycles - 1) * budget
    if total > pool:
        most = (pool - initial) // max(1, cycles - 1)
        advice = (
            f"Lower `experiment.budget` to at most {most}, or run fewer cycles."
            if most > 0
            else f"Run {format_count(1 + max(0, pool - initial) // budget, 'cycle')} at most, or "
            "lower `experiment.initial`."
        )
        raise SelectionError(
            "Expected `experiment.initial` + (`experiment.cycles` - 1) x `experiment.budget` to "
            f"be at most the {pool} samples of the pool but {initial} + {cycles - 1} x {budget} is "
            f"{total}. {advice}"
        )


def check_fit(strategy: Strategy, model: nn.Module, task: Task, sample: Tensor) -> None:
    """Tell, before any training, a strategy that this model or this task cannot serve.

    sample: a prepared batch of one or more. The mode of every module is as before afterwards.

    Raises:
        UpslopeError: what the signal, the companion or the strategy itself says.
    """
    if isinstance(strategy, InitialSelector) and strategy.start is not None:
        check_fit(strategy.start, model, task, sample)
    signals = check_signals(strategy.needs, model, task, sample)
    if isinstance(strategy, QueryStrategy):
        strategy.check_shapes(signals)
    if (companion := auxiliary_module(strategy)) is not None:
        try:
            companion.begin(model, sample.device, 0)
        finally:
            companion.end()


def check_selection(strategy: Strategy, view: PoolView, selection: Selection, budget: int) -> None:
    """Raise SelectionError unless a strategy kept its contract."""
    by_cost = isinstance(strategy, CostBudgeted) and strategy.cost_budget is not None
    count = max(1, len(selection.ids)) if by_cost else budget
    distinct = set(selection.ids)
    strangers = distinct - set(view.candidates)
    if len(selection.ids) != count or len(distinct) != count or strangers:
        raise SelectionError(
            f"Expected the strategy {strategy.name!r} to choose "
            f"{'1 or more' if by_cost else budget} distinct candidates but it gave "
            f"{len(selection.ids)} ids, {len(distinct)} of them distinct, {len(strangers)} of them "
            "not candidates. This is a fault of the strategy."
        )


def scores_of(view: PoolView, selection: Selection) -> list[float] | None:
    """The acquisition scores of the chosen, in order of choice."""
    if selection.scores is None:
        return None
    score = dict(zip(view.candidates, selection.scores.tolist(), strict=True))
    return [score[i] for i in selection.ids]


def as_tensor(labels: Sequence[Label]) -> Tensor | None:
    """(n,) labels, None where they are label sets, numbers or the data set's own masks."""
    numbers = [label for label in labels if isinstance(label, int)]
    return torch.tensor(numbers, dtype=torch.int64) if len(numbers) == len(labels) else None


def describe_strategy(strategy: Strategy) -> dict[str, Any]:
    """Return the name and the options of a strategy, for the record."""
    options: dict[str, Any] = options_to_record(strategy) if is_dataclass(strategy) else {}
    return {"name": strategy.name, **options}
