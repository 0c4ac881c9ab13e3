"""Expected gradient length against brute force; losses without labels and what they imply."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from short_forms import mark_rest_long
from upslope.errors import GradientNormError
from upslope.gradnorm import (
    entropy,
    estimated_rms_length,
    expected,
    expected_gradient_length,
    gradient_norms,
    supervised,
)
from upslope.gradnorm.trace.forward import Forward


def net(classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, classes),
    ).double().eval()  # fmt: skip


def batch(n: int = 4, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, 2, 6, generator=generator, dtype=torch.float64)


def by_brute_force(model: nn.Module, x: Tensor, norm: str, power: int) -> Tensor:
    p = model(x).softmax(dim=1).detach()
    total = torch.zeros(len(x), dtype=torch.float64)
    for label in range(p.shape[1]):
        norms = norms_one_by_one(
            model, x, lambda out, _, label=label: -out[0].log_softmax(dim=0)[label], norm
        )
        total += p[:, label] * norms**power
    return total if power == 1 else total.sqrt()


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
@pytest.mark.parametrize(("kind", "power"), [("mean", 1), ("rms", 2)])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_exact_over_all_classes(classes, kind, power, norm):
    model, x = net(classes), batch()
    found = expected_gradient_length(model, x, kind=kind, norm=norm)
    assert relative_error(found.scores, by_brute_force(model, x, norm, power)) < 1e-9
    assert torch.allclose(found.covered, torch.ones(4, dtype=torch.float64))
    assert not found.error_bound.any()


def test_one_backward_pass_for_two_classes(monkeypatch):
    model, x, passes = net(2), batch(), []
    expected_gradient_length(model, x)  # the first batch is proven
    backward = Forward.backward
    monkeypatch.setattr(Forward, "backward", lambda *a, **k: passes.append(backward(*a, **k)))
    expected_gradient_length(model, x)
    assert len(passes) == 1


@pytest.mark.parametrize(("kind", "passes"), [("mean", 5), ("rms", 4)])
def test_a_mean_square_takes_a_pass_fewer_than_there_are_classes(kind, passes, monkeypatch):
    model, x, seen = net(5), batch(), []
    expected_gradient_length(model, x, kind=kind)  # the first batch is proven
    backward = Forward.backward
    monkeypatch.setattr(Forward, "backward", lambda *a, **k: seen.append(backward(*a, **k)))
    expected_gradient_length(model, x, kind=kind)
    assert len(seen) == passes


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_a_mean_square_loses_no_digits_where_a_network_is_sure(scale):
    model, x = net(6), batch(8, scale=scale)
    exact = by_brute_force(model, x, "global", 2)
    found = expected_gradient_length(model, x, kind="rms").scores
    assert torch.allclose(found, exact, rtol=1e-9, atol=0)
    single = expected_gradient_length(net(6).float(), x.float(), kind="rms").scores
    assert torch.allclose(single, exact, rtol=1e-3, atol=1e-12)


def test_a_mean_square_where_samples_have_masked_classes():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(5)

        def forward(self, x):
            is_masked = torch.arange(5) >= (x[:, 0, :1] > 0).long() * 2 + 2  # two classes, or four
            return self.net(x).masked_fill(is_masked, -torch.inf)

    model, x = Masked(), batch(6)
    p = model(x).softmax(dim=1).detach()
    assert set((p > 0).sum(dim=1).tolist()) == {2, 4}
    total = torch.zeros(6, dtype=torch.float64)
    for n in range(6):
        for label in range(5):
            if p[n, label] > 0:
                loss = -model(x[n : n + 1]).log_softmax(dim=1)[0, label]
                each = torch.autograd.grad(loss, list(model.parameters()))
                total[n] += p[n, label] * sum(g.square().sum() for g in each)
    found = expected_gradient_length(model, x, kind="rms")
    assert torch.allclose(found.scores, total.sqrt(), rtol=1e-9)


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
@pytest.mark.parametrize(("kind", "power"), [("mean", 1), ("rms", 2)])
@pytest.mark.parametrize("classes", mark_rest_long([2, 5, 3, 12], 2))
def test_truncation_error_is_within_its_bound(classes, kind, power, norm):
    for seed in range(6):
        model, x = net(classes, seed), batch(8, seed, scale=1.0 + 3 * (seed % 3))
        exact = by_brute_force(model, x, norm, power)
        for share in (0.3, 0.7, 0.95):
            found = expected_gradient_length(model, x, share=share, kind=kind, norm=norm)
            missing = exact - found.scores
            assert (missing >= -1e-12).all()
            assert (missing <= found.error_bound + 1e-12).all(), (seed, share)
            assert (found.covered >= share - 1e-12).all()


def test_truncation_that_leaves_out_nothing_is_exact():
    model, x = net(2), batch(scale=0.01)  # both classes near one half
    found = expected_gradient_length(model, x, share=0.9)
    assert relative_error(found.scores, by_brute_force(model, x, "global", 1)) < 1e-9
    assert not found.error_bound.any()


def test_logits_by_the_pixel_are_refused():
    model = nn.Conv2d(2, 3, 1).double()
    with pytest.raises(GradientNormError, match=r"shape \(n, classes\).*classes\^pixels"):
        expected_gradient_length(model, torch.randn(2, 2, 4, 4).double())


def test_entropy_is_the_expected_cross_entropy():
    model, x = net(), batch()
    one, other = (gradient_norms(model, x, loss) for loss in ("entropy", "expected"))
    assert relative_error(one, other) < 1e-9


def test_a_detached_posterior_leaves_no_gradient():
    model, x = net(), batch()
    scale = gradient_norms(model, x, "entropy").max()
    assert gradient_norms(model, x, expected(posterior="detached")).max() < 1e-12 * scale


def test_the_entropy_gradient_is_zero_at_ties_and_the_expected_length_is_not():
    model = nn.Linear(4, 4).double()
    with torch.no_grad():
        model.weight[1] = model.weight[0]
        model.weight[2:] = 0
        model.bias.copy_(torch.tensor([0.0, 0.0, -1e4, -1e4]))
    x = torch.randn(3, 4).double()
    assert gradient_norms(model, x, "entropy").max() < 1e-12
    assert expected_gradient_length(model, x).scores.min() > 0.1
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)  # uniform
    assert gradient_norms(model, x, "entropy").max() < 1e-12


def focal(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    assert reduction == "none"
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    return -((1 - log_p.exp()) ** 2) * log_p


@pytest.mark.parametrize("posterior", ["graph", "detached"])
def test_expected_loss_of_another_criterion(posterior):
    def alone(out: Tensor, _: int) -> Tensor:
        p = out[0].softmax(dim=0)
        weights = p if posterior == "graph" else p.detach()
        return (weights * -((1 - p) ** 2) * p.log()).sum()

    assert_agrees(net(), batch(), loss=expected(focal, posterior=posterior), point_loss=alone)


def test_supervised_loss():
    labels = torch.tensor([0, 3, 1, 4])
    assert_agrees(net(), batch(), loss=supervised(labels),
          point_loss=lambda out, i: F.cross_entropy(out[0], labels[i]))  # fmt: skip


def test_losses_by_the_pixel_are_averaged_over_the_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    x, labels = torch.randn(3, 2, 5, 4), torch.randint(0, 3, (3, 5, 4))
    assert_agrees(model, x)
    assert_agrees(model, x, loss=supervised(labels),
          point_loss=lambda out, i: F.cross_entropy(out, labels[i : i + 1]))  # fmt: skip


def test_entropy_is_finite_for_certain_logits():
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(entropy(logits), torch.tensor([0.0, 3.0]).log1p() * 0 + torch.tensor(
        [0.0, 1.0986123]))  # fmt: skip


class MaskedClasses(nn.Module):
    """A network that gives some classes no probability: the second, or a class per sample."""

    def __init__(self, by_sample: bool) -> None:
        super().__init__()
        self.body, self.by_sample = net(), by_sample

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        hidden = torch.arange(5) == 1
        if self.by_sample:
            hidden = torch.arange(5) == (x[:, 0, 0] > 0).long()[:, None]
        return z.masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize(("kind", "power"), [("mean", 1), ("rms", 2)])
def test_masked_classes_add_nothing(by_sample, kind, power):
    model, x = MaskedClasses(by_sample), batch(6)
    p, exact = model(x).softmax(dim=1).detach(), torch.zeros(6, dtype=torch.float64)
    for label in range(5):
        for i in (p[:, label] > 0).nonzero().flatten().tolist():
            one = norms_one_by_one(
                model, x[i : i + 1], lambda out, _, label=label: -out[0].log_softmax(dim=0)[label]
            )
            exact[i] += p[i, label] * one[0] ** power
    exact = exact if power == 1 else exact.sqrt()
    found = expected_gradient_length(model, x, kind=kind)
    assert relative_error(found.scores, exact) < 1e-9
    assert not found.error_bound.any()
    part = expected_gradient_length(model, x, kind=kind, share=0.7)
    assert bool((exact - part.scores <= part.error_bound * (1 + 1e-9)).all())
    if kind == "rms":
        estimate = estimated_rms_length(model, x, probes=64)
        assert bool(((estimate.scores - exact).abs() < 6 * estimate.standard_error + 1e-9).all())


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_samples_without_a_posterior_are_refused(share):
    x = batch()
    x[2] = torch.nan
    with pytest.raises(GradientNormError, match=r"samples \[2\]"):
        expected_gradient_length(net(), x, share=share)


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.01, 0.01)


class Clipped(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Clip.apply(self.body(x)))


@pytest.mark.parametrize("kind", ["mean", "rms"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("n", [1, 4])
def test_gradients_that_are_clipped_are_made_of_no_others(n, classes, kind):
    torch.manual_seed(0)
    model, x = Clipped(classes).double(), torch.randn(n, 4, dtype=torch.float64)
    power, total = 1 if kind == "mean" else 2, torch.zeros(n, dtype=torch.float64)
    p = model(x).detach().softmax(dim=1)
    for label in range(classes):
        norms = norms_one_by_one(
            model, x, lambda out, _, c=label: F.cross_entropy(out[0], torch.tensor(c))
        )
        total += p[:, label] * norms**power
    found = expected_gradient_length(model, x, kind=kind).scores
    assert relative_error(found, total if kind == "mean" else total.sqrt()) < 1e-9


def test_nothing_is_claimed_of_gradients_that_are_clipped_and_left_out():
    torch.manual_seed(0)
    model, x = Clipped(5).double(), torch.randn(4, 4, dtype=torch.float64)
    assert expected_gradient_length(model, x, share=0.5).error_bound.isinf().all()
    assert (expected_gradient_length(model, x).error_bound == 0).all()
    with pytest.raises(GradientNormError, match=r"`torch\.autograd\.Function` or a hook"):
        estimated_rms_length(model, x)
