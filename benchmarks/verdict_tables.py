"""The tables of docs/verdict.md from the committed curves: one command, no run needed.

    python benchmarks/verdict_tables.py --results results/verdict

Reads <results>/<cell>.json, as `benchmarks/verdict.py summarise` writes them, and writes
<results>/README.md: per cell the area against random, labels needed and seconds; over all cells
the win matrix and mean ranks. In every cell only the seeds that all of its strategies have
finished count, so that all comparisons are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402

from upslope.evaluation import (  # noqa: E402
    area,
    equivalence,
    holm,
    labels_needed,
    paired_comparison,
    rank,
    win_matrix,
)
from upslope.report.tables import p_value  # noqa: E402

MARGIN = 0.01
"""Half the region of practical equivalence, a share of accuracy: one point."""
LEVEL = 0.05


class Cell:
    """The curves of a cell, over the seeds that all of its strategies have."""

    def __init__(self, path: Path) -> None:
        record = json.loads(path.read_text(encoding="utf-8"))
        self.name, self.record, self.budgets = path.stem, record, record["budgets"]
        rows: dict[str, Any] = record["strategies"]
        most = max((len(row["curves"]) for row in rows.values()), default=0)
        # One that has hardly begun would leave the others without seeds.
        rows = {name: row for name, row in rows.items() if 2 * len(row["curves"]) > most}
        shared = set.intersection(*(set(row["curves"]) for row in rows.values()))
        self.seeds = sorted(shared, key=int)
        self.curves = {
            name: np.array([row["curves"][seed] for seed in self.seeds])
            for name, row in sorted(rows.items())
        }
        self.seconds = {name: row["selecting_seconds_per_cycle"] for name, row in rows.items()}


def percent(value: float) -> str:
    """A share as points, signed."""
    return f"{100 * value:+.2f}"


def probability(value: float) -> str:
    """A share between 0 and 1, which is neither."""
    if value < 0.01:
        return "<0.01"
    return ">0.99" if value > 0.99 else f"{value:.2f}"


def number(value: float) -> str:
    """Labels, where they are reached."""
    return f"{value:.0f}" if np.isfinite(value) else "not reached"


def cell_table(cell: Cell) -> list[str]:
    """The table of one cell against random."""
    names = [name for name in cell.curves if name != "random"]
    areas = {name: area(cell.budgets, curves) for name, curves in cell.curves.items()}
    compared = {name: paired_comparison(areas[name], areas["random"]) for name in names}
    adjusted = dict(zip(names, holm([compared[n].p for n in names]), strict=True))
    names.sort(key=lambda name: -float(compared[name].difference.mean))
    lines = [
        f"## {cell.name}",
        "",
        f"{len(cell.seeds)} seeds, {cell.budgets[0]} to {cell.budgets[-1]} labels, random ends at "
        f"{100 * cell.curves['random'][:, -1].mean():.1f}%, area "
        f"{100 * areas['random'].mean():.1f}%. Network: {cell.record['network']}. Written at the "
        f"commit {cell.record['commit']}.",
        "",
        "| strategy | area against random, points | p (Holm) | p sign flip | within 1 point | "
        "labels for random's half | labels for random's all | seconds a selection |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        difference = compared[name].difference
        equal = equivalence(areas[name] - areas["random"], MARGIN)
        half, whole = (
            labels_needed(cell.budgets, cell.curves[name], cell.curves["random"], share)
            for share in (0.5, 1.0)
        )
        lines.append(
            f"| {name} | {percent(float(difference.mean))} ({percent(float(difference.low))} to "
            f"{percent(float(difference.high))}) | {p_value(adjusted[name])} | "
            f"{p_value(compared[name].p_sign_flip)} | {probability(equal.within)} | "
            + " | ".join(
                f"{number(found.labels)} of {found.reference:.0f} "
                f"({number(found.low)} to {number(found.high)})"
                for found in (half, whole)
            )
            + f" | {cell.seconds[name]:.2f} |"
        )
    return [*lines, ""]


def overall(title: str, cells: list[Cell]) -> list[str]:
    """The win matrix and the ranks over cells, of the strategies that every cell has."""
    if not cells:
        return []
    names = sorted(set.intersection(*(set(cell.curves) for cell in cells)))
    wins = np.mean(
        [win_matrix({name: cell.curves[name] for name in names}, first=1) for cell in cells], axis=0
    )
    areas = np.array(
        [[float(area(cell.budgets, cell.curves[n]).mean()) for n in names] for cell in cells]
    )
    order = np.argsort(-np.nanmean(wins, axis=1))
    heads = [names[i] for i in order]
    lines = [
        f"## {title}: {', '.join(cell.name for cell in cells)}",
        "",
        "Share of (seed, budget) pairs in which the row beats the column, the mean of the cells; "
        "ties count half.",
        "",
        f"| beats | {' | '.join(heads)} |",
        f"| --- | {' | '.join('---' for _ in heads)} |",
    ]
    for i in order:
        entries = (f"{wins[i, j]:.2f}" if i != j else "" for j in order)
        lines.append(f"| {names[i]} | {' | '.join(entries)} |")
    if len(cells) > 1 and len(names) > 2:
        ranking = rank(areas, LEVEL)
        lines += [
            "",
            f"Mean ranks by area over {len(cells)} cells: "
            + ", ".join(
                f"{names[i]} {ranking.ranks[i]:.2f}"
                for i in np.argsort(ranking.ranks, kind="stable")
            )
            + f". Two that differ by less than {ranking.critical_difference:.2f} are not shown to "
            f"differ (Nemenyi at {LEVEL}; Friedman p = {ranking.p:.3g}).",
        ]
    lines += [
        "",
        "Labels saved: 1 less the labels with which a strategy reaches what random reaches with",
        "all of its own, as a share of these. Cells where it does not reach that count as 0.",
        "",
        "| strategy | mean area against random | worst cell | labels saved, mean | reached in |",
        "| --- | --- | --- | --- | --- |",
    ]
    baseline = areas[:, names.index("random")]
    for i in order:
        gains = areas[:, i] - baseline
        worst = int(gains.argmin())
        lines.append(
            f"| {names[i]} | {percent(float(gains.mean()))} | {percent(float(gains[worst]))} "
            f"({cells[worst].name}) | {saving(names[i], cells)} |"
        )
    return [*lines, ""]


def saving(name: str, cells: list[Cell]) -> str:
    """The mean share of labels saved, and in how many cells random's end is reached at all."""
    needed = [labels_needed(c.budgets, c.curves[name], c.curves["random"], 1.0) for c in cells]
    shares = [1 - one.labels / one.reference for one in needed if np.isfinite(one.labels)]
    return f"{100 * sum(shares) / len(cells):.0f}% | {len(shares)} of {len(cells)} cells"


def main() -> None:
    """Read the curves, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/verdict"))
    options = parser.parse_args()
    cells = [Cell(path) for path in sorted(options.results.glob("*.json"))]
    cells = [cell for cell in cells if len(cell.seeds) > 1 and "random" in cell.curves]
    groups = {
        "Few labels": [cell for cell in cells if cell.name.endswith("-low")],
        "More labels": [cell for cell in cells if cell.name.endswith("-high")],
        "Confirmation": [cell for cell in cells if cell.name.startswith("confirm-")],
        "Networks trained whole": [cell for cell in cells if cell.record["cell"]["whole"]],
    }
    lines = [
        "# Strategies, cell by cell",
        "",
        "Made by `python benchmarks/verdict_tables.py` from the JSON files beside it, which hold",
        "every curve; those by `python benchmarks/verdict.py run` and `summarise`. Differences are",
        "paired within seeds, intervals are 95%. What follows: [verdict](../../docs/verdict.md).",
        "",
        *(line for title, part in groups.items() for line in overall(title, part)),
        *(line for cell in cells for line in cell_table(cell)),
    ]
    (options.results / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
