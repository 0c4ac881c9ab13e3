from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from scipy import stats
from studies import BUDGETS, made_up

from upslope.errors import ConfigError
from upslope.report import (
    Costs,
    Run,
    Study,
    Summary,
    read_look,
    summarise,
    summarise_sets,
    write,
    write_sets,
)
from upslope.report.document import document
from upslope.report.page import embedded_json, page


@pytest.fixture
def summary() -> Summary:
    study = made_up({"random": 0, "margin": 0.03, "egl": 0.0})
    half = Run("egl", 9, BUDGETS[:3], (0.8, 0.81, 0.82), 7)
    config = {"data": {"name": "digits <b>"}, "experiment": {"initial": 0.1}}
    return summarise(replace(study, runs=(*study.runs, half), config=config, name="digits"))


def opened(summary: Summary, costs: Costs | None = None) -> Page:
    return Page(page(document([summary], "Digits & co", costs or Costs(), [None])))


def test_the_page_is_whole_and_asks_the_network_for_nothing(summary: Summary) -> None:
    html = page(document([summary], "Digits & co", Costs(), [None]))
    opened_page = Page(html)
    assert opened_page.links == ["data:,"]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "<title>Digits &amp; co</title>" in html


def test_the_policy_lets_nothing_run_but_the_scripts_of_the_package(summary: Summary) -> None:
    opened_page = opened(summary)
    assert opened_page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in opened_page.policy
    assert opened_page.allows("script")
    assert opened_page.allows("style")


def test_scripts_make_text_of_data_and_ask_nobody(summary: Summary) -> None:
    script = opened(summary).parts["script"]
    for call in (
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(",
        "fetch(", "XMLHttpRequest", "import(",
    ):  # fmt: skip
        assert call not in script


def test_json_in_the_page_holds_what_it_held_and_ends_no_element() -> None:
    hostile = {
        "</script><!--": ["<script>", "]]>", "\u2028", "&lt;", "😀", '"\\'],
        "n": math.nan,
    }
    text = embedded_json(hostile)
    assert not set("<>&\u2028") & set(text)
    assert Page(f'<script id="data">{text}</script>').data == {**hostile, "n": None}


def test_data_that_look_like_marks_of_the_template_stay(summary: Summary) -> None:
    title = "{{DATA}} {{SCRIPT}}"
    stored = Page(page(document([summary], title, Costs(), [None]), "{{CSS}}"))
    assert stored.data["title"] == title
    assert stored.allows("script")


def test_the_page_says_what_the_tests_say(summary: Summary) -> None:
    data = opened(summary).data
    (one,) = data["sets"]
    rows = {row["name"]: row for row in one["rows"]}
    assert rows["random"]["comparison"] is None
    assert rows["margin"]["comparison"]["verdict"] == "better"
    assert rows["egl"]["comparison"]["verdict"] == "no difference shown"
    assert data["verdict"].startswith("On digits, margin is ahead of random by ")
    assert "egl" not in data["verdict"]
    assert one["signFlipFloor"] == 2 / 2**5
    assert any("5 seeds are few" in note for note in one["notes"])
    assert any("Not counted: egl seed 9, at 3 of 7 cycles" in note for note in one["notes"])
    assert one["unfinished"] == [
        {"strategy": "egl", "seed": 9, "budgets": list(BUDGETS[:3]), "scores": [0.8, 0.81, 0.82]}
    ]
    assert "digits <b>" in one["config"]


def test_no_p_of_the_page_is_below_the_floor_that_it_states() -> None:
    """The floor was that of the fewest seeds, and tests of more seeds stood below it."""
    runs = made_up({"random": 0, "margin": 0.03, "new": 0.03}, seeds=8).runs
    few = tuple(run for run in runs if run.strategy != "new" or run.seed < 3)
    (one,) = opened(summarise(Study(few))).data["sets"]
    p_values = [row["comparison"]["signFlip"] for row in one["rows"] if row["comparison"]]
    assert min(p_values) == one["signFlipFloor"] == 2 / 2**8


def test_figures_on_the_page_are_those_of_the_runs(summary: Summary) -> None:
    (one,) = opened(summary).data["sets"]
    row = one["rows"][1]
    ours = np.array([r.scores for r in summary.study.complete("margin").values()])
    theirs = np.array([r.scores for r in summary.study.complete("random").values()])
    assert row["curve"]["mean"] == pytest.approx(ours.mean(axis=0).tolist())
    gaps = np.trapezoid(ours - theirs, BUDGETS) / (BUDGETS[-1] - BUDGETS[0])
    half = stats.t.ppf(0.975, 4) * gaps.std(ddof=1) / math.sqrt(5)
    comparison = row["comparison"]
    assert comparison["area"]["high"] - comparison["area"]["mean"] == pytest.approx(half)
    test = stats.ttest_1samp(gaps, 0.01, alternative="less").pvalue
    assert comparison["equal"] == pytest.approx(
        max(test, stats.ttest_1samp(gaps, -0.01, alternative="greater").pvalue)
    )
    assert sum(comparison["rope"]) == pytest.approx(1)


def test_what_is_saved_is_read_off_the_curves_by_hand() -> None:
    """Random climbs to 0.75 with 100 labels; the other is there with 60, in every seed."""
    ends = {"random": (0.5, 0.75), "fast": (0.75, 0.875), "slow": (0.375, 0.5)}
    runs = tuple(
        Run(name, seed, (20, 60, 100), tuple(x + seed / 64 for x in (0.25, *rest)), 3)
        for seed in range(3)
        for name, rest in ends.items()
    )
    (one,) = opened(summarise(Study(runs, name="steps"))).data["sets"]
    rows = {row["name"]: row["savings"] for row in one["rows"]}
    assert rows["random"] == []
    half, last = rows["fast"]
    assert (last["share"], last["labels"], last["reference"]) == (1.0, 60, 100)
    assert (last["low"], last["high"]) == (60, 60)
    # Random has 0.4375 with 50 labels, which the other has after 20 and 15 more.
    assert (half["share"], half["labels"]) == (0.5, 35)
    assert rows["slow"][1]["labels"] == "never"
    assert "fast is ahead of random" in one["verdict"]
    assert "with 60 of its 100 labels, 40% fewer" in one["verdict"]
    assert "slow is worse" in one["verdict"]


def test_the_win_matrix_and_the_ranks_are_counted_by_hand() -> None:
    figures = {"a": (0.5, 0.8, 0.9), "b": (0.5, 0.7, 0.9), "random": (0.5, 0.6, 0.7)}
    runs = tuple(
        Run(name, seed, (10, 20, 30), scores, 3)
        for seed in range(4)
        for name, scores in figures.items()
    )
    (one,) = opened(summarise(Study(runs))).data["sets"]
    order, shares = one["wins"]["names"], one["wins"]["shares"]
    a, b, random = (order.index(name) for name in ("a", "b", "random"))
    # The first budget is that of the shared model, and left out; at the last, a and b are level.
    assert (shares[a][b], shares[a][random], shares[b][random]) == (0.75, 1.0, 1.0)
    assert (shares[b][a], shares[random][a]) == (0.25, 0.0)
    assert shares[a][a] is None
    ranks = dict(zip(one["ranks"]["names"], one["ranks"]["ranks"], strict=True))
    assert ranks == {"a": 1.0, "b": 2.0, "random": 3.0}
    assert (one["ranks"]["count"], one["ranks"]["blocks"]) == (4, "seeds")


def test_a_pair_without_a_shared_seed_has_no_entry_in_the_win_matrix() -> None:
    runs = tuple(
        Run(name, seed, (10, 20), (0.5, 0.6 + 0.01 * seed), 2)
        for name, seeds in (("a", (0, 1)), ("b", (2, 3)), ("random", (0, 1, 2, 3)))
        for seed in seeds
    )
    (one,) = opened(summarise(Study(runs))).data["sets"]
    order, shares = one["wins"]["names"], one["wins"]["shares"]
    assert shares[order.index("a")][order.index("b")] is None
    assert shares[order.index("a")][order.index("random")] == 0.5
    assert one["ranks"] is None  # no seed that all have


def test_costs_stand_on_the_page_and_are_checked(summary: Summary) -> None:
    data = opened(summary, Costs(30, 45.5, "EUR </script>")).data
    assert data["costs"] == {"seconds": 30, "wage": 45.5, "currency": "EUR </script>"}
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="wage"):
            Costs(wage=wrong)


def test_two_seeds_have_dots_and_no_interval(tmp_path: Path) -> None:
    summary = summarise(made_up({"random": 0.0, "up": 0.02}, seeds=2))
    (one,) = Page(write(summary, tmp_path).page.read_text(encoding="utf-8")).data["sets"]
    row = one["rows"][1]
    assert row["curve"]["low"] == [None] * len(BUDGETS)
    assert row["dots"] == [list(run.scores) for run in summary.study.complete("up").values()]
    assert row["savings"][1]["low"] is None
    assert len(row["comparison"]["dots"]) == 2


def test_one_seed_says_that_nothing_is_tested() -> None:
    data = opened(summarise(made_up({"random": 0.0, "up": 0.02}, seeds=1))).data
    assert "nothing can be tested" in data["verdict"]
    data = opened(summarise(made_up({"up": 0.02}, seeds=1))).data
    assert "no reference" in data["verdict"]


def test_twenty_strategies_on_ten_sets_stay_one_small_page() -> None:
    names = {"random": 0.0, **{f"a-strategy-of-number-{i:02d}": 0.002 * i for i in range(19)}}
    studies = [replace(made_up(names, seeds=5), name=f"data-set-{i}") for i in range(10)]
    html = page(document(summarise_sets(studies), "Many", Costs(), [None] * 10))
    assert len(html) < 1_500_000  # without pictures, which have room of their own
    data = Page(html).data
    assert [one["name"] for one in data["sets"]] == [f"data-set-{i}" for i in range(10)]
    assert len({one["slot"] for one in data["strategies"]}) == 20
    best = "a-strategy-of-number-18"
    assert data["verdict"].startswith(f"Over 10 data sets, {best} has the best mean rank (1.")
    assert f"it is ahead of random in 10 of 10, shown in {10}" in data["verdict"]
    assert data["overall"]["ranks"]["count"] == 10


def test_the_files_of_each_data_set_lie_in_a_folder_of_its_name(tmp_path: Path) -> None:
    studies = [replace(made_up({"random": 0, "up": 0.02}), name=name) for name in ("one", "two")]
    files = write_sets(summarise_sets(studies), tmp_path, "Both")
    assert {file.page for file in files} == {tmp_path / "report.html"}
    assert [file.csv for file in files] == [tmp_path / n / "curves.csv" for n in ("one", "two")]
    assert all(file.csv.is_file() and file.png.is_file() for file in files)
    look = read_look(tmp_path)
    assert (look.title, set(look.slots)) == ("Both", {"random", "up"})


def test_strategies_that_some_sets_lack_are_not_ranked_over_sets(tmp_path: Path) -> None:
    one = replace(made_up({"random": 0, "a": 0.01, "b": 0.02, "c": 0.03}), name="one")
    two = replace(made_up({"random": 0, "a": 0.01, "b": 0.02}), name="two")
    data = Page(
        write_sets(summarise_sets([one, two]), tmp_path)[0].page.read_text(encoding="utf-8")
    ).data
    assert data["overall"]["ranks"]["names"] == ["random", "a", "b"]
    wins = data["overall"]["wins"]
    assert wins["names"] == ["random", "a", "b", "c"]
    assert wins["shares"][3][0] > 0.9  # from the one set that has it
