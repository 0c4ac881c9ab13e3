"""BAIT against explicit matrices: every step of the greedy search, and its own traces."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_traces
from pools import generator, make_pool
from torch import Tensor

from upslope.errors import SelectionError
from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.bait import Bait
from upslope.strategies.fisher import Fisher
from upslope.strategies.fisher_bounds import LazyGains
from upslope.strategies.information import basis, information
from upslope.strategies.symmetric import forms


def explicit(p: Tensor, h: Tensor) -> list[Tensor]:
    """sum_y p_y g_y g_y^T of each sample, g_y from autograd."""
    matrices = []
    for p_x, h_x in zip(p, h, strict=True):
        total = torch.zeros(len(p_x) * len(h_x), len(p_x) * len(h_x), dtype=p.dtype)
        for y, share in enumerate(p_x):
            weight = torch.zeros(len(p_x), len(h_x), dtype=p.dtype, requires_grad=True)
            loss = -(weight @ h_x + p_x.log()).log_softmax(dim=0)[y]
            g = torch.autograd.grad(loss, weight)[0].flatten()
            total += share * torch.outer(g, g)
        matrices.append(total)
    return matrices


def greedy(pool: PoolView, strategy: Bait, budget: int) -> list[str]:
    p, h = (pool.signal(need).double() for need in strategy.needs)
    of = explicit(p, h)
    fisher = torch.stack(of).sum(dim=0)
    base = strategy.ridge * torch.eye(len(fisher), dtype=p.dtype)
    for matrix in explicit(*(pool.labelled_signal(need).double() for need in strategy.needs)):
        base = base + matrix

    def trace(chosen: list[int]) -> float:
        matrix = base + sum((of[i] for i in chosen), torch.zeros_like(base))
        return float(torch.linalg.solve(matrix, fisher).trace())

    return [pool.candidates[i] for i in least_traces(trace, len(pool), budget)]


@pytest.mark.parametrize("labelled", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_greedy_search_with_matrices_written_out(seed: int, labelled: int) -> None:
    strategy = Bait(ridge=0.01 if seed % 2 else 1.0)
    pool = make_pool(strategy.needs, 14, labelled, seed)
    assert list(strategy.select(pool, 4, generator()).ids) == greedy(pool, strategy, 4)


def test_information_is_that_of_the_gradients() -> None:
    pool = make_pool(Bait().needs, 6, 0)
    p, h = (pool.signal(need).double() for need in Bait().needs)
    whole = torch.stack(explicit(p, h)).sum(dim=0)
    b = torch.kron(basis(p.shape[1]).contiguous(), torch.eye(h.shape[1], dtype=p.dtype))
    assert torch.allclose(information(p, h), b.T @ whole @ b, atol=1e-6)
    assert torch.allclose(b @ information(p, h) @ b.T, whole, atol=1e-6)


def test_gains_and_losses_after_many_changes() -> None:
    pool = make_pool(Bait().needs, 40, 5)
    p, h = (pool.signal(need).double() for need in Bait().needs)
    known = information(*(pool.labelled_signal(need).double() for need in Bait().needs))
    fisher = Fisher(p, h, information(p, h), known, 0.01)
    for i in range(30):
        fisher.add(i)
    for i in range(0, 30, 2):
        fisher.remove(i)
    left = list(range(1, 30, 2))
    again = Fisher(p, h, information(p, h), known + information(p[left], h[left]), 0.01)
    assert torch.allclose(fisher.gains(), again.gains(), rtol=1e-6)
    assert torch.allclose(fisher.losses(left), again.losses(left), rtol=1e-6)
    assert fisher.trace() == pytest.approx(again.trace(), rel=1e-6)
    before = fisher.trace()
    gain = float(fisher.gains()[35])
    fisher.add(35)
    assert before - fisher.trace() == pytest.approx(gain, rel=1e-6)


def test_features_of_any_length() -> None:
    for scale in (1e-6, 1e2):
        pool = make_pool(Bait().needs, 30, 3)
        pool.signals[Bait().needs[1]].mul_(scale)
        selection = Bait().select(pool, 10, generator())
        assert len(set(selection.ids)) == 10
        assert math.isfinite(selection.notes["trace"])


@pytest.mark.parametrize(("scale", "rows"), [(1e5, slice(None)), (1e4, [7])])
def test_features_by_whose_length_rounding_would_decide_are_refused(
    scale: float, rows: slice | list[int]
) -> None:
    """Of these lengths other samples were chosen than in arithmetic of 60 digits."""
    pool = make_pool(Bait().needs, 30, 0)
    pool.signals[Bait().needs[1]][rows] *= scale
    with pytest.raises(SelectionError, match=r"for bait whose information.*raise `ridge`"):
        Bait().select(pool, 10, generator())


def test_too_many_classes_and_features_are_refused_before_any_training() -> None:
    p, h = torch.full((2, 100), 0.01), torch.zeros(2, 512)
    strategy = build("bait")
    pool = PoolView(["a", "b"], dict(zip(strategy.needs, (p, h), strict=True)))
    with pytest.raises(SelectionError, match="100 times 512 is 51200"):
        strategy.check_shapes(pool.signals)
    with pytest.raises(SelectionError, match="Take badge"):
        strategy.select(pool, 1, generator())


def test_posteriors_of_single_precision_and_long_features() -> None:
    """Sums that miss 1 by rounding, times features this long, would outweigh the ridge."""
    pool = make_pool(Bait().needs, 30, 200)
    p_need, h_need = Bait().needs
    for signals in (pool.signals, pool.labelled_signals):
        signals[h_need].add_(3).mul_(1e3)
        signals[p_need].mul_(1 + 2e-7)
    assert float((pool.labelled_signal(p_need).double().sum(dim=1) - 1).mean()) > 1e-8
    ids = Bait().select(pool, 5, generator()).ids
    for signals in (pool.signals, pool.labelled_signals):
        signals[p_need] = signals[p_need].double() / signals[p_need].double().sum(1, keepdim=True)
    assert Bait().select(pool, 5, generator()).ids == ids


def posteriors_and_features(n: int, classes: int, width: int, scale: float, seed: int) -> PoolView:
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(n, width, generator=rng, dtype=torch.float64) + 0.5
    p = (scale * torch.randn(n, classes, generator=rng, dtype=torch.float64)).softmax(dim=1)
    return PoolView([f"{i:03d}" for i in range(n)], dict(zip(Bait().needs, (p, h), strict=True)))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 30),
    classes=st.integers(1, 4),
    width=st.integers(1, 4),
    scale=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    labelled=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_bounds_leave_the_best_candidate(
    n: int, classes: int, width: int, scale: float, labelled: int, seed: int
) -> None:
    """Every sample taken has the largest gain, by traces of matrices written out."""
    signals = posteriors_and_features(n + labelled, classes, width, scale, seed).signals
    p, h = (signals[need] for need in Bait().needs)
    known = information(p[n:], h[n:])
    p, h = p[:n], h[:n]
    pool = information(p, h)
    search = LazyGains(Fisher(p, h, pool, known, 0.01), p)
    matrix = known + 0.01 * torch.eye(len(known), dtype=p.dtype)
    free = list(range(n))
    for _ in range(min(n, 8)):
        trace = torch.linalg.solve(matrix, pool).trace()
        gains = {
            i: float(trace - torch.linalg.solve(matrix + information(p[[i]], h[[i]]), pool).trace())
            for i in free
        }
        best = search.take()
        assert gains[best] >= max(gains.values()) - 1e-7 * float(trace)
        matrix = matrix + information(p[[best]], h[[best]])
        free.remove(best)


@pytest.mark.parametrize("width", [2, 30])
@pytest.mark.parametrize("seed", range(3))
def test_no_eigenvalue_exceeds_the_ratio(seed: int, width: int) -> None:
    """At first, and after more samples than the steps that are held."""
    signals = posteriors_and_features(300, 4, width, 3.0, seed).signals
    p, h = (signals[need] for need in Bait().needs)
    known, pool = information(p[200:], h[200:]), information(p[:200], h[:200])
    fisher = Fisher(p[:200], h[:200], pool, known, 0.01)
    done = 0
    for taken in (0, 10, 90):
        for i in range(done, taken):
            fisher.add(i)
        done = taken
        matrix = known + information(p[:taken], h[:taken])
        matrix = matrix + 0.01 * torch.eye(len(known), dtype=p.dtype)
        largest = float(torch.linalg.eigvals(torch.linalg.solve(matrix, pool)).real.max())
        assert largest <= fisher.ratio() <= 1.5 * largest


def test_bounds_leave_few_candidates_to_compute() -> None:
    pool = posteriors_and_features(4000, 3, 4, 4.0, 0)
    p, h = (pool.signals[need] for need in Bait().needs)
    fisher = Fisher(p[:2000], h[:2000], information(p[:2000], h[:2000]), information(p, h), 0.01)
    search = LazyGains(fisher, p[:2000])
    for _ in range(5):
        search.take()
    assert 0 < int((search.degree == 4).sum()) < 400


@pytest.mark.parametrize("rows", [1, 99, 300])
def test_forms_of_few_and_of_many_rows(rows: int) -> None:
    rng = generator()
    block = torch.randn(150, 150, generator=rng, dtype=torch.float64)
    h = torch.randn(rows, 150, generator=rng, dtype=torch.float64)
    expected = torch.einsum("ni,ij,nj->n", h, block, h)
    assert torch.allclose(forms(block, h), expected, rtol=1e-9, atol=1e-9)


def test_nothing_is_left_to_learn_where_the_network_is_sure() -> None:
    p, h = torch.eye(3, dtype=torch.float64).repeat(4, 1), torch.ones(12, 5, dtype=torch.float64)
    pool = PoolView([f"{i:03d}" for i in range(12)], dict(zip(Bait().needs, (p, h), strict=True)))
    assert len(set(Bait().select(pool, 12, generator()).ids)) == 12


def test_steps_counted_into_the_matrices_change_nothing() -> None:
    """More steps than are held, forth and back."""
    pool = posteriors_and_features(160, 3, 4, 2.0, 1)
    p, h = (pool.signals[need] for need in Bait().needs)
    known = information(p[100:], h[100:])
    fisher = Fisher(p, h, information(p, h), known, 0.01)
    search = LazyGains(fisher, p)
    taken = [search.take() for _ in range(70)]
    assert fisher.steps < 70
    assert len(set(taken)) == 70
    for i in taken[:20]:
        fisher.remove(i)
    left = taken[20:]
    again = Fisher(p, h, information(p, h), known + information(p[left], h[left]), 0.01)
    assert torch.allclose(fisher.gains(), again.gains(), rtol=1e-6, atol=1e-9)
    assert fisher.trace() == pytest.approx(again.trace(), rel=1e-6)


def test_of_equal_samples_the_smaller_id_is_taken() -> None:
    pool = posteriors_and_features(30, 3, 4, 2.0, 2)
    signals = {need: values.repeat(3, 1) for need, values in pool.signals.items()}
    twins = PoolView([f"{i:03d}" for i in range(90)], signals)
    taken = Bait().select(twins, 30, generator()).ids
    for id_ in taken:
        earlier = [f"{i:03d}" for i in range(int(id_) % 30, int(id_), 30)]
        assert set(earlier) <= set(taken)


def test_small_weights_in_single_precision_are_within_rounding() -> None:
    pool = posteriors_and_features(5000, 4, 6, 12.0, 3)
    p, h = (pool.signals[need].float().double() for need in Bait().needs)
    p = p / p.sum(dim=1, keepdim=True)
    b = basis(4)
    weights = b.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ b
    right = torch.einsum("nij,na,nb->iajb", weights, h, h).reshape(18, 18)
    assert float((information(p, h) - right).abs().max()) < 1e-13 * float(right.abs().max())
