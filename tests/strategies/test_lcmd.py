"""LCMD against clusters rebuilt from nothing at every step."""

from __future__ import annotations

import pytest
import torch
from pools import generator, make_pool

from upslope.pool import PoolView
from upslope.strategies import build
from upslope.strategies.lcmd import largest_cluster


def by_hand(pool: PoolView, budget: int) -> list[str]:
    (need,) = build("lcmd").needs
    x, y = pool.signal(need).double(), pool.labelled_signal(need).double()
    chosen: list[int] = []
    while len(chosen) < budget:
        centres = torch.cat([y, x[chosen]])
        if not len(centres):
            chosen.append(int(x.norm(dim=1).argmax()))
            continue
        members: dict[int, list[tuple[float, int]]] = {}
        for i in set(range(len(x))) - set(chosen):
            distances = (centres - x[i]).norm(dim=1)
            nearest = int(distances.argmin())
            members.setdefault(nearest, []).append((float(distances[nearest]), i))
        largest = max(members.values(), key=lambda own: sum(d**2 for d, _ in own))
        chosen.append(max(largest)[1])
    return [pool.candidates[i] for i in chosen]


@pytest.mark.parametrize("labelled", [0, 1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_is_the_definition(labelled: int, seed: int) -> None:
    strategy = build("lcmd")
    pool = make_pool(strategy.needs, 25, labelled, seed)
    assert list(strategy.select(pool, 12, generator()).ids) == by_hand(pool, 12)


def test_takes_from_the_wide_cluster_not_the_farthest_point_of_all() -> None:
    far = torch.tensor([[104.0, 0.0]])
    wide = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.5]])
    x = torch.cat([far, wide]).double()
    y = torch.tensor([[100.0, 0.0], [0.0, 0.0]]).double()
    # 4^2 = 16 around one centre, 3 * 3^2 + 3.5^2 around the other.
    assert largest_cluster(x, y, 1) == ([4], pytest.approx([3 * 3.0**2 + 3.5**2]))


@pytest.mark.parametrize("labelled", [0, 6])
def test_vectors_far_from_the_origin_are_told_apart(labelled: int) -> None:
    (need,) = build("lcmd").needs
    pool = make_pool(build("lcmd").needs, 25, labelled, 0)
    x, y = (z.double() + 1e9 for z in (pool.signal(need), pool.labelled_signal(need)))
    signals = {"signals": {need: x}, "labelled_signals": {need: y}}
    far = PoolView(pool.candidates, labelled=pool.labelled, **signals)  # type: ignore[arg-type]
    assert [pool.candidates[i] for i in largest_cluster(x, y, 12)[0]] == by_hand(far, 12)
