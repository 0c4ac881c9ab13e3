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
from upslope.signals.isal import conjugate_gradients


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
    a = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    v = (torch.tensor([0.0, 1.0]),)

    def times(x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (a @ x[0],)

    assert conjugate_gradients(times, v, 10, lambda _: None)[0].tolist() == [0.0, 1.0]
