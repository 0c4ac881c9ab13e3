"""The width of UHerding's kernel is the smallest distance, and never the rounding of one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.strategies import distances
from upslope.strategies.distances import normalise
from upslope.strategies.kernel_width import SAME, smallest_distance


def brute_force(x: Tensor) -> float:
    """In double precision, from differences, pair by pair."""
    squares = [
        float((x[i].double() - x[j].double()).square().sum())
        for i in range(len(x))
        for j in range(i)
    ]
    return min((square for square in squares if square >= SAME), default=1.0) ** 0.5


@settings(deadline=None)  # which a machine under load would miss
@given(
    st.integers(0, 9), st.sampled_from([1, 3, 64, 500]), st.integers(0, 4),
    st.sampled_from([0.0, 1e-8, 1e-4, 1e-2, 0.3]), st.integers(0, 2**20),
)  # fmt: skip
def test_smallest_of_all_pairs(n: int, d: int, copies: int, noise: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng)
    x = torch.cat([x, x[:copies] + noise * torch.randn(len(x[:copies]), d, generator=rng)])
    x = normalise(x)
    assert smallest_distance(x) == pytest.approx(brute_force(x), rel=1e-6)


@pytest.mark.parametrize("d", [256, 1280, 4096])
def test_a_wide_vector_is_at_no_distance_from_itself(d: int) -> None:
    x = normalise(torch.randn(60, d, generator=torch.Generator().manual_seed(d)).relu())
    twice = torch.cat([x, x])
    products = distances.squared_distances(x, x).diagonal()
    assert float(products.max()) > 0, "the rounding that this test is about"
    assert smallest_distance(twice) == pytest.approx(brute_force(x), rel=1e-6)


def test_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normalise(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    x[49] = normalise(x[3][None] + 0.01)[0]
    x[30] = x[7]
    whole = smallest_distance(x)
    monkeypatch.setattr(distances, "BLOCK", 64)
    assert smallest_distance(x) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(brute_force(x), rel=1e-9)


def test_rows_that_a_network_rounds_otherwise_are_one_sample() -> None:
    x = normalise(torch.randn(1, 300, generator=torch.Generator().manual_seed(1)))
    assert smallest_distance(torch.cat([x, normalise(x + 1e-6)])) == 1.0
    assert smallest_distance(x.expand(500, -1)) == 1.0
