"""The graph strategies against dense algebra."""

from __future__ import annotations

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.strategies import build
from upslope.strategies.gcn import Graph, GraphNetwork, loss_of


def dense(features: Tensor) -> Tensor:
    """A = S D^-1 + I, as the paper writes it."""
    z = features / features.norm(dim=1, keepdim=True)
    s = z @ z.T - torch.eye(len(z), dtype=z.dtype)
    return s @ torch.diag(1 / s.sum(dim=0)) + torch.eye(len(z), dtype=z.dtype)


def run(network: GraphNetwork, features: Tensor) -> tuple[Tensor, Tensor]:
    graph = Graph.of(features)
    return network(graph, graph.propagate(graph.z), dropout=False)


def test_propagation_is_the_dense_matrix() -> None:
    features = torch.rand(30, 5, generator=generator())
    x = torch.randn(30, 3, generator=generator(1))
    a = dense(features.double())
    assert torch.allclose(Graph.of(features).propagate(x).double(), a @ x.double(), atol=1e-5)


def test_network_and_loss_are_the_papers() -> None:
    features = torch.rand(30, 5, generator=generator()).double()
    a, z = dense(features), features / features.norm(dim=1, keepdim=True)
    network = GraphNetwork(5, generator(2))
    w1, b1, w2, b2 = (p.detach().double() for p in network.parameters())
    hidden = (a @ z @ w1 + b1).clamp(min=0)
    s = torch.sigmoid(a @ hidden @ w2 + b2).flatten()
    with torch.no_grad():
        ours_hidden, logits = run(network, features.float())
    assert torch.allclose(ours_hidden.double(), hidden, atol=1e-5)
    assert torch.allclose(logits.sigmoid().double(), s, atol=1e-5)
    expected = -s[:8].log().mean() - 1.2 * (1 - s[8:]).log().mean()
    assert float(loss_of(logits, 8)) == pytest.approx(float(expected), abs=1e-5)
    cold = -1.2 * (1 - s).log().mean()
    assert float(loss_of(logits, 0)) == pytest.approx(float(cold), abs=1e-5)


def test_gradient_is_that_of_the_dense_network() -> None:
    features = torch.rand(20, 4, generator=generator())
    network = GraphNetwork(4, generator(2))
    ours = torch.autograd.grad(loss_of(run(network, features)[1], 6), network.parameters())
    a = dense(features)
    z = features / features.norm(dim=1, keepdim=True)
    hidden = (a @ z @ network.w1 + network.b1).relu()
    s = torch.sigmoid(a @ hidden @ network.w2 + network.b2)
    loss = -s[:6].log().mean() - 1.2 * (1 - s[6:]).log().mean()
    for got, expected in zip(ours, torch.autograd.grad(loss, network.parameters()), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_the_network_learns_which_samples_are_labelled() -> None:
    """Labelled samples lie along one axis, candidates along it and along another."""
    strategy = build("uncertain-gcn", steps=300)
    need = strategy.needs[0]
    pool = make_pool((need,), 40, 20)
    axes = torch.zeros(60, 6)
    axes[:40, 0], axes[40:, 1] = 1, 1
    noisy = axes + 0.1 * torch.rand(60, 6, generator=generator())
    pool.labelled_signals[need], pool.signals[need] = noisy[:20], noisy[20:]  # type: ignore[index]
    _, s = strategy.fit_network(pool, generator())  # type: ignore[attr-defined]
    near, far = s[20:40], s[40:]
    assert near.mean() > far.mean() + 0.2


def test_uncertain_gcn_takes_the_scores_nearest_to_a_tenth() -> None:
    strategy = build("uncertain-gcn", steps=20)
    pool = make_pool(strategy.needs, 30, 8)
    _, s = strategy.fit_network(pool, generator())  # type: ignore[attr-defined]
    order = (s[8:] - 0.1).abs().argsort().tolist()
    assert strategy.select(pool, 6, generator()).ids == tuple(pool.candidates[i] for i in order[:6])


def test_core_gcn_takes_the_farthest_hidden_units() -> None:
    strategy = build("core-gcn", steps=20)
    pool = make_pool(strategy.needs, 30, 8)
    hidden, _ = strategy.fit_network(pool, generator())  # type: ignore[attr-defined]
    first = int(torch.cdist(hidden[8:], hidden[:8]).amin(dim=1).argmax())
    assert strategy.select(pool, 3, generator()).ids[0] == pool.candidates[first]
