"""Training by the user's own loop, in place of ours: `Experiment(..., trainer=fit)`.

    def fit(model, labelled, context):
        ...                              # train `model` on `labelled`, however you do
        return model

Everything else is as before: the steps of a run, the ledger, pairing. What cannot be promised is
equality to the bit: a run that was killed in a training begins that training anew, and ends with
the same network only if the loop gives the same one for the same seed. Torch's global generators
are seeded before each training, and put back after it.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from upslope.autodiff import evaluating
from upslope.batches import in_order, read_targets
from upslope.datasets.base import Dataset
from upslope.errors import ConfigError, ModelError
from upslope.pool import Strategy
from upslope.progress import Observer, Progress, Stop
from upslope.seeds import derive, deterministic, global_generator
from upslope.tasks.base import Task
from upslope.training import TrainingReport, TrainingSettings, trains_along

_AT_ONCE = 256  # samples read together
_ARGUMENTS = ("model", "labelled", "context")


class LabelledSamples(TorchDataset[tuple[Tensor, Tensor]]):
    """Labelled samples as a data set of torch: `samples[i]` is (input, target).

    Inputs are as the network takes them, normalised by the task; both are on the CPU. Samples are
    in the order of the pool. ids: one per sample.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], task: Task) -> None:
        self._dataset, self._indices, self._task = dataset, list(indices), task
        self.ids = tuple(dataset.ids[i] for i in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([range(len(self))[index]])
        return inputs[0], targets[0]

    def batch(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ((n, ...) inputs, (n, ...) targets) of several samples."""
        indices = [self._indices[i] for i in places]
        inputs = self._task.prepare(self._dataset.inputs(indices))
        return inputs, read_targets(self._dataset, self._task, indices)

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return ((n, ...) inputs, (n, ...) targets) of all samples as arrays of NumPy."""
        parts = [self.batch(places.tolist()) for places in in_order(len(self), _AT_ONCE)]
        inputs, targets = (np.concatenate([p.numpy() for p in part]) for part in zip(*parts))  # noqa: B905
        return inputs, targets


@dataclass(frozen=True)
class TrainingContext:
    """What a loop of one's own may want to know.

    seed: of this training's random numbers, from the run's seed and the cycle. cycle: from 0.
    device: where the model is, and the returned one must be usable. task: losses and figures.
    validation: labelled samples to choose by, None where the splits have none; never the test set.
    report: called with (done, total) in any unit, so that progress is shown and Ctrl-C is obeyed.
    """

    seed: int
    cycle: int
    device: torch.device
    task: Task
    validation: LabelledSamples | None
    observer: Observer
    stop: Stop

    def report(self, done: int, total: int) -> None:
        """Show progress. Raises Interrupted where a stop was requested."""
        self.stop.check()
        self.observer(Progress("train", done, total))


class Trainer(Protocol):
    """A training loop of the user's own."""

    def __call__(
        self, model: nn.Module, labelled: LabelledSamples, context: TrainingContext, /
    ) -> nn.Module:
        """Train a model on labelled samples, and return it.

        model: with its initial weights, in training mode, on `context.device`; with
        `retrain="warm"`, with those of the cycle before. Returns the model itself, or another with
        the same parameters and buffers.
        """
        ...


def name_of(trainer: Trainer) -> str:
    """Return the name by which a ledger knows a training loop, `module:function`."""
    function = trainer.func if isinstance(trainer, functools.partial) else trainer
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def train_by(
    trainer: Trainer,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    seed: int,
    cycle: int,
    device: torch.device,
    validation: Dataset | None,
    observer: Observer,
    stop: Stop,
) -> TrainingReport:
    """Train a model by the user's loop, and leave the result in `model`.

    Returns: the mean loss of the labelled samples once trained, and the seconds.

    Raises:
        ModelError: nothing or something else is returned, a network of other weights, weights that
            are not finite, or outputs that do not fit the task.
    """
    start_time = time.monotonic()
    labelled = LabelledSamples(dataset, indices, task)
    validation_data = (
        LabelledSamples(validation, range(len(validation)), task)
        if validation is not None and len(validation)
        else None
    )
    context = TrainingContext(
        derive(seed, "trainer", cycle), cycle, device, task, validation_data, observer, stop
    )
    observer(Progress("train", 0, 1))
    shapes = _shapes(model)
    model.train()
    with deterministic(device), global_generator(seed, "trainer", cycle, device=device):
        result = trainer(model, labelled, context)
    _take_over(model, result, shapes, name_of(trainer))
    model.to(device)
    task.check(model, labelled.batch(range(min(2, len(labelled))))[0].to(device))
    loss = _mean_loss(model, task, labelled, device)
    observer(Progress("train", 1, 1))
    return TrainingReport(loss, time.monotonic() - start_time)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return name -> shape of all parameters and buffers."""
    return {key: value.shape for key, value in model.state_dict().items()}


def _take_over(
    model: nn.Module, result: object, shapes: Mapping[str, torch.Size], name: str
) -> None:
    """Leave the weights of what a loop returned in the model that it was given.

    shapes: of the model before the training. With others it could be saved, and never be loaded.
    """
    if not isinstance(result, nn.Module):
        got = "nothing" if result is None else type(result).__name__
        raise ModelError(
            f"Expected the trainer {name} to return the network that it trained but it returned "
            f"{got}. End it with `return model`."
        )
    for module in (result, model):
        shapes_now = _shapes(module)
        differing = sorted(shapes.keys() ^ shapes_now.keys()) or [
            key for key, shape in shapes.items() if shapes_now[key] != shape
        ]
        if differing:
            raise ModelError(
                f"Expected the trainer {name} to return the network that it was given, or one with "
                f"the same weights, but {', '.join(differing[:3])} differ. Unwrap it: return the "
                "module whose weights `model` has. Layers that a training adds or replaces belong "
                "into the function that makes the network."
            )
    if result is not model:
        model.load_state_dict(result.state_dict())
    wrong = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if wrong:
        raise ModelError(
            f"Expected finite weights from the trainer {name} but {', '.join(wrong[:3])} hold NaN "
            "or infinity: the training diverged. Lower its learning rate."
        )


def _mean_loss(
    model: nn.Module, task: Task, labelled: LabelledSamples, device: torch.device
) -> float:
    total = 0.0
    with evaluating(model), torch.no_grad():
        for places in in_order(len(labelled), _AT_ONCE):
            inputs, targets = labelled.batch(places.tolist())
            total += float(task.losses(model(inputs.to(device)), targets.to(device)).sum())
    return total / len(labelled)


def check_trainer(trainer: Trainer, training: TrainingSettings | None, strategy: Strategy) -> None:
    """Raise ConfigError for a trainer beside what only our own loop can do.

    training: settings of our loop, None where none are given. strategy: must train nothing along.
    """
    if not callable(trainer):
        raise ConfigError(
            "Expected `trainer` to be a function fit(model, labelled, context) -> model but got "
            f"{type(trainer).__name__}."
        )
    try:
        inspect.signature(trainer).bind(*_ARGUMENTS)
    except ValueError:
        pass  # compiled functions may hide what they take
    except TypeError as error:
        raise ConfigError(
            f"Expected the trainer {name_of(trainer)} to take ({', '.join(_ARGUMENTS)}) but: "
            f"{error}. Change its parameters."
        ) from error
    if training is not None:
        raise ConfigError(
            "Expected one of `training`, settings of the loop of Upslope, and `trainer`, a loop of "
            "your own, but got both. Leave one out."
        )
    if trains_along(strategy):
        raise ConfigError(
            f"Expected a strategy that any training serves but {strategy.name} trains a module of "
            "its own along with the network, in the loop of Upslope. Leave `trainer` out, or take "
            "another strategy."
        )
