"""Plans, tables and lists on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from upslope.cli.console import out
from upslope.counts import format_count

if TYPE_CHECKING:
    from upslope.config import Config, Estimate, Plan, Setup
    from upslope.report import Files, Summary


def show_warnings(lines: Sequence[str]) -> None:
    """Print what the evidence warns of, a line each."""
    for line in lines:
        out.print(Text(f"Warning: {line}", style="yellow"), soft_wrap=True)


def show_plan(
    config: Config,
    setup: Setup,
    plan: Plan,
    folder: Path,
    unseen: str = "",
    by_default: str = "",
) -> None:
    """What will happen, in a few lines; `unseen`: why the data was not opened; `by_default`: why
    this strategy, where nobody named one."""
    from upslope.datasets import overview
    from upslope.frozen import FeatureDataset

    pool = setup.splits.pool
    source = pool.source_shape if isinstance(pool, FeatureDataset) else plan.input_shape
    shape = "x".join(str(n) for n in source)
    names = ", ".join(setup.strategies)
    left_out: dict[str, list[str]] = {}
    for label, why in setup.left_out.items():
        left_out.setdefault(why, []).append(label)
    seeds = ", ".join(str(seed) for seed in config.seeds)
    rows = [
        ("data", f"{config.data.name}: pool {plan.pool:,}, {_count_words(plan.test)}, "
                 f"{format_count(plan.classes, 'class')}, {shape}"),
        *(() if unseen else overview(setup.splits)),
        ("model", _model(config, plan)),
        ("strategies", names),
        *([("", f"none was named: {by_default}")] if by_default else []),
        *(("without", f"{', '.join(labels)}: {why}") for why, labels in left_out.items()),
        ("seeds", seeds),
        ("labels", " ".join(f"{n:,}" for n in plan.budgets)),
        ("candidates", " ".join(f"{n:,}" for n in plan.candidates) or "none"),
        ("steps", f"{sum(plan.steps):,} a run, at most {plan.total_steps:,} in "
                  f"{format_count(plan.runs, 'run')}"
                  f"{f' and {plan.full_data_runs} on all labels' if plan.full_data_runs else ''}"),
        ("folder", str(folder)),
    ]  # fmt: skip
    if unseen:
        rows.insert(1, ("", "sizes as published: the data was not checked, nor were strategies "
                            f"tried on it. {unseen}"))  # fmt: skip
    show_rows(rows)


def _model(config: Config, plan: Plan) -> str:
    """Return the network, and what of it is trained."""
    if not config.freeze:
        return f"{config.model.name}, {plan.parameters:,} parameters"
    features = "x".join(str(n) for n in plan.input_shape)
    return (
        f"{config.model.name}, frozen: {features} features per sample, computed once; a head of "
        f"{plan.parameters:,} parameters is trained on them, and gradient norms are the head's"
    )


def _count_words(count: int) -> str:
    """`test 300`, or what it means that there is none."""
    return f"test {count:,}" if count else "no test set, so that no test figures are told"


def show_estimate(config: Config, costs: Estimate) -> None:
    """Time and memory, and what they rest on."""
    scoring = ", ".join(f"{name} {duration(s)}" for name, s in costs.scoring.items())
    why = "; ".join(f"{name}: {reason}" for name, reason in costs.left_out.items())
    step = f"{duration(costs.step)} a step of {config.training.batch_size}"
    rows = [
        ("time", f"about {duration(costs.total)}, one run after the other"
                 ", at most: runs of a seed share their first model"),
        *([("features", f"{duration(costs.features)} for all samples, once; none for those on the "
                        "disk")] if costs.features else []),
        ("a run", f"training {duration(costs.training)} ({step}), evaluation "
                  f"{duration(costs.evaluation)}"),
        ("scoring", scoring or "not measured"),
        *([("without", why)] if why else []),
        ("memory", f"training {size(costs.weights + costs.activations)} (parameters, gradients and "
                   f"optimiser {size(costs.weights)}, activations of a batch "
                   f"{size(costs.activations)}), scoring up to {size(costs.scoring_memory)}"),
        ("", "without the data, the libraries and what the device sets aside for its kernels"),
        ("measured", f"here, {costs.measured}; data read from memory, float32 activations"),
    ]  # fmt: skip
    show_rows(rows)


def duration(seconds: float) -> str:
    """Two digits, with a unit that suits."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length or (unit == "s" and seconds >= 1):
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(1000 * seconds)} ms"


def size(count: float) -> str:
    """Two digits, in MiB or GiB."""
    unit, length = ("GiB", 2**30) if count >= 2**30 else ("MiB", 2**20)
    return f"{_two_digits(count / length)} {unit}"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def show_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their texts, a line each."""
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        grid.add_row(Text(name, style="dim"), Text(text))
    out.print(grid)
    out.print()


def show_reports(summaries: Sequence[Summary], files: Sequence[Files]) -> None:
    """The report of each data set, led by its name where there are several."""
    for summary, report_files in zip(summaries, files, strict=True):
        if len(summaries) > 1:
            out.print(Text(summary.study.name, style="bold"))
            out.print()
        show_report(summary, report_files)


def show_report(summary: Summary, files: Files) -> None:
    """The final table, what it says, and where everything is."""
    from upslope.report import tables

    names, *lines = zip(
        tables.header(summary), *[tables.cells(summary, row) for row in summary.rows], strict=True
    )
    for columns in _that_fit([names, *lines], out.width):
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for i in columns:
            table.add_column(names[i] if i else "labels", justify="right" if i else "left")
        for line in lines:
            table.add_row(*[_half_dim(line[i]) if i else Text(line[i]) for i in columns])
        out.print(table)
        out.print()
    for row in summary.rows:
        if row.comparison is not None:
            out.print(_verdict(row, str(summary.reference)))
    for note in tables.notes(summary):
        out.print(Text(note, style="dim"))
    out.print()
    for name, path in (("page", files.page), ("curves", files.png), ("table", files.markdown)):
        out.print(Text(f"{name:7} {path}"), soft_wrap=True)


def _that_fit(lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns in groups no wider than `width`, each led by the first column."""
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    groups: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[j] for j in [*groups[-1], i]) > width:
            groups.append([0])
        groups[-1].append(i)
    return groups


def _half_dim(cell: str) -> Text:
    mean, sign, half = cell.partition(" ±")
    return Text.assemble(mean, (f" ±{half}", "dim")) if sign else Text(cell)


def _verdict(row: Any, reference: str) -> Text:
    words, style = {
        "better": (f"better than {reference}", "green"),
        "worse": (f"worse than {reference}", "red"),
        "no difference shown": (f"not shown to differ from {reference}", ""),
        "not tested": (f"not tested against {reference}: one seed", "dim"),
    }[row.comparison.verdict]
    return Text.assemble((row.strategy, "bold"), " ", (words, style))
