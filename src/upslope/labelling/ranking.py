"""A ranking of the samples that are still to be asked, as training hands it to the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Guess:
    """What the model makes of a sample. classes: (name, probability), the most probable first.
    nearest: id of the labelled sample with the most similar features, None without one."""

    classes: Sequence[tuple[str, float]]
    nearest: str | None = None


@dataclass(frozen=True)
class Ranking:
    """ids: in the order in which they should be asked. scores: acquisition scores, id -> number,
    where the strategy has such. method: what made the order, as people read it. labels: how many
    the model was trained on; 0 for a cold start. guesses: id -> guess, of the ranked samples and
    of the next ones of the control slice. features: what the model looks at. correct, of: control
    answers that the model agrees with, and their count. seconds: that this took. advice: the last
    record of an `Advice`, None before there is one. doubtful: id -> why, of labelled samples whose
    label the model doubts, the most doubtful first. copies: id -> the sample that it is a copy of,
    None before they were looked for."""

    ids: Sequence[str]
    method: str
    scores: Mapping[str, float] = field(default_factory=dict)
    labels: int = 0
    guesses: Mapping[str, Guess] = field(default_factory=dict)
    features: str = ""
    correct: int = 0
    of: int = 0
    seconds: float = 0.0
    unreadable: Sequence[str] = ()
    advice: Mapping[str, Any] | None = None
    doubtful: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] | None = None

    def record(self) -> dict[str, Any]:
        """Return the ranking as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Ranking:
        """Return the ranking that `record` returned."""
        guesses = {
            id_: Guess([(name, p) for name, p in guess["classes"]], guess["nearest"])
            for id_, guess in record["guesses"].items()
        }
        return cls(**{**record, "guesses": guesses})
