"""Learning curves as pictures for slides and papers: one Matplotlib figure, as PNG and SVG.

Colours are Okabe and Ito's, told apart under the common forms of colour blindness; the reference is
grey. Each curve carries its name at its end, with the shape of its points, so that nothing has to
be matched by colour alone, and a print in grey can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from upslope.evaluation import INTERVAL_SEEDS
from upslope.files import write_atomically
from upslope.report.look import GREY
from upslope.report.summary import Row, Summary
from upslope.report.tables import name_of

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195")
REFERENCE = "#6e7781"
INK, FAINT, PAPER = "#1f2328", "#d0d7de", "#ffffff"
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
SHAPES = ("o", "s", "^", "D")
"""Of points, by slot, the reference's first: matplotlib's markers, as the page draws them."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def save_curves(summary: Summary, directory: Path, name: str = "curves") -> list[Path]:
    """Write the learning curves as `<name>.png` and `<name>.svg`; returns the two paths."""
    paths = [directory / f"{name}.png", directory / f"{name}.svg"]
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = curves_figure(summary)
        png: dict[str, Any] = {"dpi": 160, "metadata": {"Software": "Upslope"}}
        svg: dict[str, Any] = {"metadata": {"Date": None, "Creator": "Upslope"}}
        for path, options in zip(paths, (png, svg), strict=True):
            write_atomically(path, partial(figure.savefig, **options))
    return paths


def curves_figure(summary: Summary) -> Figure:
    """Draw the figure over labels: mean, interval or seeds, full-data ceiling, unfinished runs."""
    figure, axes = _axes(summary)
    low, high = bounds(summary.study.metric)
    budgets = np.asarray(summary.budgets)
    axes.margins(x=0.02, y=0.08)
    has_points = len(budgets) <= 12
    for row, look in zip(summary.rows, looks(summary), strict=True):
        if len(row.seeds) >= INTERVAL_SEEDS:
            band = [100 * np.clip(x, low, high) for x in (row.curve.low, row.curve.high)]
            axes.fill_between(budgets, *band, color=look[0], alpha=0.13, lw=0)
        elif len(row.seeds) > 1:
            _dots(axes, budgets, summary.study.curves(row.strategy, row.seeds), look[0])
    for row, look in zip(summary.rows, looks(summary), strict=True):
        axes.plot(
            budgets,
            100 * row.curve.mean,
            color=look[0],
            linestyle=look[1],
            linewidth=2,
            marker=look[2] if has_points else None,
            markersize=4.5,
            clip_on=False,
        )
    for run in summary.study.incomplete:
        if run.scores:
            scores = 100 * np.asarray(run.scores)
            axes.plot(run.budgets, scores, color=REFERENCE, linewidth=0.8, linestyle=(0, (1, 2)))
    ceiling = summary.study.ceiling
    if ceiling is not None:
        axes.axhline(100 * ceiling, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"all labels: {100 * ceiling:.1f}%",
            (budgets[0], 100 * ceiling),
            xytext=(0, 3),
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )
    axes.set_ylabel(f"{name_of(summary.study.metric)} on the test set (%)")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 100 * low), min(top, 100 * high))
    ends = [100 * float(row.curve.mean[-1]) for row in summary.rows]
    _name_ends(axes, summary.rows, ends, looks(summary))
    return figure


def bounds(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a figure can have, as shares."""
    return (-math.inf, 1.0) if metric == "r2" else (0.0, 1.0)


def looks(summary: Summary) -> list[tuple[str, Any, str]]:
    """Return (colour, dashes, shape of points) of each row, by its slot."""
    return [look_of(summary.slots[row.strategy]) for row in summary.rows]


def look_of(slot: int) -> tuple[str, Any, str]:
    """Return (colour, dashes, shape of points) of a slot; past the palette, dashes differ."""
    shape = SHAPES[(slot + 1) % len(SHAPES)]
    if slot == GREY:
        return (REFERENCE, DASHES[0], shape)
    return (PALETTE[slot % len(PALETTE)], DASHES[slot // len(PALETTE) % len(DASHES)], shape)


def _axes(summary: Summary) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.4, 4.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    pool = summary.study.pool_size
    budgets = summary.budgets
    if len(budgets) <= 12:
        share = [f"{b:,}\n{100 * b / pool:.0f}%" if pool else f"{b:,}" for b in budgets]
        axes.set_xticks(budgets, share)
    axes.set_xlabel("Labels" + (" (and their share of the pool)" if pool else ""))
    return figure, axes


def _dots(axes: Any, budgets: NDArray[Any], curves: NDArray[Any], colour: str) -> None:
    """Draw each seed as points: an interval of two seeds says more of Student than of them."""
    for curve in curves:
        axes.plot(budgets, 100 * curve, "o", color=colour, markersize=4, alpha=0.45, mew=0)


def _name_ends(
    axes: Any, rows: Sequence[Row], ends: list[float], looks_of_rows: Sequence[tuple[str, Any, str]]
) -> None:
    """Write each row's name and its shape beside the end of its curve, moved apart where they would
    overlap.
    """
    if not rows:
        return
    low, high = axes.get_ylim()
    gap = (high - low) * min(0.052, 0.95 / len(rows))
    order = np.argsort(ends)
    # The places nearest to the ends, by least squares, that keep the order and the gap.
    steps = gap * np.arange(len(order))
    places = isotonic_regression(np.asarray(ends)[order] - steps).x + steps
    places += min(0.0, high - places[-1])
    places += max(0.0, low - places[0])
    beside = offset_copy(axes.get_yaxis_transform(), axes.figure, x=9, y=0, units="points")
    for place, i in zip(places, order, strict=True):
        colour, _, shape = looks_of_rows[i]
        point = {"color": colour, "marker": shape, "markersize": 4.5, "transform": beside}
        axes.figure.add_artist(Line2D([1.0], [place], linestyle="", **point))
        axes.annotate(
            rows[i].strategy,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(15, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
            annotation_clip=False,
        )
