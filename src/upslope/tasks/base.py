"""What a task is: how outputs become losses, posteriors and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Metrics(Protocol):
    """Accumulates over batches; knows which figure is the one that curves show."""

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Take one batch in."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures over everything seen; shares are between 0 and 1."""
        ...


class Task(Protocol):
    """A frozen dataclass; add one in `upslope/tasks/`, one file, and one line in its table."""

    @property
    def primary(self) -> str:
        """The figure that learning curves show, a key of `Metrics.compute`; higher is better."""
        ...

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """The training criterion, one loss per sample: (n,)."""
        ...

    def logits(self, outputs: Any) -> Tensor:
        """(n, classes, ...): what the softmax takes.

        Raises:
            ModelError: there are none in `outputs`.
            ConfigError: the task has no posterior over classes; the message says what to take.
        """
        ...

    def predictions(self, outputs: Any) -> Tensor:
        """What the model says, as targets are: (n,) labels, (n, h, w) masks, (n, d) numbers."""
        ...

    def per_sample(self, values: Tensor, answers: Tensor) -> Tensor:
        """One number per sample, (n,), of one at each of its positions.

        values: (n, ...); answers: (n, ...), the most probable class at each position.
        """
        ...

    def predict(self, model: nn.Module, inputs: Tensor) -> Any:
        """Outputs for a prepared batch, for evaluation: `model(inputs)`, or made of its parts."""
        ...

    def metrics(self) -> Metrics:
        """A fresh accumulator."""
        ...

    def prepare(self, inputs: Tensor) -> Tensor:
        """What the model takes, from what the data set gives: floats, normalised. (n, ...)"""
        ...

    def augment(self, inputs: Tensor, targets: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
        """A random variant of a prepared batch, for training alone; `rng` is a torch.Generator."""
        ...

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch (n, ...) through the model.

        Raises:
            ModelError: the model fails on it, or its output cannot serve.
        """
        ...


@runtime_checkable
class MirrorsOnDemand(Protocol):
    """A task whose `augment` can be told which images to mirror, where it mirrors at all."""

    def augment(
        self, inputs: Tensor, targets: Tensor, rng: Any, *, mirrored: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Task.augment`. mirrored: (n,) booleans, on the CPU; by chance where None."""
        ...

    @property
    def mirrors_on_demand(self) -> bool:
        """True: tells such tasks from others, whose `augment` has the same name."""
        ...


@runtime_checkable
class TakesAnswers(Protocol):
    """A task that says which answers of annotators are labels; others take classes."""

    def label(self, answer: Any, classes: Sequence[str]) -> int | list[int] | list[float] | str:
        """Return the label, as JSON holds it, that an answer is. classes: names, in order.

        Raises:
            DataError: an answer that is no label of this task, saying what was expected.
        """
        ...

    def read_answer(self, text: str, classes: Sequence[str]) -> Any:
        """Return the answer that people mean by a cell of a table: what `label` takes.

        Raises:
            DataError: text that is no answer.
        """
        ...
