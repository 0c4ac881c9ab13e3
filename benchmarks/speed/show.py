"""The measurement as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speed.measure import Report, Row
from upslope.experiment.environment import environment

PLAIN, OURS = "forward + backward", "upslope"
"""What ratios are taken to: the faster memory format of each, eager and in full precision."""


def table(report: Report, console: Console) -> None:
    """One network's table, with why anything was refused beneath it."""
    shown = Table(title=f"{report.title}, batch {report.batch}", title_justify="left")
    shown.add_column("method")
    for heading in ("samples/s", "x plain", "ours x", "error", "worst", "MiB", "chunk", "timed"):
        shown.add_column(heading, justify="right")
    for row in report.rows:
        shown.add_row(*_cells(report, row), style="bold" if row.kind == "ours" else None)
    console.print(shown)
    for row in report.rows:
        if row.refused:
            console.print(f"{row.method}: {row.refused}", markup=False, style="dim")
    exact = report.exactness
    console.print(
        f"upslope in float64, {exact.samples} samples, worst relative difference to the loop: "
        f"global {exact.global_norm:.0e}, tensor-sum {exact.tensor_sum:.0e}\n"
    )


LEGEND = """\
x plain  speed over that of plain forward + backward in its faster memory format
ours x   how many times as fast as the method upslope is, in its faster memory format
error    median (and worst) relative difference of the norms to the one-sample loop in float64
MiB      peak memory of a process of its own, beyond model and samples
timed    samples per round x rounds; the figure is the median round"""


def _cells(report: Report, row: Row) -> list[str]:
    if not row.times:
        missing = (row.refused or "").startswith("not installed")
        return [row.method, "not installed" if missing else "refused", *[""] * 7]
    return [
        row.method,
        f"{row.rate:.1f}" if row.rate < 1000 else f"{row.rate:.0f}",
        _number(row.rate / report.best(PLAIN), ".2f"),
        _number(report.best(OURS) / row.rate, ".2f"),
        _number(row.error_median, ".0e"),
        _number(row.error_max, ".0e"),
        _number(row.peak_mib, ".0f"),
        str(row.chunk),
        f"{row.samples} x {len(row.times)}",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def record(reports: Sequence[Report], command: Sequence[str], device: str) -> dict[str, Any]:
    """Everything measured and where, for `json`."""
    where = environment(torch.device(device))
    where["packages"].update({p: _version(p) for p in ("opacus", "backpack-for-pytorch")})
    networks = []
    for report in reports:
        networks.append(asdict(report))
        for row, known in zip(report.rows, networks[-1]["rows"], strict=True):
            if row.times:
                known["samples_per_second"] = row.rate
                known["ratio_to_plain"] = _finite(row.rate / report.best(PLAIN))
                known["ours_ratio_to_it"] = _finite(report.best(OURS) / row.rate)
    return {"command": list(command), "environment": where, "networks": networks}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_json(path: Path, recorded: dict[str, Any]) -> None:
    """The record, in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


def plot(path: Path, reports: Sequence[Report]) -> None:
    """A row a network, a mark a method, by speed over plain forward + backward."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.method for report in reports for row in report.rows))
    marks = {"plain": "|", "rival": "o", "ours": "D"}
    colours = dict(zip(names, _colours(reports, names), strict=True))
    height = max(3.2, 1.6 + 0.6 * len(reports))
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    labelled: set[str] = set()
    for place, report in enumerate(reports):
        axes.axhline(place, color="0.9", linewidth=1, zorder=0)
        for row in report.rows:
            if row.times:
                axes.scatter(
                    row.rate / report.best(PLAIN),
                    place,
                    s=160 if row.kind == "plain" else 55,
                    marker=marks[row.kind],
                    color=colours[row.method],
                    zorder=3 if row.kind == "ours" else 2,
                    label=None if row.method in labelled else row.method,
                )
                labelled.add(row.method)
    axes.axvline(1, color="0.4", linewidth=1, linestyle="--", zorder=1)
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(reports)), [report.title for report in reports])
    axes.set_ylim(len(reports) - 0.5, -0.5)
    axes.set_xlabel("samples per second, over plain forward + backward (faster memory format)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _colours(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """Greys for plain passes, reds for ours, the rest for the others."""
    palettes = {
        "plain": ["0.75", "0.6", "0.45", "0.3"],
        "rival": ["#1f77b4", "#2ca02c", "#9467bd", "#c5a3dd", "#17becf"],
        "ours": ["#d62728", "#ff7f0e", "#8c1a1b", "#e377c2"],
    }
    kinds = {row.method: row.kind for report in reports for row in report.rows}
    seen: dict[str, int] = {}
    colours = []
    for name in names:
        palette = palettes[kinds[name]]
        colours.append(palette[seen.get(kinds[name], 0) % len(palette)])
        seen[kinds[name]] = seen.get(kinds[name], 0) + 1
    return colours
