"""Signals near the limits of floating point, and posteriors that are none: right, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from pools import generator, make_pool
from test_conformance import QUICK, checked
from torch import Tensor

from upslope.errors import SelectionError
from upslope.pool import Need, PoolView, Selection
from upslope.strategies import REGISTRY, QueryStrategy, build
from upslope.strategies.numbers import check_numbers

POSTERIORS = {"probabilities": 1, "mc-posteriors": 2}
"""Signals that are posteriors, and the dimension of their classes."""
N, LABELLED = 16, 6
LIMITED = {"core-set-robust": {"seconds": 0.2}}
EXPONENTS = (-1000, -100, -30, 40, 126, 1000)
"""Of two, by which features are multiplied: to the limits of float32 and of float64."""
FREE = ("core-set", "badge", "lcmd", "typiclust", "gradnorm-diverse")
"""Strategies whose choice does not change with the unit of the features, by their formulas."""
every_strategy = pytest.mark.parametrize("name", REGISTRY)


def make(name: str) -> QueryStrategy:
    return build(name, **{**QUICK, **LIMITED}.get(name, {}))


def is_vector(signal: str) -> bool:
    return signal.endswith("features") or signal == "gradient-sketch"


READERS_OF_FEATURES = [
    name for name in REGISTRY if any(is_vector(need.name) for need in make(name).needs)
]
POSTERIOR_NEEDS = {
    name: [need for need in make(name).needs if need.name in POSTERIORS] for name in REGISTRY
}
POSTERIORS_READ = [(name, "candidates") for name, needs in POSTERIOR_NEEDS.items() if needs] + [
    (name, "labelled")
    for name, needs in POSTERIOR_NEEDS.items()
    if any(need.labelled for need in needs)
]
"""Strategies and the samples whose posteriors they read."""
SIZES = [
    (dtype, exponent)
    for dtype in (torch.float32, torch.float64)
    for exponent in EXPONENTS
    if dtype == torch.float64 or abs(exponent) <= 126
]
"""What a type can hold: powers of two in float32 end at 126."""


def changed(pool: PoolView, change: Callable[[str, Tensor], Tensor]) -> PoolView:
    """The pool with each signal, of candidates and labelled samples, as `change` gives it."""
    both = [
        {need: change(need.name, values) for need, values in table.items()}
        for table in (pool.signals, pool.labelled_signals)
    ]
    return dataclasses.replace(pool, signals=both[0], labelled_signals=both[1])


def right_or_refused(strategy: QueryStrategy, pool: PoolView, budget: int) -> Selection | None:
    """Select; None where the strategy refuses by its name."""
    refused = ""
    try:
        selection = checked(strategy, pool, budget)
    except SelectionError as error:
        refused = str(error)
    if refused:
        # Of strategies that ask others, the one that cannot is named.
        assert any(name in refused for name in REGISTRY)
        return None
    if selection.scores is not None:
        assert selection.scores.isfinite().all()
    assert all(value == value for value in selection.notes.values())
    return selection


@pytest.mark.parametrize("name", READERS_OF_FEATURES)
@pytest.mark.parametrize(("dtype", "exponent"), SIZES)
def test_features_of_any_size(name: str, exponent: int, dtype: torch.dtype) -> None:
    """Multiplied by a power of two, features keep their digits: where only their ratios count, the
    choice is as before."""
    strategy = make(name)
    pool = changed(make_pool(strategy.needs, N, LABELLED), lambda _, v: v.double())
    scaled = changed(
        pool, lambda n, v: (v * 2.0**exponent).to(dtype) if is_vector(n) else v.to(dtype)
    )
    selection = right_or_refused(strategy, scaled, 5)
    assert selection is not None or abs(exponent) >= 40 or name == "bait"
    if selection is not None and name in FREE:
        plain = checked(strategy, changed(pool, lambda _, v: v.to(dtype)), 5)
        assert selection.ids == plain.ids


@pytest.mark.parametrize("name", READERS_OF_FEATURES)
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e14, 1e30, 1e300])
def test_features_of_very_different_sizes(name: str, size: float) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, N, LABELLED)

    def one_row(signal: str, values: Tensor) -> Tensor:
        values = values.double()
        if is_vector(signal) and len(values):
            values[len(values) // 2] *= size
        return values

    right_or_refused(strategy, changed(pool, one_row), 5)


@every_strategy
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_scores_and_features_all_equal(name: str, size: float) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, N, LABELLED)
    same = changed(
        pool,
        lambda n, v: (
            torch.full_like(v, 1 / v.shape[POSTERIORS[n]], dtype=torch.float64)
            if n in POSTERIORS
            else torch.full_like(v, size, dtype=torch.float64)
        ),
    )
    for budget in (1, N):
        right_or_refused(strategy, same, budget)


@every_strategy
@pytest.mark.parametrize("rows", [1, 2])
def test_one_candidate_and_all_candidates(name: str, rows: int) -> None:
    strategy = make(name)
    for labelled in (0, 1, LABELLED):
        pool = make_pool(strategy.needs, rows, labelled)
        assert set(checked(strategy, pool, rows).ids) == set(pool.candidates)


def negative(p: Tensor) -> Tensor:
    return p - 0.3


def unnormalised(p: Tensor) -> Tensor:
    return 2 * p


def logits(p: Tensor) -> Tensor:
    return p.log()


def zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p)


def percent(p: Tensor) -> Tensor:
    return 100 * p


@pytest.mark.parametrize(("name", "of"), POSTERIORS_READ)
@pytest.mark.parametrize("wrong", [negative, unnormalised, logits, zeros, percent])
def test_posteriors_that_are_none_are_refused_by_name(
    name: str, wrong: Callable[[Tensor], Tensor], of: str
) -> None:
    strategy = make(name)
    needs = POSTERIOR_NEEDS[name]
    pool = make_pool(strategy.needs, N, LABELLED)
    table = pool.signals if of == "candidates" else pool.labelled_signals
    for need in needs:
        if need not in table:
            continue
        values = table[need].clone()
        values[3] = wrong(values[3])
        key = "signals" if of == "candidates" else "labelled_signals"
        broken = dataclasses.replace(pool, **{key: {**table, need: values}})
        with pytest.raises(SelectionError, match=rf"(?s){name}.*{need.name}.*[ul]003"):
            strategy.select(broken, 3, generator())


@pytest.mark.parametrize("name", [name for name, needs in POSTERIOR_NEEDS.items() if needs])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_posteriors_rounded_as_networks_round_them_are_taken(name: str, dtype: torch.dtype) -> None:
    strategy = make(name)
    pool = make_pool(strategy.needs, N, LABELLED)
    rounded = changed(pool, lambda n, v: v.to(dtype).float() if n in POSTERIORS else v)
    checked(strategy, rounded, 5)


def test_gradients_of_samples_that_the_model_is_sure_of_are_no_error() -> None:
    # Beside others they are as good as zero; all of them as small are refused.
    sketches = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    sketches[2] *= 1e-13
    need, ids = Need.of("gradient-sketch", dim=4), [f"s{i}" for i in range(6)]
    check_numbers("lcmd", need, sketches, ids)
    with pytest.raises(SelectionError, match="1e-10"):
        check_numbers("lcmd", need, sketches * 1e-13, ids)
    with pytest.raises(SelectionError, match="'s2'"):
        check_numbers("typiclust", Need.of("features"), sketches, ids)


@pytest.mark.parametrize("name", ["badge", "binary-bait"])
def test_posteriors_of_a_network_that_is_sure_keep_their_digits(name: str) -> None:
    """1 - max p rounds to 0 in single precision: choices and scores against double precision."""
    strategy = build(name)
    pool, rng = make_pool(strategy.needs, 60, 0), generator(3)
    logits = torch.randn(60, 3, generator=rng, dtype=torch.float64)
    logits[:, 1] += 20
    selection = strategy.select(
        changed(pool, lambda n, v: logits.float().softmax(1) if n == "probabilities" else v),
        5,
        generator(),
    )
    p = logits.softmax(dim=1)
    h = next(v for n, v in pool.signals.items() if n.name == "features").double()
    rest = p[:, 0] + p[:, 2]
    if name == "badge":
        a = torch.stack([p[:, 0], -rest, p[:, 2]], dim=1)
        scores = a.norm(dim=1) * h.norm(dim=1)
    else:  # so little information that M stays the ridge: r / (1 + q) = phi^T F phi
        phi = (rest * (1 - rest)).sqrt()[:, None] * h
        scores = ((phi @ (phi.T @ phi / len(phi))) * phi).sum(dim=1)
        assert selection.ids == tuple(pool.candidates[i] for i in scores.topk(5).indices)
    assert selection.scores is not None
    assert torch.allclose(selection.scores.double(), scores, rtol=1e-3, atol=0)
    assert selection.ids[0] == pool.candidates[int(scores.argmax())]


def test_badge_of_a_network_that_is_sure_of_all_samples_goes_by_ratios() -> None:
    """Where all others have 1e-27 together, squares of them are 0 in single precision."""
    strategy = build("badge")
    pool = make_pool(strategy.needs, 60, 0)
    selections = []
    for unit in (2.0**-20, 2.0**-90):

        def sure(signal: str, values: Tensor, unit: float = unit) -> Tensor:
            if signal != "probabilities":
                return values
            return torch.cat([torch.ones(len(values), 1), unit * values[:, 1:]], dim=1)

        selections.append(strategy.select(changed(pool, sure), 9, generator()))
    few, none = selections
    assert few.ids == none.ids
    assert few.scores is not None
    assert none.scores is not None
    assert torch.equal(few.scores * 2.0**-70, none.scores)
    assert bool((none.scores > 0).all())
