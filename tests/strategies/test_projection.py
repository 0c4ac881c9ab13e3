"""Bounds from a few coordinates hold, and what is chosen with them is what is chosen without."""

from __future__ import annotations

import pytest
import torch
from pools import generator
from torch import Tensor

from upslope.strategies import distances
from upslope.strategies.core_set import k_center
from upslope.strategies.lcmd import largest_cluster
from upslope.strategies.projection import Projection
from upslope.strategies.seeding import OuterProducts, Rows, Screening, k_means_plus_plus


def clustered(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    """Rows in clusters, with some that are equal, (n, d)."""
    rng = generator(seed)
    centres = torch.randn(12, d, generator=rng)
    x = centres[torch.randint(12, (n,), generator=rng)] + 0.3 * torch.randn(n, d, generator=rng)
    x[5:9] = x[20:24]
    return scale * x


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("d", [3, 200])
def test_products_lie_within_the_bounds(d: int, scale: float) -> None:
    x = clustered(300, d, 0, scale)
    for i in (0, 7, 299):
        products = x.double() @ x[i].double()
        estimates, errors = Projection(x).bounds(i)
        assert ((estimates - products).abs() <= errors).all()


def test_bounds_of_several_are_those_of_each() -> None:
    projection = Projection(clustered(100, 150, 1))
    estimates, errors = projection.bounds(torch.tensor([4, 90]))
    for place, i in enumerate((4, 90)):
        alone = projection.bounds(i)
        assert torch.allclose(estimates[place], alone[0], atol=1e-5)
        assert torch.equal(errors[place], alone[1])


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_no_nearer_vector_is_left_out(offset: float) -> None:
    x = clustered(500, 160, 2) + offset
    a = torch.randn(500, 5, generator=generator(3))
    for vectors, written_out in (
        (Rows(x), x),
        (OuterProducts(a, x), (a[:, :, None] * x[:, None]).flatten(1)),
    ):
        screening = Screening(vectors, vectors.squared_norms(), 500)
        centres = written_out[:60].double()
        nearest = torch.cdist(written_out.double(), centres).amin(dim=1).square()
        for i in (70, 200, 499):
            squared = (written_out.double() - written_out[i].double()).square().sum(dim=1)
            closer = (squared < nearest).nonzero().flatten().tolist()
            rows = screening.rows(i, nearest.float())
            assert rows is not None
            assert set(closer) <= set(rows.tolist())
            assert len(set(rows.tolist())) < 250


@pytest.mark.parametrize("seed", range(3))
def test_choices_are_those_of_all_distances(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clustered(600, 180, seed), clustered(200, 180, seed + 10)
    a = torch.randn(600, 4, generator=generator(seed))

    def choose() -> list[list[int]]:
        return [
            k_center(x, y, 100)[0],
            k_center(x, y[:0], 100)[0],
            largest_cluster(x.double(), y.double(), 100)[0],
            largest_cluster(x.double(), y[:0].double(), 100)[0],
            k_means_plus_plus(OuterProducts(a, x), 100, generator(seed)),
            k_means_plus_plus(Rows(x.double()), 100, generator(seed)),
        ]

    screened = choose()
    monkeypatch.setattr(Projection, "of", lambda *_: None)
    assert choose() == screened


def test_all_are_compared_where_the_bounds_tell_nothing() -> None:
    x = torch.randn(200, 400, generator=generator(0))  # no direction is longer than another
    screening = Screening(Rows(x), x.square().sum(dim=1), 100)
    assert screening.rows(0, torch.full((200,), torch.inf)) is None


@pytest.mark.parametrize("block", [64, 4096, distances.BLOCK])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_nearest_row_is_that_of_double_precision(
    block: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y = clustered(80, 40, 4).double() + offset, clustered(50, 40, 5).double() + offset
    y[30], y[40] = y[2], 1e3 * y[40]
    x[3] = y[30]
    expected = (x[:, None] - y).square().sum(dim=2).min(dim=1)
    nearest, rows = distances.nearest_rows(x, y)
    assert torch.allclose(nearest, expected.values, atol=1e-6 * max(1.0, offset**2 * 1e-7))
    assert rows.tolist() == expected.indices.tolist()
    assert rows[3] == 2
