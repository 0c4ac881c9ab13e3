"""The page on strategies: its figures are those of the committed curves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from upslope.config.evidence import CELLS, CONFIRMATION
from upslope.evaluation import area, mean_interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "verdict"
PAGE = " ".join((ROOT / "docs" / "verdict.md").read_text(encoding="utf-8").split())
HIGH = ("cifar10-high", "fashion-mnist-high", "sign-digits-high")
TABLES = ("confirm-digits", "confirm-wine", "confirm-breast-cancer")
sys.path.insert(0, str(ROOT / "benchmarks"))

import verdict_tables  # noqa: E402


def record(cell: str) -> dict:
    return json.loads((RESULTS / f"{cell}.json").read_text(encoding="utf-8"))


def gains(cell: str, strategy: str, by: str = "random", seeds: int = 20) -> np.ndarray:
    """Points of area ahead of another strategy, per seed."""
    one = record(cell)
    ours, theirs = (one["strategies"][name]["curves"] for name in (strategy, by))
    shared = [seed for seed in ours if seed in theirs and int(seed) < seeds]
    a, b = ([curves[seed] for seed in shared] for curves in (ours, theirs))
    return 100 * (area(one["budgets"], a) - area(one["budgets"], b))


def gain(cell: str, strategy: str, by: str = "random", seeds: int = 20) -> str:
    return f"{abs(gains(cell, strategy, by, seeds).mean()):.1f}"


def error(cell: str, strategy: str, by: str) -> str:
    d = gains(cell, strategy, by)
    return f"{d.std(ddof=1) / len(d) ** 0.5:.1f}"


def share_of_time(cells: tuple[str, ...], strategy: str) -> float:
    """Seconds per selection as a share of those of u-herding, over cells."""
    rows = [record(cell)["strategies"] for cell in cells]
    ours, theirs = (
        sum(row[name]["selecting_seconds_per_cycle"] for row in rows)
        for name in (strategy, "u-herding")
    )
    return ours / theirs


def test_figures_of_the_short_answer() -> None:
    low, high = ([gain(cell, "u-herding") for cell in cells] for cells in (CELLS, HIGH))
    assert (
        f"{low[0]} (`{CELLS[0]}`), {low[1]} (`{CELLS[1]}`) and {low[2]} points of area "
        f"(`{CELLS[2]}`)"
    ) in PAGE
    assert (
        f"{high[0]} (`{HIGH[0]}`), {high[1]} (`{HIGH[1]}`) and {high[2]} points (`{HIGH[2]}`)"
    ) in PAGE
    bait = sorted(gain(cell, "binary-bait") for cell in CELLS)
    assert f"| {bait[0]} to {bait[2]} points ahead of random in the low cells" in PAGE


def test_shares_of_time() -> None:
    """The page had a quarter for binary-bait, and a tenth for margin and badge."""
    assert share_of_time(CELLS, "binary-bait") == pytest.approx(2 / 5, abs=0.03)
    assert "(p below 0.001) at two fifths of the time" in PAGE
    assert share_of_time(HIGH, "margin") == pytest.approx(1 / 20, abs=0.01)
    assert share_of_time(HIGH, "badge") == pytest.approx(1 / 4, abs=0.03)
    assert "at a twentieth and a quarter of the time" in PAGE


def test_figures_of_confirmation_and_of_the_gradient_norms() -> None:
    for cell in CONFIRMATION:
        assert f"`{cell}` ({gain(cell, 'u-herding')})" in PAGE
    norms = ("entropy-gradnorm", "egl")
    ahead = [gain("confirm-imbalanced", name) for name in (*norms, "u-herding")]
    assert (
        f"ahead of random by {ahead[0]} and {ahead[1]} points (p below 0.001 each), level with "
        f"`u-herding` ({ahead[2]})"
    ) in PAGE
    for cell in ("confirm-digits", "confirm-near-copies", "sign-digits-low"):
        behind = [gain(cell, name) for name in norms]
        assert any(
            f"{behind[0]} and {behind[1]} {points}in `{cell}`" in PAGE
            for points in ("", "points of area ")
        )
    with_many = [
        float(gain(cell, name))
        for cell in HIGH
        for name in ("margin", "badge", "binary-bait", "u-herding")
    ]
    assert f"`u-herding` {min(with_many)} to {max(with_many)}." in PAGE


def test_what_is_left_to_gain() -> None:
    """A choice among known strategies could add 0.3 points in the first table; the page had 0.2."""
    oracle, ours = (
        [gain(cell, name, seeds=10) for cell in TABLES] for name in ("oracle", "u-herding")
    )
    assert f"it is {oracle[0]} (`{TABLES[0]}`), {oracle[1]} (`{TABLES[1]}`)" in PAGE
    assert f"reaches {ours[0]}, {ours[1]} and {ours[2]} of these" in PAGE
    left = [
        f"{gain(cell, 'oracle', 'u-herding')} ± {error(cell, 'oracle', 'u-herding')}"
        for cell in TABLES
    ]
    assert f"{left[0]}, {left[1]} and {left[2]} points (standard errors)" in PAGE
    first = gain(TABLES[0], "typiclust")
    rest = [gain(cell, "typiclust") for cell in TABLES[1:]]
    assert f"`typiclust` {first} ahead, then {rest[0]} and {rest[1]} behind" in PAGE
    ahead = mean_interval(gains("confirm-wine", "power-entropy", "u-herding"))
    assert (
        f"which is {ahead.mean:.1f} ahead of it there (95% interval {ahead.low:.1f} to "
        f"{ahead.high:.1f})"
    ) in PAGE


def test_the_tables_are_those_of_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A p below 0.0005 stood there as 0.000, and a probability of 0.998 as 1.00."""
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--results", str(tmp_path)])
    verdict_tables.main()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text == (RESULTS / "README.md").read_text(encoding="utf-8")
    assert "| 0.000 |" not in text
    rows = [line.split(" | ") for line in text.splitlines() if " of 200 (" in line]
    assert all(row[2] == "<0.001" or float(row[2]) >= 0.001 for row in rows)
    assert all(row[4] in ("<0.01", ">0.99") or 0.01 <= float(row[4]) <= 0.99 for row in rows)
