"""Settings of a labelling project, written once, when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from upslope.errors import ConfigError
from upslope.tasks.answers import NO_LABEL

AnswerKind = Literal["class", "labels", "boxes", "masks"]
"""One class per sample, a set of labels, or outlines: boxes or masks of classes."""
OUTLINES = ("boxes", "masks")
"""The kinds that are drawn, in a tool beside the page."""

_FEWEST, _PER_CLASS = 20, 3  # labels of the cold start: at least, and for each class


@dataclass(frozen=True)
class ProjectSettings:
    """What is labelled, and how.

    data: a folder, a file, or a built-in data set, as `open_samples` takes it. classes: names, in
    order. kind: one class per sample, any number of labels, boxes or masks. strategy: chooses what
    is asked after the cold start. control: share of the samples that are asked at random, which
    measure the model. target: the column of labels of a table. twice: share of the samples that two
    people label. seed: of everything random.

    Raises:
        ConfigError: a value out of range; names that are repeated; an unknown strategy.
    """

    data: str
    classes: tuple[str, ...]
    kind: AnswerKind = "class"
    strategy: str = "margin"
    control: float = 0.2
    target: str | None = None
    twice: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [name.strip() for name in self.classes]
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"Expected `--classes` to be two or more distinct names but got {names}."
            )
        for name, value in (("--control", self.control), ("--twice", self.twice)):
            if not 0 <= value < 1:
                raise ConfigError(
                    f"Expected `{name}` to be at least 0 and below 1 but got {value}."
                )
        if self.kind not in get_args(AnswerKind):
            kinds = ", ".join(get_args(AnswerKind))
            raise ConfigError(f"Expected `--kind` to be one of {kinds} but got {self.kind!r}.")

    @property
    def cold_start(self) -> int:
        """How many training labels are asked by coverage before the strategy chooses."""
        return max(_FEWEST, _PER_CLASS * len(self.classes))

    def check_new(self) -> None:
        """Refuse what a project may not begin with; those that began with it are still read.

        Raises:
            ConfigError: a negative seed; labels of a set whose names would not come back from a
                table, where semicolons stand between names and `none` for none.
        """
        if self.seed < 0:
            raise ConfigError(f"Expected `--seed` to be at least 0 but got {self.seed}.")
        names = [name for name in self.classes if name == NO_LABEL or ";" in name]
        if self.kind == "labels" and names:
            raise ConfigError(
                f"Expected `--classes` of sets without semicolons, and none called {NO_LABEL!r}, "
                f"as tables have them between names and for the empty set, but got {names}. "
                "Rename them."
            )

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ProjectSettings:
        """Return the settings that `record` returned."""
        return cls(**{**record, "classes": tuple(record["classes"])})
