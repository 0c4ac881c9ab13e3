"""Vectors of which few are much longer than the others, or lie much closer together.

Inner products in single precision lose what is a millionth of squared lengths. Each choice is
compared with distances from differences, in double precision.
"""

from __future__ import annotations

import pytest
import torch
from pools import generator
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from upslope.functional import badge, core_set, core_set_robust
from upslope.seeds import generator as addressed
from upslope.strategies.core_set import k_center
from upslope.strategies.cover import cover
from upslope.strategies.coverage import Ball, Cosine, Gaussian
from upslope.strategies.diverse import determinantal
from upslope.strategies.seeding import Rows
from upslope.strategies.typiclust import NEIGHBOURS, typicality

N, WIDTH, BUDGET = 60, 6, 10


def squares(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_far(seed: int) -> Tensor:
    x = numbers(seed, N, WIDTH)
    x[3] *= 1e5
    return x


def clusters(seed: int) -> Tensor:
    centres = 10 * numbers(seed, 3, WIDTH)
    return centres[torch.arange(N) % 3] + 1e-4 * numbers(seed + 1, N, WIDTH)


def copies(seed: int) -> Tensor:
    return numbers(seed, N, WIDTH)[torch.arange(N) % 7]


def far_from_zero(seed: int) -> Tensor:
    return numbers(seed, N, WIDTH).double() * 1e-3 + 1e6


KINDS = [one_far, clusters, copies, far_from_zero]


def farthest_first(x: Tensor, y: Tensor) -> list[int]:
    x = x.double()
    positions: list[int] = []
    nearest = squares(x, y).amin(dim=1) if len(y) else torch.full((len(x),), torch.inf)
    for _ in range(BUDGET):
        cold = not len(y) and not positions
        centre = int(squares(x, x.mean(dim=0)[None]).argmin() if cold else nearest.argmax())
        positions.append(centre)
        nearest = torch.minimum(nearest, squares(x, x[centre : centre + 1])[:, 0])
        nearest[positions] = -1
    return positions


@pytest.mark.parametrize("labelled", [0, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_core_set(kind, labelled: int) -> None:  # type: ignore[no-untyped-def]
    both = kind(0)
    y, x = both[:labelled], both[labelled:]
    chosen = core_set(x, BUDGET, labelled_features=y if labelled else None)
    assert chosen == farthest_first(x, y)


def test_core_set_tells_the_radius_that_is_left_beside_a_far_sample() -> None:
    x = one_far(0)
    positions, nearest, _ = k_center(x, x[:0], BUDGET)
    radius = squares(x, x[positions]).amin(dim=1).max().sqrt()
    assert float(nearest.max()) == pytest.approx(float(radius), rel=1e-6)


def test_robust_core_set_beside_a_far_sample() -> None:
    """One centre for the far sample, one for each of two groups that lie close together."""
    x = torch.cat([numbers(0, 1, WIDTH) * 1e5, 1e-2 * numbers(1, 20, WIDTH)])
    x[11:] += 1.0
    chosen = core_set_robust(x, 3, seconds=2.0)
    assert 0 in chosen
    assert len({i > 10 for i in chosen if i}) == 2


def drawn(g: Tensor, seed: int) -> list[int]:
    """K-means++ with all gradients written out, by the numbers that a strategy draws."""
    rng = addressed(seed, "select", 0)
    seeds = [int(g.norm(dim=1).argmax())]
    nearest = torch.full((len(g),), torch.inf, dtype=torch.float64)
    for _ in range(BUDGET - 1):
        nearest = torch.minimum(nearest, squares(g, g[seeds[-1:]])[:, 0])
        nearest[seeds] = 0
        cumulative = nearest.cumsum(dim=0)
        point = torch.rand(1, generator=rng, dtype=torch.float64) * cumulative[-1]
        seeds.append(int(torch.searchsorted(cumulative, point, right=True)))
    return seeds


@pytest.mark.parametrize("seed", range(3))
def test_badge_draws_by_distance_beside_a_long_gradient(seed: int) -> None:
    """One gradient a thousand times as long as the others made all of them one sample."""
    h, p = numbers(seed, N, WIDTH), (2 * numbers(seed + 1, N, 3)).softmax(dim=1)
    h[3] *= 3e3
    a = p.double() - one_hot(p.argmax(dim=1), 3)
    gradients = (a[:, :, None] * h.double()[:, None]).flatten(start_dim=1)
    assert badge(p, h, BUDGET, seed) == drawn(gradients, seed)


def test_determinantal_greedy_beside_a_long_vector() -> None:
    x = numbers(0, N, WIDTH).double()
    x[3] *= 1e6
    gram = x @ x.T
    positions: list[int] = []
    for _ in range(WIDTH):
        volumes = [
            float(torch.linalg.slogdet(gram[rows][:, rows]).logabsdet)
            if (rows := [*positions, i]) and i not in positions
            else -torch.inf
            for i in range(N)
        ]
        positions.append(max(range(N), key=volumes.__getitem__))
    assert determinantal(Rows(x), WIDTH, generator()) == positions


def covered(x: Tensor, y: Tensor, w: Tensor, similarity) -> tuple[list[int], Tensor]:  # type: ignore[no-untyped-def]
    """Every gain anew, from similarities in double precision."""
    x, y, w = x.double(), y.double(), w.double()
    k = similarity(squares(x, x))
    most = similarity(squares(x, y)).amax(dim=1) if len(y) else torch.zeros(len(x)).double()
    positions: list[int] = []
    first = None
    for _ in range(BUDGET):
        gains = w @ (k - most[:, None]).clamp(min=0)
        first = gains.clone() if first is None else first
        gains[positions] = -1
        positions.append(int(gains.argmax()))
        most = torch.maximum(most, k[:, positions[-1]])
    assert first is not None
    return positions, first


@pytest.mark.parametrize("labelled", [0, 8])
@pytest.mark.parametrize("width", [1e-3, 3e-3, 1e-2])
def test_cover_by_a_narrow_similarity(width: float, labelled: int) -> None:
    """As of UHerding, whose width is the smallest distance between labelled samples: rounding of
    distances, in single precision, would be as large as its square."""
    centres = numbers(0, 5, 512)
    both = normalize(centres[torch.arange(300) % 5] + width * numbers(1, 300, 512), dim=1)
    y, x = both[:labelled], both[labelled:]
    w = torch.rand(len(x), generator=torch.Generator().manual_seed(2))
    positions, _, scores, _ = cover(x, y, w, Gaussian(width), BUDGET)
    expected, gains = covered(x, y, w, Gaussian(width))
    assert positions == expected
    assert torch.allclose(scores.double(), gains, rtol=1e-5)


@pytest.mark.parametrize("labelled", [0, 8])
@pytest.mark.parametrize("similarity", [Gaussian(1.0), Cosine(), Ball(2e-3)])
def test_cover_of_samples_that_lie_close_together(similarity, labelled: int) -> None:  # type: ignore[no-untyped-def]
    both = normalize(numbers(0, 1, 64) + 1e-3 * numbers(1, 200, 64), dim=1)
    y, x = both[:labelled], both[labelled:]
    w = torch.rand(len(x), generator=torch.Generator().manual_seed(2))
    assert cover(x, y, w, similarity, BUDGET)[0] == covered(x, y, w, similarity)[0]


@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-3])
def test_typicality_among_near_copies(spread: float) -> None:
    """Rounding of inner products was taken for distances of up to 10^-3."""
    directions = numbers(0, 3, 256)[torch.arange(90) % 3]
    x = normalize(directions + spread * (1 + torch.arange(90)[:, None] / 90) * numbers(1, 90, 256))
    distances = squares(x, x).sqrt().fill_diagonal_(torch.inf)
    nearest = distances.topk(min(NEIGHBOURS, 45), dim=1, largest=False).values
    assert torch.allclose(typicality(x).double(), 1 / (nearest.mean(dim=1) + 1e-5), rtol=1e-3)
