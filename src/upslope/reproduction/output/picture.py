"""The picture of an artefact: our curves in colour, the paper's dashed beside them.

`write` calls it.
"""

from __future__ import annotations

import math
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from upslope.files import write_atomically
from upslope.report.figures import DASHES, INK, STYLE, look_of
from upslope.report.look import GREY
from upslope.reproduction.output.results import Panel, Series

WIDTH, HEIGHT = 6.4, 4.2
LEGEND_INSIDE = 6
"""The most names that a legend inside the axes may have without hiding the curves."""
OVERLAP_DASHES = (0, (3, 3))
"""Dashes of a curve that would hide the one below it."""


def save_picture(panels: tuple[Panel, ...], folder: Path) -> list[Path]:
    """Draw panels and write `figure.png` and `figure.svg` into a folder.

    Returns: the two paths.
    """
    paths = [folder / "figure.png", folder / "figure.svg"]
    with mpl.rc_context({**STYLE, "svg.hashsalt": folder.name}):
        figure = draw_picture(panels)
        png: dict[str, Any] = {"dpi": 150, "metadata": {"Software": "Upslope"}}
        svg: dict[str, Any] = {"metadata": {"Date": None, "Creator": "Upslope"}}
        for path, options in zip(paths, (png, svg), strict=True):
            write_atomically(path, partial(figure.savefig, **options))
    return paths


def draw_picture(panels: tuple[Panel, ...]) -> Figure:
    """Return a figure of panels, two in each line."""
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
        if panel.logarithmic:
            axes.set_yscale("log")
        (_bars if panel.bars else _lines)(axes, panel, looks)
        if panel.level is not None:
            name, level = panel.level
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=name)
        _legend(axes)
    return figure


def _legend(axes: Any) -> None:
    """Put the legend inside the axes, or beside them where it would hide the curves."""
    many = len(axes.get_legend_handles_labels()[1]) > LEGEND_INSIDE
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"loc": "best"}
    axes.legend(fontsize=7.5, frameon=False, ncols=1 if many else 2, **place)


def _width(panel: Panel) -> float:
    return len(panel.x) * max(1, len(panel.series)) / 24 if panel.bars else 1.0


def _looks(panels: tuple[Panel, ...]) -> dict[str, tuple[str, Any, str]]:
    """Return name -> colour, dashes and shape, the same in every panel; random is grey."""
    names = dict.fromkeys(
        s.label for p in panels for s in p.series if s.source != "chance" and s.label != "random"
    )
    looks = {name: look_of(i) for i, name in enumerate(names)}
    return {**looks, "random": look_of(GREY), "chance": (INK, DASHES[0], "o")}


def _lines(axes: Any, panel: Panel, looks: dict[str, tuple[str, Any, str]]) -> None:
    x = np.asarray(panel.x, dtype=float)
    axes.set_xticks(x, [f"{v:g}" for v in x])
    if not panel.logarithmic:
        axes.set_ylim(*_frame(panel))
    has_bands, lines = _fits(panel), list[np.ndarray]()
    for series in panel.series:
        y = np.asarray(series.y)
        if series.source == "chance":
            axes.plot(x, y, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=series.label)
            continue
        colour, dashes, shape = looks.get(series.label, (INK, DASHES[0], "o"))
        theirs = series.source == "paper"
        finite = np.isfinite(y)
        if not theirs:
            if any(_hides(y, other, panel) for other in lines):
                dashes = OVERLAP_DASHES
            lines.append(y)
        axes.plot(
            x[finite],
            y[finite],
            color=colour,
            linestyle=(0, (2, 2)) if theirs else dashes,
            linewidth=1 if theirs else 2,
            alpha=0.7 if theirs else 1.0,
            marker=shape,
            markersize=2.5 if theirs else 4.5,
            label=f"{series.label} (paper)" if theirs else series.label,
        )
        if has_bands and not theirs and any(not math.isnan(h) for h in series.half):
            half = np.asarray(series.half)
            axes.fill_between(x, y - half, y + half, color=colour, alpha=0.12, lw=0)


def _frame(panel: Panel) -> tuple[float, float]:
    """Return the ends of the y axis, by the curves: intervals of two seeds may be far larger."""
    values = [v for series in panel.series for v in series.y if math.isfinite(v)]
    values += [panel.level[1]] if panel.level else []
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.25 * (high - low) + 1e-9
    bottom = max(low - room, -0.05 * (high - low)) if low >= 0 else low - room
    share = "%" in panel.ylabel and high <= 100
    return bottom, min(high + room, 104.0) if share else high + room


def _fits(panel: Panel) -> bool:
    """Say whether all intervals fit into the panel; otherwise none of them is drawn."""
    half = np.array([h for s in panel.series if s.source == "ours" for h in s.half])
    half = half[np.isfinite(half)]
    if panel.bars:
        values = [v for s in panel.series for v in s.y if math.isfinite(v)]
        return not len(half) or 2 * float(half.max()) <= max(values)
    if panel.logarithmic:
        ends = [v - h for s in panel.series for v, h in zip(s.y, s.half, strict=False)]
        return all(end > 0 for end in ends if math.isfinite(end))
    low, high = _frame(panel)
    return not len(half) or 2 * float(half.max()) <= high - low


def _hides(y: np.ndarray, other: np.ndarray, panel: Panel) -> bool:
    """Say whether a curve would hide another; it is then dashed, so that both are seen."""
    if panel.logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            return bool(np.allclose(np.log10(y), np.log10(other), atol=0.01, equal_nan=True))
    low, high = _frame(panel)
    return bool(np.allclose(y, other, rtol=0, atol=0.004 * (high - low), equal_nan=True))


def _bars(axes: Any, panel: Panel, looks: dict[str, tuple[str, Any, str]]) -> None:
    places, width = np.arange(len(panel.x)), 0.8 / max(1, len(panel.series))
    has_error_bars = _fits(panel)
    for i, series in enumerate(panel.series):
        theirs = series.source == "paper"
        colour = looks.get(series.label, (INK, None, ""))[0]
        axes.bar(
            places + (i - (len(panel.series) - 1) / 2) * width,
            series.y,
            0.94 * width,
            yerr=_errors(series) if has_error_bars else None,
            color="none" if theirs else colour,
            edgecolor=colour,
            label=f"{series.label} (paper)" if theirs else series.label,
            error_kw={"linewidth": 1},
        )
    names = [textwrap.fill(str(name), 20) for name in panel.x]
    has_long_names = max(map(len, names)) > 3
    axes.set_xticks(
        places,
        names,
        rotation=30 if has_long_names else 0,
        ha="right" if has_long_names else "center",
        fontsize=8,
    )
    values = np.array([v for s in panel.series for v in s.y if math.isfinite(v)])
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if panel.logarithmic and low > 0:
        axes.set_ylim(0.7 * low, high * (high / low) ** 0.25)
    elif not panel.logarithmic:
        axes.set_ylim(0, 1.25 * high)


def _errors(series: Series) -> Any:
    half = np.asarray(series.half)
    return half if len(half) and np.isfinite(half).all() else None
