"""The influence signal against an explicit Hessian, inverted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from toy import context

from upslope.errors import ModelError
from upslope.pool import Need
from upslope.signals import FitContext, build
from upslope.signals.isal import solve


def small() -> FitContext:
    """Two weight matrices and a BatchNorm in eval mode: 4 x 64 + 2 x 4 weights that count."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)
        ).eval()
    return context(model=model, labelled=20)


def explicit(ctx: FitContext, label: str, damping: float, inputs: Tensor) -> Tensor:
    """v^T (H + damping I)^-1 g_x from the matrix itself, in float64."""
    model = ctx.model
    state = {k: v.detach().double() for k, v in model.state_dict().items() if v.is_floating_point()}
    names = ["1.weight", "4.weight"]
    sizes = [state[n].numel() for n in names]

    def logits(flat: Tensor, x: Tensor) -> Tensor:
        parts = flat.split(sizes)
        chosen = {n: p.reshape(state[n].shape) for n, p in zip(names, parts, strict=True)}
        return functional_call(model, {**state, **chosen}, (x.double(),))

    flat = torch.cat([state[n].flatten() for n in names])
    known = ctx.dataset.inputs(list(ctx.labelled))

    def reference(w: Tensor) -> Tensor:
        return F.cross_entropy(logits(w, known), ctx.targets)

    v = torch.autograd.functional.jacobian(reference, flat)
    hessian = torch.autograd.functional.hessian(reference, flat)
    s = torch.linalg.solve(hessian + damping * torch.eye(len(flat), dtype=torch.float64), v)

    def losses(w: Tensor) -> Tensor:
        z = logits(w, inputs)
        if label == "pseudo":
            return F.cross_entropy(z, z.detach().argmax(dim=1), reduction="none")
        return -(z.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1)

    return torch.autograd.functional.jacobian(losses, flat) @ s


@pytest.mark.parametrize("label", ["pseudo", "expected"])
@pytest.mark.parametrize("damping", [6.0, 100.0])
def test_scores_are_those_of_the_explicit_inverse(label: str, damping: float) -> None:
    ctx = small()
    need = Need.of("influence", label=label, damping=damping, iterations=100)
    signal = build(need).fit(ctx)  # type: ignore[attr-defined]
    inputs = ctx.dataset.inputs(list(range(30, 60)))
    expected = explicit(ctx, label, damping, inputs)
    scores = signal.compute(ctx.model, ctx.task, inputs)
    largest = float(expected.abs().max())
    assert torch.allclose(scores.double(), expected, rtol=2e-3, atol=1e-4 * largest)
    assert expected.abs().min() > 0


def test_leaves_the_model_as_it_was() -> None:
    ctx = small()
    before = {k: v.clone() for k, v in ctx.model.state_dict().items()}
    signal = build(Need.of("influence")).fit(ctx)  # type: ignore[attr-defined]
    signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([3, 70]))
    assert all(torch.equal(before[k], v) for k, v in ctx.model.state_dict().items())
    assert all(p.grad is None for p in ctx.model.parameters())
    assert not ctx.model.training


def test_nothing_labelled_is_refused() -> None:
    ctx = replace(small(), labelled=[], targets=torch.empty(0, dtype=torch.int64))
    with pytest.raises(ModelError, match="Start with another strategy"):
        build(Need.of("influence")).fit(ctx)  # type: ignore[attr-defined]


def test_negative_curvature_ends_the_solution_where_it_is() -> None:
    a, v = torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([0.0, 1.0])
    assert solve(lambda x: a @ x, v, 10).tolist() == [0.0, 1.0]


def test_a_gradient_whose_square_underflows_is_solved_for_too() -> None:
    """That of a labelled set which is fitted perfectly."""
    a, v = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([1e-25, -3e-25])
    expected = torch.linalg.solve(a, v)
    assert torch.allclose(solve(lambda x: a @ x, v, 10), expected, rtol=1e-5, atol=0)
    assert solve(lambda x: a @ x, 0 * v, 10).tolist() == [0.0, 0.0]


class Attends(nn.Module):
    """By the fused operator, whose derivative PyTorch differentiates no further; and a head that
    nothing uses, as networks have for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head, self.unused = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.squeeze(1)).mean(dim=1))


@pytest.mark.parametrize("label", ["pseudo", "expected"])
def test_networks_with_attention_and_with_weights_that_are_not_used(label: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attends().eval()
    ctx = context(model=model, labelled=20)
    damping = 1e6  # beside which the Hessian is nothing
    signal = build(Need.of("influence", label=label, damping=damping)).fit(ctx)  # type: ignore[attr-defined]
    inputs = ctx.dataset.inputs([50, 51, 100])
    scores = signal.compute(model, ctx.task, inputs)
    weights = [p for p in model.parameters() if p.ndim > 1]

    def gradient(loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in grads]).double()

    v = gradient(F.cross_entropy(model(ctx.dataset.inputs(list(range(20)))), ctx.targets))
    expected = []
    for x in inputs:
        z = model(x[None])
        log_p = z.log_softmax(dim=1)
        pseudo = F.cross_entropy(z, z.argmax(dim=1))
        loss = pseudo if label == "pseudo" else -(log_p.exp() * log_p).sum()
        expected.append(float(v @ gradient(loss)) / damping)
    assert scores.tolist() == pytest.approx(expected, rel=1e-3)
