"""The protocol of a tool in which people answer, and what goes to and fro."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from upslope.labelling.ranking import Guess
from upslope.labelling.samples import Kind


@dataclass(frozen=True)
class AnnotationTask:
    """A sample to be answered.

    rank: its place in the order of worth, from 1. score: the strategy's, None without one. why: why
    it is asked. file: where its image lies, None where there is no file that browsers show. image,
    media_type: the image as browsers show it. cells: column -> text of a row. guess: what the model
    makes of it, to be shown; None unless people asked for it, since a guess shown sways them.
    """

    id: str
    rank: int
    why: str
    kind: Kind
    score: float | None = None
    file: Path | None = None
    image: bytes | None = None
    media_type: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    guess: Guess | None = None


@dataclass(frozen=True)
class PulledAnswer:
    """What a person said of a sample in a tool.

    answer: the name of a class, names of labels, or the text of an outline (`outlines`); None where
    the sample was passed, and then `reason` is "skip" or "cannot tell". seconds: that it took, None
    where the tool does not tell. time: when it was given, in seconds since 1970; answers are
    recorded in this order.
    """

    id: str
    author: str
    answer: str | Sequence[str] | None
    reason: str = ""
    seconds: float | None = None
    time: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class PushCount:
    """new: tasks that the tool did not have. there: tasks that it had already."""

    new: int
    there: int


@runtime_checkable
class Annotator(Protocol):
    """A tool that shows tasks to people and keeps their answers.

    Each method may be called again after a kill at any moment: a task is never there twice, and an
    answer is never lost.
    """

    @property
    def name(self) -> str:
        """Return the name of the tool, as `--tool` takes it."""
        ...

    def pushed(self) -> Collection[str]:
        """Return the ids of the samples that the tool has."""
        ...

    def push(self, tasks: Sequence[AnnotationTask]) -> PushCount:
        """Hand over tasks, which people get in this order; one that is there already stays as it
        is."""
        ...

    def pull(self) -> Sequence[PulledAnswer]:
        """Return all answers that stand in the tool, also those pulled before."""
        ...
