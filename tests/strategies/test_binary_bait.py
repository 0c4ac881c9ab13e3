"""Binary BAIT against matrices written out: the information from autograd, every greedy step."""

from __future__ import annotations

import pytest
import torch
from oracles import least_traces
from pools import generator, make_pool
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import logsigmoid

from upslope.errors import SelectionError
from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.binary_bait import BinaryBait, batch_design, information_roots
from upslope.strategies.design import RankOneDesign


def explicit(p: Tensor, h: Tensor) -> list[Tensor]:
    """E[g g^T] over "the most probable class" and "another", g by the weight of their one logit."""
    matrices = []
    for p_x, h_x in zip(p.double(), h.double(), strict=True):
        q = p_x.max()
        weight = torch.zeros(len(h_x), dtype=torch.float64, requires_grad=True)
        logit = weight @ h_x + (q / (1 - q)).log()
        yes, no = -logsigmoid(logit), -logsigmoid(-logit)
        g_yes, g_no = (grad(loss, weight, retain_graph=True)[0] for loss in (yes, no))
        matrices.append(q * torch.outer(g_yes, g_yes) + (1 - q) * torch.outer(g_no, g_no))
    return matrices


def greedy(pool: PoolView, strategy: BinaryBait, budget: int) -> list[str]:
    h, p = (pool.signal(need) for need in strategy.needs)
    h_l, p_l = (pool.labelled_signal(need) for need in strategy.needs)
    of, known = explicit(p, h), explicit(p_l, h_l)
    m = len(known)
    zero = torch.zeros(h.shape[1], h.shape[1], dtype=torch.float64)
    target = torch.stack([*of, *known]).mean(dim=0)
    base = strategy.ridge * torch.eye(len(zero), dtype=torch.float64)
    if m:
        base = base + torch.stack(known).mean(dim=0) * m / (m + budget)

    def trace(chosen: list[int]) -> float:
        matrix = base + sum((of[i] for i in chosen), zero) * budget / (m + budget)
        return float(torch.linalg.solve(matrix, target).trace())

    return [pool.candidates[i] for i in least_traces(trace, len(pool), budget)]


@pytest.mark.parametrize("labelled", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_greedy_search_with_matrices_written_out(seed: int, labelled: int) -> None:
    strategy = BinaryBait(ridge=0.01 if seed % 2 else 1.0)
    pool = make_pool(strategy.needs, 14, labelled, seed)
    assert list(strategy.select(pool, 4, generator()).ids) == greedy(pool, strategy, 4)


def test_gains_and_losses_after_many_changes() -> None:
    pool = make_pool(BinaryBait().needs, 40, 5)
    h, p = (pool.signal(need) for need in BinaryBait().needs)
    h_l, p_l = (pool.labelled_signal(need) for need in BinaryBait().needs)
    x, y = information_roots(p, h), information_roots(p_l, h_l)
    design = batch_design(x, y, 8, 0.01)
    base = torch.linalg.inv(design.inverse)
    for i in range(30):
        design.add(i)
    for i in range(0, 30, 2):
        design.remove(i)
    left = list(range(1, 30, 2))
    chosen = design.x[left]
    again = RankOneDesign(design.x, base + chosen.T @ chosen, design.target)
    assert torch.allclose(design.gains(), again.gains(), rtol=1e-6)
    assert torch.allclose(design.losses(left), again.losses(left), rtol=1e-6)
    before, gain = design.trace(), float(design.gains()[35])
    assert before == pytest.approx(again.trace(), rel=1e-9)
    design.add(35)
    assert before - design.trace() == pytest.approx(gain, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_features_of_any_length(scale: float) -> None:
    pool = make_pool(BinaryBait().needs, 30, 3)
    pool.signals[BinaryBait().needs[0]].mul_(scale)
    selection = BinaryBait().select(pool, 10, generator())
    assert len(set(selection.ids)) == 10
    assert selection.scores is not None
    assert selection.scores.isfinite().all()


def test_features_by_whose_length_rounding_would_decide_are_refused() -> None:
    pool = make_pool(BinaryBait().needs, 30, 0)
    pool.signals[BinaryBait().needs[0]][7] *= 1e5
    with pytest.raises(SelectionError, match=r"for binary-bait whose information.*raise `ridge`"):
        BinaryBait().select(pool, 10, generator())


def test_serves_more_classes_than_bait() -> None:
    strategy = build("binary-bait")
    h_need, p_need = strategy.needs
    rng = generator()
    pool = PoolView(
        [f"{i}" for i in range(40)],
        {
            h_need: torch.randn(40, 64, generator=rng),
            p_need: torch.randn(40, 1000, generator=rng).softmax(dim=1),
        },
    )
    assert len(set(strategy.select(pool, 7, generator()).ids)) == 7
