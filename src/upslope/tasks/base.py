"""Protocols of tasks: how outputs become losses, posteriors and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Metrics(Protocol):
    """Accumulates over batches; knows which figure is the one that curves show."""

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Take in the outputs and the targets of one batch."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the figures over everything seen; shares are between 0 and 1."""
        ...


class Task(Protocol):
    """A frozen dataclass; add one in `upslope/tasks/`, one file, and one line in its table."""

    @property
    def primary(self) -> str:
        """Return the figure that learning curves show, a key of `Metrics.compute`; higher is
        better.
        """
        ...

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the training criterion, one loss per sample: (n,).

        outputs: of the model. targets: (n, ...).
        """
        ...

    def logits(self, outputs: Any) -> Tensor:
        """Return (n, classes, ...): what the softmax takes.

        Raises:
            ModelError: there are none in `outputs`.
            ConfigError: the task has no posterior over classes; the message says what to take.
        """
        ...

    def predictions(self, outputs: Any) -> Tensor:
        """Return predictions as targets are: (n,) labels, (n, h, w) masks, (n, d) numbers.

        outputs: of the model.
        """
        ...

    def per_sample(self, values: Tensor, answers: Tensor) -> Tensor:
        """Return one number per sample, (n,), of one at each of its positions.

        values: (n, ...); answers: (n, ...), the most probable class at each position.
        """
        ...

    def predict(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return outputs for a prepared batch, for evaluation: `model(inputs)`, or made of its
        parts.

        model: in eval mode. inputs: a prepared batch.
        """
        ...

    def metrics(self) -> Metrics:
        """Return a fresh accumulator of the task's figures."""
        ...

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return what the model takes: floats, normalised, (n, ...).

        inputs: (n, ...) as the data set gives them.
        """
        ...

    def augment(self, inputs: Tensor, targets: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
        """Return a random variant of a prepared batch, for training alone; `rng` is a
        torch.Generator.

        inputs, targets: the batch.
        """
        ...

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch (n, ...) through the model.

        sample: a prepared batch.

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
class ChecksTargets(Protocol):
    """A task that tells targets of its own from others, before it trains on them."""

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Look at the targets of some samples, (n, ...), on the CPU. id_of: of the k-th of them.

        Raises:
            DataError: targets of another form, or numbers that are none; the message names the
                first sample.
        """
        ...


@runtime_checkable
class AdvisesOnTargets(Protocol):
    """A task with options on what is known of targets, which tells where these do not fit."""

    def advice(self, targets: Tensor, figures: Mapping[str, float] | None = None) -> str:
        """Return sentences on options that do not fit the targets; empty where they do.

        targets: (n, ...), of labelled samples. figures: of a network on these; what has been
        learnt well nevertheless is not told of then. None where there is no such network.
        """
        ...


@runtime_checkable
class Normalises(Protocol):
    """A task that normalises images by statistics; they are recorded with a run."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean per channel of images in 0..1; empty for none."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Return the standard deviation per channel; empty for none."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A dataclass of a task whose option `augmentation` says how images vary in training."""

    @property
    def augmentation(self) -> str:
        """Return the name of the augmentation, "none" for none."""
        ...


@runtime_checkable
class HasViews(Protocol):
    """A dataclass of a task whose option `views` says from which views of an image it predicts."""

    @property
    def views(self) -> str:
        """Return the name of the views, "none" for the image as it is."""
        ...


@runtime_checkable
class IgnoresTargets(Protocol):
    """A dataclass of a task whose option `ignore_index` marks positions that count nowhere."""

    @property
    def ignore_index(self) -> int:
        """Return the number in targets that is no class."""
        ...


@runtime_checkable
class Crops(Protocol):
    """A dataclass of a task whose option `crop` is the side of the windows that it trains on."""

    @property
    def crop(self) -> int | None:
        """Return the side in pixels; None or 0 for whole images."""
        ...


@runtime_checkable
class Smooths(Protocol):
    """A dataclass of a task whose option `label_smoothing` training may set."""

    @property
    def label_smoothing(self) -> float:
        """Return the share of a label that is spread over all classes."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """A task that knows the names of its classes, labels or numbers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names in the order of the outputs."""
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
