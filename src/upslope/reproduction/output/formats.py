"""Tables of an artefact as Markdown, CSV and LaTeX text; `write` calls it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from upslope.evaluation.curves import ROUNDING
from upslope.files import csv_text
from upslope.report.text_tables import DASH, markdown_table
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


def format_value(value: Value | None, decimals: int) -> str:
    """Return `12.3 ±0.4`; without the half where there is none, or none but rounding, as of seeds
    of one value; a dash for no value.

    decimals: of both numbers; a count has none.
    """
    if value is None or math.isnan(value.mean):
        return DASH
    if value.count:
        return f"{int(value.mean):,}"
    has_half = value.half > ROUNDING * abs(value.mean)
    half = f" ±{_number(value.half, decimals)}" if has_half else ""
    return f"{_number(value.mean, decimals)}{half}"


def _number(x: float, decimals: int) -> str:
    """Write a number with so many decimals, or in powers of ten where they would all be zero."""
    if x and abs(x) < 0.5 * 10**-decimals:
        return f"{x:.1e}"
    return f"{x:,.{decimals}f}"


def to_markdown(table: Table) -> str:
    """Return a table as Markdown under its title; names of rows that are not ours in italics."""
    rows = [
        (f"*{row.name}*" if row.source != "ours" else row.name, *_cells(table, row))
        for row in table.rows
    ]
    text = markdown_table((table.corner, *table.columns), rows)
    return f"**{table.title}**\n\n{text}\n"


def to_csv(tables: Sequence[Table]) -> str:
    """Return tables as one CSV table in long form: one line per number, at full precision."""
    lines = [
        (
            table.title,
            row.label,
            row.source,
            column,
            repr(value.mean),
            "" if math.isnan(value.half) else repr(value.half),
            value.seeds if row.source == "ours" else "",
        )
        for table in tables
        for row in table.rows
        for column, value in zip(table.columns, row.values, strict=True)
        if value is not None
    ]
    head = ("table", "row", "source", "column", "mean", "half_interval", "seeds")
    return csv_text(head, lines)


def to_latex(tables: Sequence[Table]) -> str:
    """Return tables for LaTeX's package booktabs; rows that are not ours in italics."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    def line(cells: Sequence[str], italic: bool = False) -> str:
        latex_cells = [escape_latex(c) for c in cells]
        if italic:
            latex_cells = [rf"\textit{{{c}}}" for c in latex_cells]
        return " & ".join(latex_cells) + r" \\"

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
            rf"\caption{{{escape_latex(table.title)}.}}",
            r"\end{table}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Return text in which the characters that LaTeX gives a meaning are escaped."""
    return "".join(_LATEX.get(c, c) for c in text)


def _cells(table: Table, row: Row) -> list[str]:
    return [format_value(value, table.decimals) for value in row.values]
