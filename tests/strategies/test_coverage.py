"""The coverage strategies against their formula, computed directly at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pools import generator, make_pool
from torch import Tensor

from upslope.pool import Need, PoolView
from upslope.strategies import build, cover, cover_matrix, distances, greedy

KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "prob-cover": lambda d, _: (d <= 0.75).double(),
    "max-herding": lambda d, _: torch.exp(-(d**2)),
    "u-herding": lambda d, y: torch.exp(-((d / smallest(y)) ** 2)),
    "facility-location": lambda d, _: (1 - d**2 / 2).clamp(min=0),
}


def smallest(y: Tensor) -> float:
    pairs = torch.nn.functional.pdist(y)
    return float(pairs.min()) if len(pairs) else 1.0


def unit(x: Tensor) -> Tensor:
    return x.double() / x.double().norm(dim=1, keepdim=True)


def shortfall(name: str, pool: PoolView, chosen: tuple[str, ...]) -> float:
    """How much gain the choice ever gave up, every gain from the whole kernel matrix at each step.

    Not the ids are compared: two samples that cover each other and nothing else gain the same.
    """
    need = build(name).needs[0]
    x, y = unit(pool.signal(need)), unit(pool.labelled_signal(need))
    k = KERNELS[name](torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), y)
    w = torch.ones(len(x), dtype=torch.float64)
    if name == "u-herding" and len(y):
        p = pool.signal(build(name).needs[1]).double().sort(dim=1, descending=True).values
        w = 1 - (p[:, 0] - p[:, 1])
    covered = torch.zeros(len(x), dtype=torch.float64)
    if len(y):
        to_labelled = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        covered = KERNELS[name](to_labelled, y).amax(dim=1)
    worst = 0.0
    for pick in chosen:
        gains = w @ (k - covered[:, None]).clamp(min=0)
        position = pool.candidates.index(pick)
        worst = max(worst, float(gains.max() - gains[position]))
        covered = torch.maximum(covered, k[:, position])
    return worst


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("labelled", [0, 1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_takes_the_largest_gain_of_the_formula(name: str, labelled: int, seed: int) -> None:
    pool = make_pool(build(name).needs, 40, labelled, seed)
    assert shortfall(name, pool, build(name).select(pool, 12, generator()).ids) < 1e-5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("most", [0, 60])
def test_blocks_and_laziness_do_not_change_the_choice(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(build(name).needs, 60, 5)
    whole = build(name).select(pool, 20, generator()).notes["coverage"]
    monkeypatch.setattr(cover, "WHOLE", most)
    monkeypatch.setattr(cover_matrix, "BLOCK", 128)
    monkeypatch.setattr(distances, "BLOCK", 128)
    monkeypatch.setattr(cover, "BLOCK", 128)
    monkeypatch.setattr(greedy, "FIRST", 1)
    selection = build(name).select(pool, 20, generator())
    assert shortfall(name, pool, selection.ids) < 1e-5
    assert selection.notes["coverage"] == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("labelled", [0, 5])
@pytest.mark.parametrize("pairs", [0, 60, 300, 3600])
def test_takes_the_largest_gain_whenever_pairs_are_first_held(
    name: str, labelled: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no pair at all, hence never, over some picks later, to all at once."""
    monkeypatch.setattr(cover, "WHOLE", 0)
    monkeypatch.setattr(cover, "PAIRS", pairs)
    monkeypatch.setattr(distances, "BLOCK", 200)
    pool = make_pool(build(name).needs, 60, labelled)
    selection = build(name).select(pool, 20, generator())
    assert shortfall(name, pool, selection.ids) < 1e-5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("pairs", "most"), [(0, 0), (2**24, 0), (0, 120)])
def test_of_equal_candidates_the_smaller_id_is_taken(
    name: str, pairs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cover, "WHOLE", most)
    monkeypatch.setattr(cover, "PAIRS", pairs)
    monkeypatch.setattr(distances, "BLOCK", 400)
    strategy = build(name)
    pool = make_pool(strategy.needs, 60, 3)
    doubled = {need: torch.cat([values, values]) for need, values in pool.signals.items()}
    pool = replace(pool, candidates=[f"u{i:03d}" for i in range(120)], signals=doubled)
    assert all(int(i[1:]) < 60 for i in strategy.select(pool, 8, generator()).ids)


def test_prob_cover_covers_what_its_note_says() -> None:
    pool = make_pool(build("prob-cover").needs, 40, 4)
    selection = build("prob-cover", delta=0.9).select(pool, 5, generator())
    need = build("prob-cover").needs[0]
    x = unit(pool.signal(need))
    chosen = [pool.candidates.index(i) for i in selection.ids]
    centres = torch.cat([x[chosen], unit(pool.labelled_signal(need))])
    share = (torch.cdist(x, centres).amin(dim=1) <= 0.9).double().mean()
    assert selection.notes["coverage"] == pytest.approx(float(share))


def test_u_herding_of_a_flat_posterior_is_max_herding() -> None:
    pool = make_pool(build("u-herding").needs, 40, 0)
    flat = dict(pool.signals)
    flat[build("u-herding").needs[1]] = torch.full((40, 4), 0.25)
    pool = PoolView(pool.candidates, flat, labels=pool.labels)
    assert (
        build("u-herding").select(pool, 9, generator()).ids
        == build("max-herding", width=1.0).select(pool, 9, generator()).ids
    )


@pytest.mark.parametrize("seed", range(3))
def test_u_herding_over_labelled_and_candidates_is_u_herding_over_candidates(seed: int) -> None:
    """As published the labelled set is covered too, with weight 0: every gain is the same sum."""
    pool = make_pool(build("u-herding").needs, 30, 7, seed)
    features, posteriors = build("u-herding").needs
    x, y = unit(pool.signal(features)), unit(pool.labelled_signal(features))
    both = torch.cat([x, y])
    squared = (both[:, None] - both[None]).square().sum(dim=2)
    k = torch.exp(-squared / smallest(y) ** 2)
    p = pool.signal(posteriors).double().sort(dim=1, descending=True).values
    w = torch.cat([1 - p[:, 0] + p[:, 1], torch.zeros(len(y), dtype=torch.float64)])
    covered, chosen = k[len(x) :].amax(dim=0), []
    for _ in range(8):
        gains = ((k[: len(x)] - covered).clamp(min=0) * w).mean(dim=1)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        covered = torch.maximum(covered, k[chosen[-1]])
    ids = build("u-herding").select(pool, 8, generator()).ids
    assert list(ids) == [pool.candidates[i] for i in chosen]


def test_u_herding_asks_for_a_fitted_temperature_as_published() -> None:
    assert build("u-herding").needs[1] == Need.of("probabilities", temperature="fitted")
    assert build("u-herding", temperature=1).needs[1] == Need.of("probabilities")


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("labelled", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_pool_of_duplicates_by_all_pairs(
    name: str, labelled: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cover, "PAIRS", 0)  # so that these are too many to hold apart
    pool = make_pool(build(name).needs, 30, labelled, 3)
    twice = {need: values[torch.arange(30) % 13].to(dtype) for need, values in pool.signals.items()}
    pool = replace(pool, signals=twice)
    ids = build(name).select(pool, 30, generator()).ids
    assert len(set(ids)) == 30
    assert shortfall(name, pool, ids) < 1e-5
