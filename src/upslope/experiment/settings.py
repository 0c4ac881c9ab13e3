"""How an active-learning run goes: how many labels, when, chosen among which candidates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope.errors import SelectionError
from upslope.experiment.start import start_strategy
from upslope.options import LATER, Options, options_to_record
from upslope.registry import OptionProblem, OptionsError, WrongOption

Amount = int | float


@dataclass(frozen=True)
class ExperimentSettings(Options):
    """Algorithm 1 of the paper: an initial set, then `cycles - 1` times `budget` more labels.

    A whole number counts samples; a fraction (0.05, and 1.0 for all) is a share of the pool.
    The defaults are the paper's budgets: seven points, from 10% to 40% of the pool in steps of
    5%, chosen among a random subset of ten times the budget (A.8).

    Raises:
        ConfigError: values of a wrong type or out of range, all of them named.
    """

    name: ClassVar[str] = "experiment"

    initial: Annotated[
        Amount, Field(gt=0, description="labels to start from: a count, or a share of the pool")
    ] = 0.1
    budget: Annotated[
        Amount, Field(gt=0, description="labels per cycle (K): a count, or a share of the pool")
    ] = 0.05
    cycles: Annotated[
        int,
        Field(ge=1, le=10**6, description="budget points: trainings on a growing labelled set"),
    ] = 7
    candidates: Annotated[
        int | str,
        Field(description='unlabelled samples scored per cycle: "10x" the budget, "all", a count'),
    ] = "10x"
    retrain: Annotated[
        Literal["scratch", "warm"],
        Field(description="start each cycle from the initial weights, or from the cycle before"),
    ] = "scratch"
    seed: Annotated[int, Field(ge=0, description="seed of everything random in the run")] = 0
    on_corrupt: Annotated[
        Literal["fail", "skip"],
        Field(description="a pool sample that cannot be read: stop, or leave it out and record it"),
    ] = "fail"
    score_batch: Annotated[
        int,
        Field(
            ge=1, description="most samples in a batch when scoring; fewer where memory is short"
        ),
    ] = 256
    start: Annotated[
        str | dict[str, str | int | float | bool | None],
        Field(
            description="what chooses the initial set: random, or a strategy that needs no trained "
            "network, by name or as {name: typiclust, ...}"
        ),
    ] = field(default="random", metadata=LATER)
    keep_models: Annotated[
        Literal["last", "all"], Field(description="trained weights kept: the last cycle's, or all")
    ] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems: list[OptionProblem] = [
            problem
            for name in ("initial", "budget")
            if (problem := _amount_problem(name, getattr(self, name)))
        ]
        try:
            candidate_count(self.candidates, 1)
        except OptionsError as error:
            problems += error.problems
        try:
            start_strategy(self.start)
        except OptionsError as error:
            problems += error.problems
        if problems:
            raise OptionsError(problems)

    def record(self) -> dict[str, Any]:
        """Return the settings as a ledger holds them."""
        return options_to_record(self)


def _amount_problem(name: str, value: object) -> WrongOption | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    share = isinstance(value, float) and 0 < value <= 1
    if whole or share:
        return None
    return WrongOption(
        ExperimentSettings.name,
        name,
        "a count (a whole number of at least 1) or a share of the pool (a fraction above 0.0, at "
        "most 1.0)",
        repr(value),
    )


def amount(value: int | float, pool: int, name: str) -> int:
    """A count or a share, as a count of samples of a pool of `pool`; shares round half up.

    Raises:
        SelectionError: a count above the pool, or a share that is less than one sample.
    """
    count = int(value * pool + 0.5) if isinstance(value, float) else value
    if not 1 <= count <= pool:
        got = f"the share {value!r} is {count}" if isinstance(value, float) else f"got {count}"
        raise SelectionError(
            f"Expected `experiment.{name}` to be between 1 and the {pool} samples of the pool but "
            f"{got}. {'Raise' if count < 1 else 'Lower'} it, or add samples to the pool."
        )
    return count


def candidate_count(value: int | str, budget: int) -> int | None:
    """How many candidates to score for a budget; None for all.

    Raises:
        ConfigError: neither "all", nor "<n>x" with n >= 1, nor a count.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return max(value, budget)
    if value == "all":
        return None
    match = re.fullmatch(r"([1-9][0-9]*)x", value) if isinstance(value, str) else None
    if match is None:
        wanted_words = '"all", a multiple of the budget such as "10x", or a count of at least 1'
        raise OptionsError(
            [WrongOption(ExperimentSettings.name, "candidates", wanted_words, repr(value))]
        )
    return int(match.group(1)) * budget
