"""Settings of a labelling project, written once, when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from upslope.datasets.layout import Layout
from upslope.errors import ConfigError
from upslope.image_depth import FULL
from upslope.tasks.answers import NO_LABEL

AnswerKind = Literal["class", "labels", "boxes", "masks"]
"""One class per sample, a set of labels, or outlines: boxes or masks of classes."""
OUTLINES = ("boxes", "masks")
"""The kinds that are drawn, in a tool beside the page."""

_MOST_GIB = 1024
_FEWEST, _PER_CLASS = 20, 3  # labels of the cold start: at least, and for each class


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read, where they do not say it themselves: as the data sets' options.

    id: the column of ids of a table. encoding, delimiter: of its text. layout: what the folders at
    the root of images are. white: the level of 16-bit images that is shown as white. read_limit:
    GiB of memory that one file may take. None, and "auto", for what the readers do by themselves.

    Raises:
        ConfigError: a value out of range.
    """

    id: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    layout: Layout = "auto"
    white: int | None = None
    read_limit: float | None = None

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            layouts = ", ".join(get_args(Layout))
            raise ConfigError(
                f"Expected `--layout` to be one of {layouts} but got {self.layout!r}."
            )
        if self.white is not None and not 1 <= self.white <= FULL:
            raise ConfigError(f"Expected `--white` to be 1 to {FULL} but got {self.white}.")
        if self.read_limit is not None and not 0 < self.read_limit <= _MOST_GIB:
            raise ConfigError(
                f"Expected `--read-limit` to be above 0 and at most {_MOST_GIB} GiB but got "
                f"{self.read_limit}."
            )


AS_FILES_SAY = ReadingOptions()
"""The options where none is set."""


@dataclass(frozen=True)
class ProjectSettings:
    """What is labelled, and how.

    data: a folder, a file, or a built-in data set, as `open_samples` takes it. classes: names, in
    order. kind: one class per sample, any number of labels, boxes or masks. strategy: chooses what
    is asked after the cold start. control: share of the samples that are asked at random, which
    measure the model. target: the column of labels of a table. twice: share of the samples that two
    people label. seed: of everything random. reading: how the files are read.

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
    reading: ReadingOptions = AS_FILES_SAY

    def __post_init__(self) -> None:
        names = [name.strip() for name in self.classes]
        fewest = 1 if self.kind in OUTLINES else 2  # objects of one class have background beside
        if len(names) < fewest or not all(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"Expected `--classes` to be {'one' if fewest == 1 else 'two'} or more distinct "
                f"names but got {names}."
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
        record = {**asdict(self), "classes": list(self.classes)}
        if self.reading == AS_FILES_SAY:  # as projects were written before there were any
            del record["reading"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ProjectSettings:
        """Return the settings that `record` returned."""
        reading = ReadingOptions(**record.get("reading", {}))
        return cls(**{**record, "classes": tuple(record["classes"]), "reading": reading})
