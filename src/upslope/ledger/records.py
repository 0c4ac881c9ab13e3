"""A run read back: what each cycle cost, asked and reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.counts import format_count
from upslope.errors import RunError


@dataclass(frozen=True)
class Fit:
    """What a network that has learnt its own labels reaches on these.

    least: of the primary figure. unfitted: words for one that stays below. remedy: what to do then.
    """

    least: float
    unfitted: str
    remedy: str


FITS: Mapping[str, Fit] = {
    "accuracy": Fit(
        0.95, "training accuracy below 95%", "Train longer (training.epochs, or in your loop)"
    ),
    # The mean of the labels has 0; where these are noisy, a good network has little more.
    "r2": Fit(
        0.0,
        "training R² below 0, worse than the mean of the labels",
        "State task.centre and task.scale (docs/tasks.md), or train longer (training.epochs, "
        "or in your loop)",
    ),
}
"""Primary figure -> what it is where a network has learnt its own labels; of others nothing."""

_LIMITS = "; cycles before compare as ever, later ones only with runs changed alike at that cycle"


def is_fitted(train_metrics: Mapping[str, float], primary: str) -> bool:
    """Tell whether a network has learnt its own labels: accuracy of 95% or more, R^2 of 0 or more.

    True for other figures, for which no such threshold holds.
    """
    return primary not in FITS or train_metrics[primary] >= FITS[primary].least


@dataclass(frozen=True)
class Change:
    """What changed after a run began: its configuration, or its pool.

    kind: "extended" or "pool". cycle: the first cycle that it concerns. before, after: keys of the
    configuration, as `experiment.cycles`, with their values. added, removed: samples of the pool.
    """

    kind: str
    cycle: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    added: int = 0
    removed: int = 0

    @property
    def comparable(self) -> bool:
        """Return whether all cycles compare with those of a run that always was like this."""
        return set(self.after) <= {"experiment.cycles"} and self.kind == "extended"

    def __str__(self) -> str:
        if self.kind == "pool":
            parts = [f"{format_count(self.added, 'sample')} more"] if self.added else []
            parts += [f"{self.removed:,} fewer"] if self.removed else []
            what = f"the pool has {' and '.join(parts) or 'its samples in another order'}"
        else:
            what = ", ".join(f"{key} {self.before[key]} -> {v}" for key, v in self.after.items())
        limits = "" if self.comparable else _LIMITS
        return f"from cycle {self.cycle + 1} on, {what}{limits}"


@dataclass(frozen=True)
class CycleRecord:
    """One budget point: a model trained on `n_labelled` labels, and what was asked with it.

    metrics: figures on the test set; empty where there is none. train_metrics: the same figures on
    the labelled set, without augmentation, for the gap between training and test. train_loss: mean
    loss of the last epoch.
    train_seconds, select_seconds: wall time; selecting counts signals fitted, scored and chosen.
    asked: ids chosen with this model, in order of choice; empty after the last cycle, after which
    nothing is selected. scores: their acquisition scores, None where a strategy has none.
    skipped: candidates that could not be read. reused: the model was trained by another run of
    the same comparison from the same seed, labels and settings; its seconds are that run's.
    guesses: what the model predicted for each id asked, as labels are recorded; confidences: the
    probability of that class, where there is one class per sample. histogram: of the scores of all
    candidates, `low`, `high` and `counts` of equal bins between. All three are None in runs that
    did not record them, and an entry is None where there is nothing to tell.

    model_file, model_sha256: the file of the model, and its digest. n_candidates: how many were
    scored.
    """

    cycle: int
    n_labelled: int
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    train_loss: float
    train_seconds: float
    model_file: str
    model_sha256: str
    reused: bool = False
    select_seconds: float = 0.0
    n_candidates: int = 0
    asked: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    skipped: tuple[str, ...] = ()
    guesses: tuple[Any, ...] | None = None
    confidences: tuple[float | None, ...] | None = None
    histogram: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunResult:
    """Everything a run directory holds.

    config: as it is now; `changes` says what it was before. environment: versions, hardware,
    commit, when the run began. info: strategy, seed, primary (the figure that curves show), pool
    and test sizes. initial: ids of the initial set. labels: id -> label, None where the data set
    holds it. pending: ids asked and not yet labelled. finished: every budget point has been
    evaluated. passed: id -> reason, of the samples that annotators would not label. labels_from:
    the folder of the run whose labels this one began with; empty where there is none.

    path: the run directory. cycles: one record per cycle. unreadable: ids of samples that turned
    out not to be readable, and were skipped.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    info: Mapping[str, Any]
    cycles: tuple[CycleRecord, ...]
    initial: tuple[str, ...]
    labels: Mapping[str, int | list[int] | list[float] | str | None]
    pending: tuple[str, ...]
    finished: bool
    passed: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    labels_from: str = ""
    unreadable: tuple[str, ...] = ()

    @property
    def strategy(self) -> str:
        """Return the name of the run's strategy."""
        return str(self.info["strategy"])

    @property
    def seed(self) -> int:
        """Return the seed of everything random in the run."""
        return int(self.info["seed"])

    @property
    def primary(self) -> str:
        """Return the figure that learning curves show, a key of `CycleRecord.metrics`."""
        return str(self.info["primary"])

    @property
    def tested(self) -> bool:
        """Return whether there is a test set, so that cycles have figures on it."""
        return bool(self.info.get("test", 1))

    @property
    def unfitted(self) -> tuple[CycleRecord, ...]:
        """Return the cycles whose network did not learn its own labels: see `is_fitted`."""
        return tuple(c for c in self.cycles if not is_fitted(c.train_metrics, self.primary))

    def curve(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return labels used and the primary figure on the test set, one point per cycle.

        Raises:
            RunError: there is no test set.
        """
        if not self.tested:
            raise RunError(
                f"Expected a test set, whose figures make the curve, but the run in {self.path} "
                "has none. `upslope status` tells its figures on the labelled set, and `upslope "
                "predict` applies its network. For a curve, set labelled samples apart to test on "
                "(docs/data.md), and start a run with them."
            )
        return (
            tuple(c.n_labelled for c in self.cycles),
            tuple(c.metrics[self.primary] for c in self.cycles),
        )
