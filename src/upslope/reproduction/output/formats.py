"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from upslope.reproduction.output.results import Row, Table, Value

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


def cell(value: Value | None, decimals: int) -> str:
    """`12.3 ±0.4`, without the half where there is none; a dash where there is nothing."""
    if value is None or math.isnan(value.mean):
        return "–"
    if value.count:
        return f"{int(value.mean):,}"
    half = "" if math.isnan(value.half) else f" ±{_number(value.half, decimals)}"
    return f"{_number(value.mean, decimals)}{half}"


def _number(x: float, decimals: int) -> str:
    """With so many decimals; in powers of ten where they would all be zero."""
    if x and abs(x) < 0.5 * 10**-decimals:
        return f"{x:.1e}"
    return f"{x:,.{decimals}f}"


def markdown(table: Table) -> str:
    """With its title over it."""
    lines = [f"**{table.title}**", ""]
    lines.append(f"| {' | '.join((table.corner, *table.columns))} |")
    lines.append(f"| --- |{' ---: |' * len(table.columns)}")
    for row in table.rows:
        name = f"*{row.name}*" if row.source != "ours" else row.name
        lines.append(f"| {' | '.join((name, *_cells(table, row)))} |")
    return "\n".join([*lines, ""])


def long_form(tables: Sequence[Table]) -> str:
    """CSV, one line a number, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "source", "column", "mean", "half_interval", "seeds"])
    for table in tables:
        for row in table.rows:
            for column, value in zip(table.columns, row.values, strict=True):
                if value is None:
                    continue
                half = "" if math.isnan(value.half) else repr(value.half)
                seeds = value.seeds if row.source == "ours" else ""
                writer.writerow(
                    [table.title, row.label, row.source, column, repr(value.mean), half, seeds]
                )
    return buffer.getvalue()


def latex(tables: Sequence[Table]) -> str:
    """Tables for the package booktabs; lines of the paper's and of chance in italics."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    def line(cells: Sequence[str], italic: bool = False) -> str:
        shown = [escaped(c) for c in cells]
        if italic:
            shown = [rf"\textit{{{c}}}" for c in shown]
        return " & ".join(shown) + r" \\"

    body = [line((row.name, *_cells(table, row)), row.source != "ours") for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            line((table.corner, *table.columns)),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{escaped(table.title)}.}}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(_LATEX.get(c, c) for c in text)


def _cells(table: Table, row: Row) -> list[str]:
    return [cell(value, table.decimals) for value in row.values]
