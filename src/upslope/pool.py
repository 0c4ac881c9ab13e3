"""The pool as a strategy sees it, and the selection that it returns.

A strategy is pure: it gets a `PoolView` (ids and signals, no model, no device, no loader) and
answers with a `Selection`. Which signals it wants, it says with `Need`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from upslope.errors import SelectionError

Option = str | int | float | bool | None


@dataclass(frozen=True)
class Need:
    """A signal that a strategy wants: its name in the signal table, and its options.

    `labelled=True` asks for the signal over the labelled set as well (core-set, GCN).
    Two strategies that ask for equal needs share one computation.
    """

    name: str
    options: tuple[tuple[str, Option], ...] = ()
    labelled: bool = False

    @classmethod
    def of(cls, name: str, *, labelled: bool = False, **options: Option) -> Need:
        """`Need.of("gradnorm", loss="entropy", norm="global")`."""
        return cls(name, tuple(sorted(options.items())), labelled)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.options)})"


@dataclass(frozen=True)
class PoolView:
    """The candidates and their signals, frozen, on the CPU.

    candidates: ids, in pool order.
    signals: need -> tensor (n_candidates, ...).
    labelled: ids of the labelled set, in pool order; `labelled_signals`: need -> (n_labelled, ...),
    for the needs that asked for it; `labels`: (n_labelled, ...), what the annotators said.
    """

    candidates: Sequence[str]
    signals: Mapping[Need, Tensor] = field(default_factory=dict)
    labelled: Sequence[str] = ()
    labelled_signals: Mapping[Need, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    look_ahead: Callable[[Sequence[str]], float] | None = None
    """Of candidates: the figure that the network would reach on all unlabelled samples if these
    were labelled too. It reads labels not given yet; in simulations alone, for an oracle."""

    def __len__(self) -> int:
        return len(self.candidates)

    def signal(self, need: Need) -> Tensor:
        """Return the signal over the candidates, (n_candidates, ...).

        Raises:
            SelectionError: the signal is missing, has another length, or is not finite.
        """
        return self._check_values(self.signals, need, self.candidates, "candidates")

    def labelled_signal(self, need: Need) -> Tensor:
        """Return the signal over the labelled set, (n_labelled, ...). Raises as `signal` does.

        With nothing labelled yet, no rows of the shape that the candidates have.
        """
        if not self.labelled:
            return self.signal(need)[:0]
        return self._check_values(self.labelled_signals, need, self.labelled, "labelled samples")

    @staticmethod
    def _check_values(
        table: Mapping[Need, Tensor], need: Need, ids: Sequence[str], what: str
    ) -> Tensor:
        if need not in table:
            raise SelectionError(
                f"Expected the signal {need} over the {what} but the pool holds "
                f"{[str(n) for n in table]}. Compute it first: strategies list theirs in `needs`."
            )
        values = table[need]
        if len(values) != len(ids):
            raise SelectionError(
                f"Expected the signal {need} to have {len(ids)} rows, one for each of the {what}, "
                f"but got {len(values)}."
            )
        # The extremes pass on NaN, and are found in a tenth of the time of a mask.
        if values.numel() and bool(torch.stack(values.aminmax()).isfinite().all()):
            return values
        finite = torch.isfinite(values)
        if finite.ndim > 1:
            finite = finite.flatten(start_dim=1).all(dim=1)
        if not bool(finite.all()):
            bad = [ids[i] for i in (~finite).nonzero().flatten()[:3].tolist()]
            raise SelectionError(
                f"Expected the signal {need} to be finite but it is NaN or infinite for "
                f"{int((~finite).sum())} of {len(ids)} {what}, first {bad}. Look at these samples "
                "and at the training loss: a diverged model gives such scores."
            )
        return values


@dataclass(frozen=True)
class Selection:
    """The ids chosen, in the order of choice, and the acquisition score of every candidate.

    scores: (n_candidates,), higher is chosen first; None where a strategy has no such number.
    notes: figures of the choice worth recording, such as the radius of a cover and its bound.
    gains: of greedy strategies, what each id had that made it the next, in the order of choice.
    """

    ids: tuple[str, ...]
    scores: Tensor | None = None
    notes: Mapping[str, float] = field(default_factory=dict)
    gains: Sequence[float] | None = None


@runtime_checkable
class Strategy(Protocol):
    """A query strategy: a frozen dataclass whose fields are its configuration.

    Add one in `upslope/strategies/`, one small file, and one line in its table.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the signals that `select` will read."""
        ...

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:
        """Choose exactly `budget` distinct candidates; with a cost budget, see `CostBudgeted`.

        Deterministic given `rng`; independent of the order of the candidates up to ties.

        pool: the candidates and their signals.

        Returns: the ids, and the scores of all candidates where there are any.

        Raises:
            SelectionError: budget below 1 or above the candidates; a signal missing or not finite.
        """
        ...


@runtime_checkable
class CostBudgeted(Protocol):
    """A strategy that knows what labels cost.

    Where `cost_budget` is not None, `select` chooses what that buys: one distinct candidate or
    more, at a total cost of `cost_budget` at most, which it notes as "cost"; `budget` is ignored.
    """

    @property
    def cost_budget(self) -> float | None:
        """Return what the labels of a cycle may cost; None where their number is what counts."""
        ...


@runtime_checkable
class InitialSelector(Protocol):
    """A strategy that may choose the initial set too, which all strategies share otherwise."""

    @property
    def start(self) -> Strategy | None:
        """Chooses the initial set, among all samples and with an untrained model; None: shared."""
        ...


@runtime_checkable
class SeesLabels(Protocol):
    """A strategy that, where it says so, looks at labels before they are given: in simulations."""

    @property
    def sees_labels(self) -> bool:
        """Return whether it does, as an oracle."""
        ...


def check_budget(pool: PoolView, budget: int) -> None:
    """Raise SelectionError unless 1 <= budget <= number of candidates."""
    if not 1 <= budget <= len(pool):
        raise SelectionError(
            f"Expected a budget between 1 and the {len(pool)} candidates left but got {budget}. "
            "Lower the budget per cycle or add samples to the pool."
        )


def top(pool: PoolView, scores: Tensor, budget: int) -> Selection:
    """Return the `budget` candidates of highest score; ties go to the smaller id.

    scores: (n_candidates,). Breaking ties by id, not by position, makes the choice independent
    of the order of the candidates.
    """
    check_budget(pool, budget)
    values = scores.tolist()
    order = sorted(range(len(pool)), key=lambda i: (-values[i], pool.candidates[i]))
    return Selection(tuple(pool.candidates[i] for i in order[:budget]), scores)
