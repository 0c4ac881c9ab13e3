"""What a run in Python is given anew at each opening: another task, network or validation set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_tasks import MODEL, TASK, Points, perceptron, splits
from upslope import Experiment, ExperimentSettings, Splits, models, strategies, tasks
from upslope.errors import ModelError, RunError, UpslopeError
from upslope.ledger import read_run
from upslope.progress import Interrupted, Progress, Stop
from upslope.tasks import Classification
from upslope.training import TrainingSettings, loop

WIDER = partial(perceptron, 24)


def run(folder: Path, stop_at: tuple[str, int, int] | None = None, **options: Any) -> None:
    """Run to the end, or until a phase of a cycle has come so far."""
    stop = Stop()

    def watch(progress: Progress) -> None:
        if (progress.phase, progress.cycle, progress.done) == stop_at:
            stop.request()

    arguments = {
        "splits": splits(),
        "task": TASK,
        "model": MODEL,
        "strategy": strategies.build("margin"),
        "settings": ExperimentSettings(initial=20, budget=10, cycles=3),
        "training": TrainingSettings(epochs=2, batch_size=8),
        **options,
    }
    with Experiment(folder, device="cpu", observer=watch, stop=stop, **arguments) as experiment:
        experiment.run()


@pytest.mark.parametrize(
    "stop_at",
    [("train", 0, 3), ("train", 1, 3), ("select", 0, 10)],
    ids=["first", "next", "between"],
)
def test_another_network_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int, int]
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at)
    with pytest.raises(ModelError, match=r"another network: .*0.weight \(16, 2\) instead of \(24,"):
        run(tmp_path, model=WIDER)
    assert not read_run(tmp_path).finished
    run(tmp_path)
    assert read_run(tmp_path).finished


def images(validation_seed: int) -> Splits:
    x = np.random.default_rng(0).integers(0, 256, (60, 3, 5, 5), dtype=np.uint8)
    y = np.arange(60) % 3
    other = np.random.default_rng(validation_seed).integers(0, 256, (9, 3, 5, 5), dtype=np.uint8)
    whole = Splits.from_arrays(x[:40], y[:40], x[40:], y[40:])
    return replace(whole, validation=Splits.from_arrays(other, y[:9]).pool)


def image_options(task: Any, seed: int = 1) -> dict[str, Any]:
    model = partial(models.build, "mlp", num_classes=3, input_shape=(3, 5, 5), hidden=4)
    return {
        "splits": images(seed),
        "task": task,
        "model": model,
        "settings": ExperimentSettings(initial=8, budget=4, cycles=2),
    }


STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
PLAIN = tasks.build("classification", num_classes=3, **STATISTICS)
OTHER_TASKS = {
    "augmentation": replace(PLAIN, augmentation="shift"),  # type: ignore[type-var]
    "label_smoothing": replace(PLAIN, label_smoothing=0.1),  # type: ignore[type-var]
    "mean": replace(PLAIN, mean=(0.4, 0.5, 0.5)),  # type: ignore[type-var]
    "std": replace(PLAIN, mean=(), std=()),  # type: ignore[type-var]
}


@pytest.mark.parametrize("option", OTHER_TASKS)
def test_other_options_of_the_task_are_refused_by_name(tmp_path: Path, option: str) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, ("train", 1, 2), **image_options(PLAIN))
    with pytest.raises(RunError, match=rf"task\.{option}: .* there, .* now"):
        run(tmp_path, **image_options(OTHER_TASKS[option]))
    rounded = replace(PLAIN, mean=(0.5000001, 0.5, 0.5))  # type: ignore[type-var]
    run(tmp_path, **image_options(rounded))
    assert read_run(tmp_path).finished


class Weighed(Classification):
    """A task with the options of its base, and other losses."""

    def losses(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return super().losses(outputs, targets) * (1 + targets)


def test_another_class_of_task_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, ("train", 0, 3))
    with pytest.raises(RunError, match=r"task\.class: Classification there, Weighed now"):
        run(tmp_path, task=Weighed(num_classes=3))


@pytest.mark.parametrize("named", [True, False], ids=["ids", "samples"])
def test_another_validation_set_is_refused(tmp_path: Path, named: bool) -> None:
    def validated(seed: int) -> Splits:
        name = f"validation {seed}" if named else "validation"
        return replace(splits(), validation=Named(30, seed=seed, name=name))

    with pytest.raises(Interrupted):
        run(tmp_path, ("train", 1, 3), splits=validated(5))
    with pytest.raises(UpslopeError, match=r"validation (samples|set)"):
        run(tmp_path, splits=validated(6))
    run(tmp_path, splits=validated(5))
    assert read_run(tmp_path).finished


class Named(Points):
    """Points whose ids begin with their name."""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{self.name}/{i}" for i in range(self.n))


def fit(model: Any, labelled: Any, context: Any, rate: float = 0.1) -> Any:
    """A loop with a setting."""
    context.report(1, 2)
    with torch.no_grad():
        model[0].weight.mul_(rate)
    return model


class OfMyOwn:
    """A strategy of the user's, with a setting that no configuration names."""

    name = "of-my-own"

    def __init__(self, share: float) -> None:
        self.share = share
        self._margin = strategies.build("margin")

    def __getattr__(self, name: str) -> Any:
        return getattr(strategies.build("margin"), name)

    def select(self, pool: Any, budget: int, rng: Any) -> Any:
        return self._margin.select(pool, budget, rng)


class TaskOfMyOwn:
    """A task that is no data class, with a setting."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(TASK, name)


@pytest.mark.parametrize(
    ("option", "one", "other", "key"),
    [
        ("trainer", partial(fit, rate=0.1), partial(fit, rate=0.5), "trainer.rate"),
        ("strategy", OfMyOwn(0.1), OfMyOwn(0.5), "strategy.share"),
        ("task", TaskOfMyOwn(0.1), TaskOfMyOwn(0.5), "task.smoothing"),
    ],
)
def test_other_settings_of_objects_are_refused_by_name(
    tmp_path: Path, option: str, one: Any, other: Any, key: str
) -> None:
    loop_options = {"training": None} if option == "trainer" else {}
    stop_at = ("select", 0, 10)
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at, **loop_options, **{option: one})
    with pytest.raises(RunError, match=rf"{key}: 0\.1 there, 0\.5 now"):
        run(tmp_path, **loop_options, **{option: other})
    run(tmp_path, **loop_options, **{option: one})
    assert read_run(tmp_path).finished
