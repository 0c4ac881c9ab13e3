"""The panels of an artefact as one picture: ours in colour, the paper's dashed beside it."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from upslope.report.figures import DASHES, INK, PALETTE, REFERENCE, STYLE
from upslope.reproduction.sheets import Panel, Series

WIDTH, HEIGHT = 6.4, 4.2
FEW = 6
"""Names that fit into a picture without hiding it."""


def save(panels: tuple[Panel, ...], folder: Path) -> list[Path]:
    """Write `figure.png` and `figure.svg`; returns the two paths."""
    paths = [folder / "figure.png", folder / "figure.svg"]
    with mpl.rc_context({**STYLE, "svg.hashsalt": folder.name}):
        figure = picture(panels)
        figure.savefig(paths[0], dpi=150, metadata={"Software": "Upslope"})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": "Upslope"})
    return paths


def picture(panels: tuple[Panel, ...]) -> Figure:
    """Two panels beside each other, then the next two."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    wide = max(1.0, max(_width(panel) for panel in panels))
    size = (WIDTH * columns * wide, HEIGHT * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    looks = _looks(panels)
    for i, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, i)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.set_title(textwrap.fill(panel.title, 62), fontsize=10)
        axes.set_xlabel(panel.xlabel)
        axes.set_ylabel(panel.ylabel)
        (_bars if panel.bars else _lines)(axes, panel, looks)
        if panel.logarithmic:
            axes.set_yscale("log")
        if panel.level is not None:
            name, level = panel.level
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=name)
        _legend(axes)
    return figure


def _legend(axes: Any) -> None:
    """Inside where names are few, beside where they would hide the curves."""
    many = len(axes.get_legend_handles_labels()[1]) > FEW
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"loc": "best"}
    axes.legend(fontsize=7.5, frameon=False, ncols=1 if many else 2, **place)


def _width(panel: Panel) -> float:
    return len(panel.x) * max(1, len(panel.series)) / 24 if panel.bars else 1.0


def _looks(panels: tuple[Panel, ...]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes by name, the same in every panel; random grey."""
    names = dict.fromkeys(
        s.label for p in panels for s in p.series if s.source != "chance" and s.label != "random"
    )
    found = {
        name: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)])
        for i, name in enumerate(names)
    }
    return {**found, "random": (REFERENCE, DASHES[0]), "chance": (INK, DASHES[0])}


def _lines(axes: Any, panel: Panel, looks: dict[str, tuple[str, Any]]) -> None:
    x = np.asarray(panel.x, dtype=float)
    axes.set_xticks(x, [f"{v:g}" for v in x])
    if not panel.logarithmic:
        _frame(axes, [*panel.series], panel.level)
    for series in panel.series:
        y = np.asarray(series.y)
        if series.source == "chance":
            axes.plot(x, y, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=series.label)
            continue
        colour, dashes = looks.get(series.label, (INK, DASHES[0]))
        theirs = series.source == "paper"
        known = np.isfinite(y)
        axes.plot(
            x[known],
            y[known],
            color=colour,
            linestyle=(0, (2, 2)) if theirs else dashes,
            linewidth=1 if theirs else 2,
            alpha=0.7 if theirs else 1.0,
            marker="o",
            markersize=2 if theirs else 3.5,
            label=f"{series.label} (paper)" if theirs else series.label,
        )
        if not theirs and any(not math.isnan(h) for h in series.half):
            half = np.asarray(series.half)
            low, high = axes.get_ylim()
            if not panel.logarithmic and 2 * np.nanmax(half) > high - low:
                continue  # of two seeds, mostly: a fog over everything, which the table tells
            axes.fill_between(x, y - half, y + half, color=colour, alpha=0.12, lw=0)


def _frame(axes: Any, shown: list[Series], level: tuple[str, float] | None) -> None:
    """By the curves: the intervals of two seeds may be many times as high."""
    values = [v for series in shown for v in series.y if math.isfinite(v)]
    values += [level[1]] if level else []
    if values:
        room = 0.25 * (max(values) - min(values)) + 1e-9
        axes.set_ylim(min(values) - room, max(values) + room)


def _bars(axes: Any, panel: Panel, looks: dict[str, tuple[str, Any]]) -> None:
    places, width = np.arange(len(panel.x)), 0.8 / max(1, len(panel.series))
    for i, series in enumerate(panel.series):
        theirs = series.source == "paper"
        colour = looks.get(series.label, (INK, None))[0]
        axes.bar(
            places + (i - (len(panel.series) - 1) / 2) * width,
            series.y,
            width,
            yerr=_errors(series),
            color="none" if theirs else colour,
            edgecolor=colour,
            label=f"{series.label} (paper)" if theirs else series.label,
            error_kw={"linewidth": 1},
        )
    names = [textwrap.fill(str(name), 20) for name in panel.x]
    turned = max(map(len, names)) > 3
    axes.set_xticks(
        places, names, rotation=30 if turned else 0, ha="right" if turned else "center", fontsize=8
    )
    values = np.array([v for s in panel.series for v in s.y if math.isfinite(v)])
    if len(values) and not panel.logarithmic:
        axes.set_ylim(0, 1.25 * float(values.max()))


def _errors(series: Series) -> Any:
    half = np.asarray(series.half)
    return half if len(half) and np.isfinite(half).all() else None
