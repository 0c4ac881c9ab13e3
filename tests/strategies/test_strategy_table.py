"""The table of strategies: names, options, and how wrong ones are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pools import generator

from upslope.errors import ConfigError
from upslope.pool import Need, PoolView
from upslope.strategies import REGISTRY, build, describe
from upslope.strategies.base import TopStrategy
from upslope.strategies.gradnorm import EGL


def test_every_strategy_says_what_it_is() -> None:
    rows = describe()
    assert [row.name for row in rows] == list(REGISTRY)
    for row in rows:
        assert all((row.summary, row.reference, row.needs, row.cost, row.best_for)), row.name
        assert all(option.help for option in row.options), row.name
    egl = next(row for row in rows if row.name == "egl")
    assert ("share", 1.0) in [(option.name, option.default) for option in egl.options]


def test_table_names_are_the_classes_own() -> None:
    assert all(cls.name == name for name, cls in REGISTRY.items())


def test_every_strategy_has_a_page() -> None:
    folder = Path(__file__).parents[2] / "docs" / "strategies"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for name in REGISTRY:
        row = next((line for line in index.splitlines() if f"`{name}`" in line), None)
        assert row, f"{name} is in no row of docs/strategies/README.md"
        page = folder / row.split("](")[1].split(")")[0]
        assert f"`{name}`" in page.read_text(encoding="utf-8").splitlines()[0] or name == "random"


def test_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="got 'entropy-gradnrm'; did you mean `entropy-gradnorm`"):
        build("entropy-gradnrm")


def test_unknown_option_lists_the_known_and_suggests() -> None:
    with pytest.raises(ConfigError, match=r"`share` but got `nrm`; did you mean `norm`"):
        build("egl", nrm="global")


def test_faults_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"(?s)`norm`.*'l1'.*`share`.*above 0 and at most 1"):
        build("egl", norm="l1", share=0)


@pytest.mark.parametrize("make", [partial(build, "egl"), EGL], ids=["by name", "by hand"])
def test_wrong_values_are_refused_however_it_is_made(make: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=r"`parameters` .* got 3"):
        make(parameters=3)
    with pytest.raises(ConfigError, match=r"`share` .* got 1\.5"):
        make(share=1.5)


def test_detached_posterior_under_cross_entropy_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero for every sample"):
        build("expected-gradnorm", posterior="detached")
    build("expected-gradnorm", posterior="detached", criterion="focal")


def test_options_reach_the_need() -> None:
    assert build("entropy-gradnorm", norm="tensor-sum").needs == (
        Need.of("gradnorm", loss="entropy", norm="tensor-sum", parameters=None),
    )
    assert build("egl-rms", share=0.9).needs == (
        Need.of("egl", kind="rms", share=0.9, norm="global", parameters=None),
    )


@pytest.mark.parametrize("name", ["least-confidence", "margin", "entropy", "egl", "egl-rms"])
def test_takes_the_highest_score_and_breaks_ties_by_id(name: str) -> None:
    strategy = build(name)
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.5])
    pool = PoolView(["e", "d", "c", "a", "b"], {strategy.needs[0]: scores})
    selection = strategy.select(pool, 3, generator())
    assert selection.ids == ("d", "a", "b")
    assert selection.scores is not None
    assert torch.equal(selection.scores, scores)


def test_random_is_uniform() -> None:
    rng = generator(7)
    pool = PoolView([f"{i}" for i in range(10)])
    counts = torch.zeros(10)
    for _ in range(2000):
        for chosen in build("random").select(pool, 3, rng).ids:
            counts[int(chosen)] += 1
    # 2000 draws of 3 of 10: mean 600, standard deviation 20.5.
    assert (counts - 600).abs().max() < 5 * 20.5


def test_a_class_written_with_the_former_names_of_its_words_has_them_under_the_new_ones() -> None:
    class Former(TopStrategy):
        name = "former"
        best_for = "small budgets"
        signal_cost = "nothing"

    assert (Former.best_for, Former.signal_cost) == ("small budgets", "nothing")
