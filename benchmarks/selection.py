"""How long does each strategy take to select, and in how much memory? Signals are given.

python benchmarks/selection.py --help
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from upslope.strategies import REGISTRY, build

err = Console(stderr=True, highlight=False)

MOST = {"bait": 100, "batch-bald": 50}
"""The budgets that suit strategies which are not meant for thousands at once."""
LEARNT = {"vaal", "sraal", "predicted-loss", "committee", "model-change", "influence"}
"""Signals for which something is trained or solved for first."""
GIB = 2**30

HELP = """How long does each strategy take to select, and in how much memory?

The pool is made up: features in clusters, posteriors and gradients that belong to them. Signals \
are given, so what is measured is the selection alone. Each strategy runs in a process of its own; \
its peak is that of the whole process, the pool and the libraries included.

The defaults are the size of SVHN. [bold]--quick[/bold] takes a twentieth of it."""


@dataclass
class Row:
    """One strategy. Times in seconds, memory in bytes; `failed` where there are none."""

    strategy: str
    signals: str
    budget: int
    cpu_s: float | None = None
    wall_s: float | None = None
    peak_bytes: int | None = None
    failed: str = ""
    notes: dict[str, float] | None = None


def main(
    strategies: Annotated[str, typer.Option(help="Names with commas between.")] = "all",
    candidates: Annotated[int, typer.Option(min=1)] = 36_630,
    labelled: Annotated[int, typer.Option(min=0)] = 20_000,
    features: Annotated[int, typer.Option(min=1)] = 512,
    classes: Annotated[int, typer.Option(min=1)] = 10,
    budget: Annotated[int, typer.Option(min=1, help="Labels to select (K).")] = 2_500,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[int, typer.Option(min=1, help="Processor time, most for one.")] = 600,
    memory: Annotated[float, typer.Option(help="GiB that no process may exceed.")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="1,830, 1,000, 64; K = 125.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table as JSON, after each row.")
    ] = None,
) -> None:
    names = (
        [name for name, kind in REGISTRY.items() if not kind.sees_labels]
        if strategies == "all"
        else strategies.split(",")
    )
    if unknown := [name for name in names if name not in REGISTRY]:
        raise typer.BadParameter(
            f"Expected strategies among {', '.join(REGISTRY)} but got {', '.join(unknown)}."
        )
    if quick:
        candidates, labelled, features, budget = 1_830, 1_000, 64, 125
    sizes = [candidates, labelled, features, classes]
    say = (
        f"{candidates:,} candidates, {labelled:,} labelled, {features} features, {classes} classes"
    )
    typer.echo(f"{say}; {threads} thread(s); torch {version('torch')}, {platform.machine()}\n")
    typer.echo("| strategy | signals given | K | CPU s | wall s | peak GiB |  |")
    typer.echo("| --- | --- | --: | --: | --: | --: | --- |")
    rows: list[Row] = []
    for place, name in enumerate(names, 1):
        err.print(f"{place} of {len(names)}  {name} ...")
        rows.append(measured(name, sizes, min(budget, candidates), threads, seconds))
        typer.echo(line(rows[-1], memory))
        if out is not None:  # after each: an interrupted run keeps what it has
            record = {"sizes": dict(zip(SIZES, sizes, strict=True)), "threads": threads}
            out.parent.mkdir(parents=True, exist_ok=True)
            rest = {"torch": version("torch"), "rows": [asdict(row) for row in rows]}
            out.write_text(json.dumps(record | rest, indent=1) + "\n", encoding="utf-8")
    typer.echo("\n" + LEGEND.format(memory=memory))
    over = [row.strategy for row in rows if (row.peak_bytes or 0) > memory * GIB]
    if over or any(row.failed for row in rows):
        if over:
            err.print(f"over {memory:g} GiB: {', '.join(over)}")
        raise typer.Exit(1)


SIZES = ("candidates", "labelled", "features", "classes")
LEGEND = """Seconds and memory of the selection alone. *: its signals come from something trained \
or solved for first, which is not in these figures. Peak: of the process, pool and libraries \
included; at most {memory:g} GiB are allowed."""


def measured(name: str, sizes: list[int], budget: int, threads: int, seconds: int) -> Row:
    """Run it in a process of its own."""
    needs = build(name).needs
    signals = ", ".join(need.name + "*" * (need.name in LEARNT) for need in needs) or "none"
    row = Row(name, signals, min(budget, MOST.get(name, budget)))
    numbers = [str(value) for value in (*sizes, row.budget, threads, seconds)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "selecting.one", name, *numbers],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        over = -done.returncode == getattr(signal, "SIGXCPU", None)
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        row.failed = f"over {seconds} s" if over else last
        return row
    found = json.loads(done.stdout.splitlines()[-1])
    row.cpu_s, row.wall_s, row.peak_bytes = found["cpu_s"], found["wall_s"], found["peak_bytes"]
    row.notes = found["notes"]
    return row


def line(row: Row, memory: float) -> str:
    """A row of the table, in Markdown."""
    if row.cpu_s is None or row.wall_s is None or row.peak_bytes is None:
        return f"| {row.strategy} | {row.signals} | {row.budget:,} |  |  |  | {row.failed} |"
    told = f"over {memory:g} GiB" if row.peak_bytes > memory * GIB else ""
    figures = f"{row.cpu_s:.1f} | {row.wall_s:.1f} | {row.peak_bytes / GIB:.2f}"
    return f"| {row.strategy} | {row.signals} | {row.budget:,} | {figures} | {told} |"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})(main)
    app()
