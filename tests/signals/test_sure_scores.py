"""Scores of samples that the network is sure of: digits that single precision must not lose.

The gradient of a cross-entropy at the most probable class is as long as the share of all others,
1e-2 to 1e-13 here, and its entry at that class is minus the sum of the others'. In double precision
with the network's own weights everything is right to many digits.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toy import context

from upslope.influence import ConjugateGradients, Curvature, influence_on_test_loss
from upslope.pool import Need
from upslope.signals import build
from upslope.signals.isal import FittedInfluence
from upslope.signals.model_change import FittedModelChange
from upslope.tasks.base import Task
from upslope.tasks.classification import Classification
from upslope.tasks.multi_label import MultiLabel
from upslope.tasks.segmentation import Segmentation

TASKS: dict[str, Task] = {
    "classes": Classification(num_classes=4),
    "label-sets": MultiLabel(num_classes=4),
    "masks": Segmentation(num_classes=4),
}


def sure_network(task: str) -> tuple[nn.Module, Tensor]:
    """A network and samples whose most probable class leads by 5 to 30, everywhere."""
    model: nn.Module = nn.Conv2d(4, 4, 1) if task == "masks" else nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.eye(4).view_as(p) if p.ndim > 1 else torch.zeros_like(p))
    leads = torch.linspace(5, 30, 8)[:, None]
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    x = (
        (x - 0.5).sign() * leads + x
        if task == "label-sets"
        else x + leads * torch.eye(4)[[0, 1] * 4]
    )
    return model.eval(), x[:, :, None, None].repeat(1, 1, 3, 3) if task == "masks" else x


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("signal", ["gradient-sketch", "model-change", "influence"])
def test_scores_at_the_most_probable_class_keep_their_digits(signal: str, task: str) -> None:
    model, x = sure_network(task)

    def score(model: nn.Module, x: Tensor) -> Tensor:
        if signal == "gradient-sketch":
            sketches = build(Need.of(signal, loss="likely-label"))
            return sketches.compute(model, TASKS[task], x).double().norm(dim=1)
        if signal == "model-change":
            change = FittedModelChange((model,), "global", None)
            return change.compute(model, TASKS[task], x).double()
        weights = [p for p in model.parameters() if p.ndim > 1]
        direction = [torch.linspace(-1, 2, p.numel()).view_as(p).to(p) ** 3 for p in weights]
        return FittedInfluence("pseudo", tuple(direction)).compute(model, TASKS[task], x).double()

    right = score(copy.deepcopy(model).double(), x.double())
    assert 0 < float(right.abs().min()) < 1e-8
    assert torch.allclose(score(model, x), right, rtol=1e-4, atol=0)


def test_influence_of_sure_samples_keeps_its_digits() -> None:
    """At the true label, by forward mode; the curvature by two backward passes."""
    model, x = sure_network("classes")
    y = model(x).argmax(dim=1)
    train = [(torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)]

    def values(dtype: torch.dtype) -> Tensor:
        curvature = Curvature(model, train, "label", kind="gauss-newton", dtype=dtype)
        solver = ConjugateGradients(damping=0.1)
        return influence_on_test_loss(curvature, train, [(x, y)], solver=solver).values.double()

    right = values(torch.float64)
    assert float(right.abs().min()) < 1e-8
    assert torch.allclose(values(torch.float32), right, rtol=1e-3, atol=0)


def test_training_takes_the_plain_cross_entropy() -> None:
    """Which costs a third: bits of runs do not depend on what scores are made of."""
    z, y = torch.randn(5, 4, requires_grad=True), torch.arange(5) % 4
    losses = context().task.losses(z, y % 2)
    assert "NllLoss" in type(losses.grad_fn).__name__
