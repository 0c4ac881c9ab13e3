"""Bases of strategies: options, checks of signals, independence of the pool's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from upslope.errors import ModelError, SelectionError
from upslope.options import Options
from upslope.pool import Need, PoolView, Selection, check_budget, top
from upslope.strategies.numbers import check_numbers

POSTERIORS = {"probabilities": 2, "mc-posteriors": 3}
"""Signals and their dimensions where a sample has one label; dense tasks have more."""


_FORMER_NAMES = {"home": "best_for", "requires": "signal_cost"}


@dataclass(frozen=True)
class Choice:
    """A `Selection` by position: where in the pool, in order of choice; scores (n,) if any.

    gains: of greedy strategies, what each position had that made it the next. A longer choice from
    the same pool begins with the same positions.
    """

    positions: Sequence[int]
    scores: Tensor | None = None
    notes: Mapping[str, float] = field(default_factory=dict)
    gains: Sequence[float] | None = None


@dataclass(frozen=True)
class QueryStrategy(Options):
    """A query strategy: a frozen dataclass whose fields are its options.

    reference: where it was published. signal_cost: what it costs to get its signals, in words.
    cost: of the selection, once the signals are there (n candidates, m labelled, K budget,
    d features, C classes). best_for: the budgets where it is at its best.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accept a class written when `best_for` was `home` and `signal_cost` was `requires`."""
        super().__init_subclass__(**kwargs)
        for former, name in _FORMER_NAMES.items():
            if former in cls.__dict__ and name not in cls.__dict__:
                setattr(cls, name, cls.__dict__[former])

    reference: ClassVar[str]
    signal_cost: ClassVar[str]
    cost: ClassVar[str]
    best_for: ClassVar[str]
    reads_labels: ClassVar[bool] = False
    """Whether it reads which class each labelled sample is of, beside signals."""
    sees_labels: ClassVar[bool] = False
    """Whether it reads labels that nobody has given yet, as an oracle does."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """The signals that `select` will read."""
        return ()

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:
        """Choose exactly `budget` distinct candidates; see `upslope.pool.Strategy`.

        The pool is put in the order of its ids first, so that neither the choice nor what `rng`
        draws depends on the order in which the candidates came, and ties go to the smaller id.

        Returns: the ids in order of choice, and the scores of all candidates where there are any.
        """
        self.check(pool, budget)
        view, order = by_id(pool)
        try:
            choice = self.choose(view, budget, rng)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise SelectionError(_beyond_rounding(self.name, str(error))) from error
        scores = choice.scores
        words = [*choice.notes.values(), *([] if scores is None else [float(scores.sum())])]
        if any(math.isnan(value) for value in words):
            raise SelectionError(_beyond_rounding(self.name, "its scores are not numbers"))
        if scores is not None:
            scores = torch.empty_like(scores).index_copy_(0, torch.tensor(order), scores)
        ids = tuple(view.candidates[i] for i in choice.positions)
        return Selection(ids, scores, choice.notes, choice.gains)

    def check(self, pool: PoolView, budget: int) -> None:
        """Raise SelectionError unless the budget can be met and every signal is there, finite.

        pool: the candidates and their signals.
        """
        check_budget(pool, budget)
        for need in self.needs:
            check_numbers(self.name, need, pool.signal(need), pool.candidates)
            if need.labelled:
                check_numbers(self.name, need, pool.labelled_signal(need), pool.labelled)

    def check_shapes(self, signals: Mapping[Need, Tensor]) -> None:
        """Refuse signals of a few samples whose shapes cannot serve, before any training.

        Raises:
            ModelError: a posterior at every position of a sample where one for all is wanted.
        """
        for need, values in signals.items():
            dimensions = POSTERIORS.get(need.name, values.ndim)
            if values.ndim != dimensions:
                raise ModelError(
                    f"Expected one posterior per sample for {self.name} but the task gives "
                    f"{tuple(values.shape[dimensions:])} of them, one at each position. Take a "
                    "strategy that reads one number or gradient per sample, such as entropy."
                )

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """Choose `budget` distinct positions of `pool`, which is in the order of its ids.

        rng: of everything random.

        Returns: the positions in order of choice, and scores if there are any.

        Raises:
            SelectionError: the candidates do not allow a choice.
        """
        raise NotImplementedError


@runtime_checkable
class WeighsCandidates(Protocol):
    """A strategy whose choices are not spread evenly over a pool that is divided into cells."""

    def log_weights(self, pool: PoolView) -> Tensor:
        """Return the logarithm of what each candidate adds to the share of its cell, (n,).

        pool: the candidates and their signals.
        """
        ...


@dataclass(frozen=True)
class TopStrategy(QueryStrategy):
    """Takes the candidates of highest score; ties go to the smaller id."""

    cost: ClassVar[str] = "n log n"

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:  # noqa: ARG002
        """Choose the `budget` candidates of highest score."""
        self.check(pool, budget)
        return top(pool, self.score(pool), budget)

    def score(self, pool: PoolView) -> Tensor:
        """(n_candidates,), higher is chosen first: the one signal, unless overridden."""
        return pool.signal(self.needs[0])


def _beyond_rounding(name: str, reason: str) -> str:
    return (
        f"Expected signals that {name} can compute with but {reason}: they are too large, or too "
        "close to each other, for floating point. Look at the training loss, or scale the features."
    )


def select_among(
    strategy: QueryStrategy, pool: PoolView, rows: list[int], budget: int, rng: torch.Generator
) -> list[int]:
    """Return the positions that a strategy chooses when it is shown a part of a pool.

    rows: the positions of that part. budget, rng: as of `QueryStrategy.select`.
    """
    where = torch.tensor(rows)
    view = replace(
        pool,
        candidates=[pool.candidates[i] for i in rows],
        signals={need: pool.signals[need][where] for need in strategy.needs},
    )
    position = dict(zip(view.candidates, rows, strict=True))
    return [position[id_] for id_ in strategy.select(view, budget, rng).ids]


def by_id(pool: PoolView) -> tuple[PoolView, list[int]]:
    """The same pool with candidates and labelled set in the order of their ids, and where each
    candidate stood before."""
    order, labelled = _order(pool.candidates), _order(pool.labelled)
    view = PoolView(
        candidates=[pool.candidates[i] for i in order],
        signals={need: _take(values, order) for need, values in pool.signals.items()},
        labelled=[pool.labelled[i] for i in labelled],
        labelled_signals={
            n: _take(values, labelled) for n, values in pool.labelled_signals.items()
        },
        labels=None if pool.labels is None else _take(pool.labels, labelled),
        look_ahead=pool.look_ahead,
    )
    return view, order


def _order(ids: Sequence[str]) -> list[int]:
    return sorted(range(len(ids)), key=ids.__getitem__)


def _take(values: Tensor, order: list[int]) -> Tensor:
    # A signal of another length is left as it is, for PoolView to refuse by name.
    if len(values) != len(order) or order == list(range(len(order))):
        return values
    return values[torch.tensor(order)]
