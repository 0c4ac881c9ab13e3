"""Every task of the registry keeps the contract of `Task`; a new one gets a line in `CASES`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upslope import tasks
from upslope.errors import ConfigError, ModelError
from upslope.tasks import Task

N, CLASSES = 6, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """inputs: what a data set gives. outputs, targets: of N samples. perfect: outputs without an
    error. options: of the task."""

    inputs: Tensor
    outputs: Tensor
    targets: Tensor
    perfect: Tensor
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def _case(name: str) -> Case:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=rng)
    outputs = torch.randn(N, CLASSES, generator=rng)
    labels = torch.arange(N) % CLASSES
    if name == "classification":
        return Case(images, outputs, labels, 9 * nn.functional.one_hot(labels, CLASSES).float())
    if name == "text-classification":
        texts = torch.ones(N, 2, 5, dtype=torch.int32)
        return Case(texts, outputs, labels, 9 * nn.functional.one_hot(labels, CLASSES).float())
    if name == "segmentation":
        masks = torch.randint(0, CLASSES, (N, 8, 8), dtype=torch.uint8, generator=rng)
        pixels = torch.randn(N, CLASSES, 8, 8, generator=rng)
        perfect = 9 * nn.functional.one_hot(masks.long(), CLASSES).movedim(3, 1).float()
        return Case(images, pixels, masks, perfect)
    if name == "multi-label":
        present = torch.randint(0, 2, (N, CLASSES), generator=rng)
        return Case(images, outputs, present, 18.0 * present - 9)
    if name == "regression":
        numbers = torch.randn(N, CLASSES, generator=rng)
        return Case(images, outputs, numbers, numbers)
    raise AssertionError(f"Add a case for the task {name!r}.")


@pytest.fixture(params=sorted(tasks.REGISTRY))
def case(request: pytest.FixtureRequest) -> tuple[Task, Case]:
    made = _case(request.param)
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3} if made.inputs.ndim == 4 else {}
    return tasks.build(request.param, num_classes=CLASSES, **statistics, **made.options), made


def test_it_is_a_frozen_dataclass(case: tuple[Task, Case]) -> None:
    task: Any = case[0]
    assert dataclasses.is_dataclass(task)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.num_classes = 4


def test_losses_are_one_number_per_sample_that_looks_at_no_other(case: tuple[Task, Case]) -> None:
    task, made = case
    outputs = made.outputs.double().requires_grad_()
    losses = task.losses(outputs, _of(made.targets, slice(None), outputs))
    assert losses.shape == (N,)
    assert bool(torch.isfinite(losses).all())
    for i in range(N):
        alone = task.losses(outputs[[i]], _of(made.targets, [i], outputs))
        torch.testing.assert_close(alone[0], losses[i])
    (gradient,) = torch.autograd.grad(losses[2], outputs)
    assert gradient[2].any()
    assert not gradient[[0, 1, 3, 4, 5]].any()


def _of(targets: Tensor, rows: Any, outputs: Tensor) -> Tensor:
    chosen = targets[rows]
    return chosen.to(outputs.dtype) if chosen.is_floating_point() else chosen


def test_perfect_outputs_lose_less_and_predict_the_targets(case: tuple[Task, Case]) -> None:
    task, made = case
    best = task.losses(made.perfect, made.targets)
    assert (best <= task.losses(made.outputs, made.targets)).all()
    predictions = task.predictions(made.perfect)
    assert predictions.shape == made.targets.shape
    torch.testing.assert_close(predictions.to(made.targets.dtype), made.targets)


def test_figures_have_the_primary_one_and_rank_perfect_outputs_first(
    case: tuple[Task, Case],
) -> None:
    task, made = case
    figures = []
    for outputs in (made.outputs, made.perfect):
        metrics = task.metrics()
        for rows in (slice(0, 2), slice(2, N)):  # in batches
            metrics.update(outputs[rows], made.targets[rows])
        figures.append(metrics.compute())
    whole = task.metrics()
    whole.update(made.outputs, made.targets)
    assert figures[0] == pytest.approx(whole.compute(), nan_ok=True)
    assert figures[0][task.primary] < figures[1][task.primary]


def test_figures_of_outputs_that_are_nan_are_refused(case: tuple[Task, Case]) -> None:
    """Masks of NaN had a mean IoU of 1 where all pixels are of the first class."""
    task, made = case
    outputs = made.outputs.clone()
    outputs[1] = torch.nan
    with pytest.raises(ModelError, match="of 1 of 6 samples are NaN"):
        task.metrics().update(outputs, made.targets)


def test_losses_of_half_precision_are_those_of_the_same_numbers(case: tuple[Task, Case]) -> None:
    """As under autocast, where targets of a regression lost their digits before the centre was
    taken away: of 10,015 and 9,980 with centre 10,000 and scale 30 nothing was left."""
    task, made = case
    targets = made.targets
    if isinstance(task, tasks.Regression):
        task = dataclasses.replace(task, centre=(1e4,) * CLASSES, scale=(30.0,) * CLASSES)
        targets = 1e4 + 30 * targets
    outputs = made.outputs.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = task.losses(outputs, targets)
    torch.testing.assert_close(losses, task.losses(outputs.float(), targets))
    assert torch.equal(task.predictions(outputs), task.predictions(outputs.float()))


def test_logits_are_there_or_refused_by_name(case: tuple[Task, Case]) -> None:
    task, made = case
    if isinstance(task, tasks.Regression):
        with pytest.raises(ConfigError, match="regression"):
            task.logits(made.outputs)
        return
    logits = task.logits(made.outputs)
    posteriors = logits.softmax(dim=1)
    assert len(posteriors) == N
    torch.testing.assert_close(posteriors.sum(dim=1), torch.ones_like(posteriors[:, 0]))
    values = posteriors.amax(dim=1)
    assert task.per_sample(values, logits.argmax(dim=1)).shape == (N,)


def test_inputs_are_prepared_and_vary_by_the_generator_alone(case: tuple[Task, Case]) -> None:
    task, made = case
    prepared = task.prepare(made.inputs)
    assert prepared.shape == made.inputs.shape
    if made.inputs.dtype == torch.uint8:
        expected = (made.inputs.double() / 255 - 0.5) / 0.25
        torch.testing.assert_close(prepared.double(), expected, atol=1e-5, rtol=0)
        assert torch.equal(task.prepare(prepared), prepared)
    before = prepared.clone(), made.targets.clone()
    first, again = (
        task.augment(prepared, made.targets, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(prepared, before[0])
    assert torch.equal(made.targets, before[1])


class Fixed(nn.Module):
    """Puts out what it is given, whatever it is asked."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs[: len(inputs)] * self.scale


def test_networks_that_cannot_serve_are_refused(case: tuple[Task, Case]) -> None:
    task, made = case
    sample = task.prepare(made.inputs)
    good = Fixed(made.outputs).train()
    task.check(good, sample)
    assert good.training
    for outputs in (made.outputs[:, :2], made.outputs * torch.nan):
        with pytest.raises(ModelError):
            task.check(Fixed(outputs), sample)


@pytest.mark.parametrize("error", [AssertionError, KeyError, AttributeError, RuntimeError])
def test_whatever_a_network_raises_is_one_error(
    case: tuple[Task, Case], error: type[Exception]
) -> None:
    """timm's networks assert the size of images, which was a traceback."""

    class Raises(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise error("Input height (32) doesn't match model (224).")

    task, made = case
    with pytest.raises(ModelError, match=f"it raised {error.__name__}: .*Input height"):
        task.check(Raises(), task.prepare(made.inputs))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_classes": value} for value in (0, -1, "3", 2.5, None, True)),
        {"mean": (float("nan"),), "std": (1.0,)},
        {"mean": (0.5,), "std": (float("inf"),)},
        {"mean": 0.5, "std": 0.2},
    ],
)
@pytest.mark.parametrize("name", sorted(tasks.REGISTRY))
def test_sizes_and_statistics_are_numbers(name: str, wrong: dict[str, Any]) -> None:
    """A mean of NaN made every input NaN; others ended in TypeErrors, or later."""
    with pytest.raises(ConfigError, match=r"`(num_classes|mean)`|at least 2 classes"):
        tasks.build(name, **{"num_classes": 3, **wrong})
    assert type(tasks.build(name, num_classes=torch.tensor(3)).num_classes) is int  # type: ignore


@pytest.mark.parametrize("name", sorted(tasks.REGISTRY))
def test_every_option_is_described_and_no_other_is_taken(name: str) -> None:
    (line,) = [line for line in tasks.describe() if line.name == name]
    assert line.summary
    assert all(option.help for option in line.options), name
    with pytest.raises(ConfigError, match="no_such_option"):
        tasks.build(name, num_classes=3, no_such_option=1)
