"""LL4AL against the loss by hand, one update step, and its life as a companion of a training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.features import mean_over_positions
from upslope.models.resnet import resnet_small
from upslope.pool import Need
from upslope.strategies import build
from upslope.strategies.learning_loss import PREDICTED_LOSS
from upslope.training import auxiliary_module, trains_along
from upslope.training.loss_prediction import (
    LearningLossModule,
    LossPrediction,
    ranking_loss,
)

CPU = torch.device("cpu")


@dataclass
class Batch:
    losses: Tensor
    progress: float = 0.0
    lr: float = 0.1
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )


class Staged(nn.Module):
    stages = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean(dim=(2, 3)))


def test_ranking_loss_by_hand() -> None:
    # Pairs (0, 4), (1, 3); the third of five has no partner.
    predicted = torch.tensor([0.5, 0.2, 9.0, 1.0, 0.1])
    losses = torch.tensor([2.0, 0.3, 7.0, 0.4, 1.0])
    # l_0 > l_4: max(0, 1 - 0.4) = 0.6.  l_1 < l_3: max(0, 1 + (0.2 - 1.0)) = 0.2.
    assert float(ranking_loss(predicted, losses)) == pytest.approx((0.6 + 0.2) / 2)
    # Equal losses: the first counts as smaller.
    assert float(ranking_loss(torch.tensor([0.3, 0.0]), torch.ones(2))) == pytest.approx(1.3)


def test_the_losses_are_held_constant() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    predicted = torch.zeros(2, requires_grad=True)
    ranking_loss(predicted, losses).backward()
    assert losses.grad is None
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [1.0, -1.0]


def test_the_module_has_the_sources_parameters_on_resnet18_stages() -> None:
    module = LossPrediction([64, 128, 256, 512])
    assert sum(p.numel() for p in module.parameters()) == 123_905


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4, 4), (3, 5, 2, 3, 4)])
def test_any_number_of_positions_is_pooled(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = x if x.ndim == 2 else x.mean(dim=tuple(range(2, x.ndim)))
    assert torch.allclose(mean_over_positions(x), expected, atol=1e-6)


def test_one_update_is_sgds_on_the_ranking_loss() -> None:
    model, companion = Staged(), LearningLossModule()
    companion.begin(model, CPU, 3)
    inputs, losses = torch.randn(6, 1, 8, 8), torch.rand(6)
    model(inputs)
    extra = companion.loss(Batch(losses))
    assert extra is not None
    assert companion.module is not None
    before = {n: p.detach().clone() for n, p in companion.module.named_parameters()}
    twin = LossPrediction([3, 4])
    twin.load_state_dict(before)
    outputs = [model.one(inputs), model.two(model.one(inputs).relu())]
    expected = ranking_loss(twin(outputs), losses)
    assert torch.allclose(extra, expected)
    extra.backward()
    grads = torch.autograd.grad(expected, list(twin.parameters()))
    assert model.one.weight.grad is not None
    companion.step(Batch(losses, lr=0.05))
    for (name, p), grad in zip(companion.module.named_parameters(), grads, strict=True):
        assert torch.allclose(p, before[name] - 0.05 * (grad + 5e-4 * before[name]), atol=1e-6)
        assert p.grad is None
    companion.end()
    assert not any(m._forward_hooks for m in model.modules())


def test_two_updates_in_numpy() -> None:
    """Forward, gradient of the ranking loss, and SGD with momentum, by their formulas."""
    torch.manual_seed(1)
    model, companion = Staged(), LearningLossModule()
    companion.begin(model, CPU, 3)
    inputs = [torch.randn(5, 1, 8, 8) for _ in range(2)]
    losses = [torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3]), torch.tensor([0.2, 0.8, 0.1, 0.4, 0.6])]
    weights: list[np.ndarray] = []
    momenta: list[np.ndarray] = []
    for x, true in zip(inputs, losses, strict=True):
        model(x)
        extra = companion.loss(Batch(true))
        assert extra is not None
        assert companion.module is not None
        if not weights:
            weights = [p.detach().double().numpy().copy() for p in companion.module.parameters()]
            momenta = [np.zeros_like(w) for w in weights]
        extra.backward()
        companion.step(Batch(true, lr=0.05))

        w1, b1, w2, b2, w, b = weights
        with torch.no_grad():
            one = model.one(x)
            two = model.two(one.relu())
        s1, s2 = (t.double().numpy().mean(axis=(2, 3)) for t in (one, two))
        z1, z2 = s1 @ w1.T + b1, s2 @ w2.T + b2
        h = np.concatenate([np.maximum(z1, 0), np.maximum(z2, 0)], axis=1)
        predicted = (h @ w.T + b)[:, 0]
        slope = np.zeros(5)
        total = 0.0
        for i, j in ((0, 4), (1, 3)):
            sign = 1.0 if true[i] > true[j] else -1.0
            hinge = 1 - sign * (predicted[i] - predicted[j])
            if hinge > 0:
                total += hinge / 2
                slope[i] -= sign / 2
                slope[j] += sign / 2
        assert extra.item() == pytest.approx(total, rel=1e-5)
        to_h = slope[:, None] * w
        to_z1, to_z2 = to_h[:, :128] * (z1 > 0), to_h[:, 128:] * (z2 > 0)
        grads = [
            to_z1.T @ s1,
            to_z1.sum(0),
            to_z2.T @ s2,
            to_z2.sum(0),
            slope[None] @ h,
            slope.sum(),
        ]
        for k, grad in enumerate(grads):
            momenta[k] = 0.9 * momenta[k] + grad + 5e-4 * weights[k]
            weights[k] = weights[k] - 0.05 * momenta[k]
    assert companion.module is not None
    for p, expected in zip(companion.module.parameters(), weights, strict=True):
        assert np.allclose(p.detach().numpy(), expected, atol=1e-6)


def test_late_in_training_no_gradient_reaches_the_task_network() -> None:
    model, companion = Staged(), LearningLossModule()
    companion.begin(model, CPU, 3)
    for progress, reached in ((0.59, True), (0.6, False)):
        model.zero_grad()
        model(torch.randn(4, 1, 8, 8))
        extra = companion.loss(Batch(torch.tensor([0.0, 1.0, 2.0, 3.0]), progress=progress))
        assert extra is not None
        extra.backward()
        assert (model.one.weight.grad is not None) is reached


def test_state_goes_on_where_it_was() -> None:
    def steps(companion: LearningLossModule, model: nn.Module, batches: list[Tensor]) -> None:
        for x in batches:
            model(x)
            extra = companion.loss(Batch(x.flatten(1).mean(dim=1)))
            assert extra is not None
            extra.backward()
            companion.step(Batch(x))

    torch.manual_seed(0)
    model, batches = Staged(), [torch.randn(6, 1, 8, 8) for _ in range(6)]
    whole, first, second = (LearningLossModule() for _ in range(3))
    whole.begin(model, CPU, 1)
    steps(whole, model, batches)
    first.begin(model, CPU, 1)
    steps(first, model, batches[:3])
    kept = {k: v.clone() for k, v in first.state().items()}
    first.end()
    second.begin(model, CPU, 1)
    second.load(kept)
    steps(second, model, batches[3:])
    assert whole.state().keys() == second.state().keys()
    assert all(torch.equal(v, second.state()[k]) for k, v in whole.state().items())


def test_a_scaled_loss_moves_the_module_as_the_loss_itself_and_by_no_infinite_gradient() -> None:
    def updated(scaler: torch.amp.GradScaler, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        companion = LearningLossModule()
        companion.begin(model, CPU, 1)
        batch = Batch(losses, scaler=scaler)
        model(inputs)
        extra = companion.loss(batch)
        assert extra is not None
        assert companion.module is not None
        before = companion.module.head.weight.detach().clone()
        scaler.scale(factor * extra).backward()
        companion.step(batch)
        scaler.update()
        companion.end()
        return before, companion.module.head.weight.detach()

    model, inputs, losses = Staged(), torch.randn(6, 1, 8, 8), torch.rand(6)
    _, plain = updated(torch.amp.GradScaler("cpu", enabled=False))
    _, scaled = updated(torch.amp.GradScaler("cpu"))
    torch.testing.assert_close(scaled, plain)
    before, overflown = updated(torch.amp.GradScaler("cpu"), factor=torch.inf)
    assert torch.equal(overflown, before)


def test_signal_is_the_modules_prediction_on_a_real_network() -> None:
    model = resnet_small(num_classes=3, input_shape=(1, 8, 8)).eval()
    strategy = build("ll4al")
    assert trains_along(strategy)
    companion = auxiliary_module(strategy)
    assert isinstance(companion, LearningLossModule)
    companion.begin(model, CPU, 0)
    signal = companion.signal(PREDICTED_LOSS)
    assert signal is not None
    assert companion.signal(Need.of("entropy")) is None
    assert strategy.needs == (PREDICTED_LOSS,)
    values = signal.compute(model, None, torch.randn(5, 1, 8, 8))
    assert values.shape == (5,)
    assert not values.requires_grad


def test_a_network_without_stages_is_refused_before_any_training() -> None:
    with pytest.raises(ModelError, match="attribute `stages`"):
        LearningLossModule().begin(nn.Linear(2, 2), CPU, 0)


def test_a_batch_of_one_has_no_pairs() -> None:
    model, companion = Staged(), LearningLossModule()
    companion.begin(model, CPU, 0)
    model(torch.randn(1, 1, 8, 8))
    assert companion.loss(Batch(torch.ones(1))) is None
    companion.step(Batch(torch.ones(1)))
