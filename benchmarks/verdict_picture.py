"""The picture of docs/verdict.md and the README, from the committed curves: no run is needed.

    python benchmarks/verdict_picture.py --results results/verdict --out docs/img/verdict.png

A panel for each cell: mean accuracy against labels, with bands of 95% confidence, over the seeds
that all strategies of the cell have. A strategy has the same colour everywhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import matplotlib as mpl  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from upslope.evaluation import mean_interval  # noqa: E402
from upslope.report.figures import PALETTE, REFERENCE, STYLE  # noqa: E402
from verdict_tables import Cell  # noqa: E402

STRATEGIES = ("u-herding", "binary-bait", "margin", "entropy-gradnorm", "random")
COLOURS = {**dict(zip(STRATEGIES, PALETTE, strict=False)), "random": REFERENCE}
CELLS = {
    "sign-digits-low": "photographs of hands",
    "cifar10-low": "CIFAR-10",
    "fashion-mnist-low": "Fashion-MNIST",
    "confirm-tiny-imagenet": "Tiny ImageNet, 100 classes",
    "confirm-near-copies": "ten near-copies of each",
    "confirm-people": "17% wrong labels",
}
ROWS, COLUMNS = 2, 3


def draw(axes: Axes, cell: Cell, title: str) -> None:
    """Draw the curves of one cell."""
    for name in STRATEGIES:
        band = mean_interval(cell.curves[name])
        axes.fill_between(
            cell.budgets, 100 * band.low, 100 * band.high, color=COLOURS[name], alpha=0.15, lw=0
        )
        axes.plot(cell.budgets, 100 * band.mean, color=COLOURS[name], lw=2, label=name)
    axes.set_title(f"{title}, {len(cell.seeds)} seeds")
    axes.set_xlabel("labels")
    axes.grid(axis="y")
    axes.tick_params(length=0)


def main() -> None:
    """Read the curves, draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/verdict"))
    parser.add_argument("--out", type=Path, default=Path("docs/img/verdict.png"))
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(ROWS, COLUMNS)
        for axes, (name, title) in zip(panels.flat, CELLS.items(), strict=True):
            draw(axes, Cell(options.results / f"{name}.json"), title)
        for row in panels:
            row[0].set_ylabel("accuracy on the test set (%)")
        lines, names = panels.flat[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
        figure.savefig(options.out, dpi=150, metadata={"Software": "Upslope"})


if __name__ == "__main__":
    main()
