"""What a scale is, the readings, and the words in which scales are written.

Text and authors' code of the paper differ; a reading is one side of it:

             norm                             retraining      candidates
    text     of the whole gradient            from scratch    the whole pool
    code     sum over tensors of their norms  warm start      10 x the budget

The text's appendix (A.8) has 10 x the budget as well, and its tables were made by the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upslope.reproduction.study import Study

Document = dict[str, Any]

EXPECTED, ENTROPY, MC_DROPOUT = "expected-gradnorm", "entropy-gradnorm", "mc-dropout"


@dataclass(frozen=True)
class Reading:
    """One side of the differences between the paper's text and its authors' code."""

    name: str
    norm: str
    retrain: str
    candidates: str

    @property
    def other_start(self) -> str:
        """The way of retraining that this reading does not take."""
        return "warm" if self.retrain == "scratch" else "scratch"


READINGS: Mapping[str, Reading] = {
    "text": Reading("text", "global", "scratch", "all"),
    "code": Reading("code", "tensor-sum", "warm", "10x"),
}


@dataclass(frozen=True)
class Theory:
    """How much of the data the influences of Table 2 and Figure 3 are computed on.

    train: most samples that H is the mean over, test: most that the gradient is summed over,
    candidates: most of Figure 3; None for all. Drawn at random where there are more. damping is
    added to H's diagonal. seeds: the first so many of the study's.
    """

    damping: float = 0.01
    train: int | None = None
    test: int | None = None
    candidates: int | None = None
    tolerance: float = 1e-3
    iterations: int = 200
    seeds: int = 3


@dataclass(frozen=True)
class Scale:
    """Studies by name, and which of them the artefacts take.

    main: Tables 1-6 and 9, with `dropout` beside it, whose network has dropout for mc-dropout.
    other_start: some strategies of `main`, retrained the other way, for the confound.
    figure_1, figure_2, figure_4: a tuple of studies for each picture. class_wise: Tables 7 and 8.
    deeper: the network of Table 6.
    """

    name: str
    reading: Reading
    studies: Mapping[str, Study]
    figure_1: tuple[tuple[str, ...], ...]
    figure_2: tuple[tuple[str, ...], ...]
    figure_4: tuple[tuple[str, ...], ...]
    class_wise: str
    deeper: Document
    theory: Theory = field(default_factory=Theory)
    main: str = "main"
    dropout: str = "main-dropout"
    other_start: str = "main-other-start"


def strategies(names: str, reading: Reading, **options: Document) -> list[Any]:
    """Names with spaces between; options by name; the two schemes in the norm of the reading."""
    ours = {EXPECTED: {"norm": reading.norm}, ENTROPY: {"norm": reading.norm}}
    kinds = {MC_DROPOUT: "mc-entropy"}
    return [
        {"name": kinds.get(n, n), "label": n, **ours.get(n, {}), **options.get(n, {})}
        for n in names.split()
    ]


def experiment(reading: Reading, **changes: Any) -> Document:
    """The paper's budgets, in the reading's way."""
    return {
        "initial": 0.10,
        "budget": 0.05,
        "cycles": 7,
        "candidates": reading.candidates,
        "retrain": reading.retrain,
        **changes,
    }


def with_dropout(study: Document, reading: Reading, passes: int) -> Document:
    """The same study for mc-dropout alone, whose network needs dropout: 0.5 before the head."""
    return {
        **study,
        "model": {**study["model"], "dropout": 0.5},
        "strategies": strategies(MC_DROPOUT, reading, **{MC_DROPOUT: {"passes": passes}}),
        "full_data": 0,
    }


def other_start(study: Document, reading: Reading) -> Document:
    """Random and entropy-gradnorm of the same study, retrained the other way."""
    experiment = {**study["experiment"], "retrain": reading.other_start, "keep_models": "last"}
    names = f"random {ENTROPY}"
    return {
        **study,
        "experiment": experiment,
        "strategies": strategies(names, reading),
        "full_data": 0,
    }


def named(**documents: tuple[Document, str | None]) -> dict[str, Study]:
    """Studies by name, `_` for `-`, of (what a configuration file would hold, stand-in)."""
    return {
        name: Study(name, document, stand_in)
        for name, (document, stand_in) in (
            (key.replace("_", "-"), value) for key, value in documents.items()
        )
    }
