"""One HTML page that holds everything: no script, no request, light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from upslope.counts import format_count
from upslope.evaluation import INTERVAL_SEEDS, smallest_sign_flip_p
from upslope.report import tables
from upslope.report.figures import bounds, inline_svg, looks, variable_of
from upslope.report.summary import LEVEL, Row, Summary


def page(summary: Summary, title: str = "Learning curves") -> str:
    """Return the whole HTML document."""
    css = files("upslope.report").joinpath("page.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_lead(summary))}</p>',
        _answer(summary),
        _figure(
            summary,
            "curves",
            f"Learning curves of {_names(summary)}",
            f"Lines: mean over seeds.{_spread(summary)}"
            + (" Dashed: trained on every label of the pool." if summary.study.ceiling else ""),
        ),
        *_difference(summary),
        "<h2>Table</h2>",
        _table(tables.header(summary), [tables.cells(summary, row) for row in summary.rows]),
        *[f'<p class="note">{escape(note)}</p>' for note in tables.notes(summary)],
        *_tests(summary),
        "<h2>Protocol</h2>",
        _protocol(summary),
        "<h2>Made with</h2>",
        _definitions(summary.study.environment),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{css}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _lead(summary: Summary) -> str:
    seeds = sorted({len(row.seeds) for row in summary.rows})
    how_many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    first, last = summary.budgets[0], summary.budgets[-1]
    pool = summary.study.pool_size
    of_pool = f" of {pool:,}" if pool else ""
    return (
        f"{format_count(len(summary.rows), 'strategy')}, {how_many} paired "
        f"seed{'s' if how_many != '1' else ''}, {format_count(len(summary.budgets), 'budget')} "
        f"from {first:,} to {format_count(last, 'label')}{of_pool}."
    )


def _answer(summary: Summary) -> str:
    """One sentence a strategy: better, worse or not shown to differ."""
    if summary.reference is None:
        return ""
    items = []
    for row, (colour, _) in zip(summary.rows, looks(summary), strict=True):
        if row.comparison is None:
            continue
        variable = f"var({variable_of(colour)})"
        items.append(f'<li style="--c: {variable}">{_sentence(summary, row)}</li>')
    return f'<ul class="answer">{"".join(items)}</ul>' if items else ""


def _sentence(summary: Summary, row: Row) -> str:
    comparison, reference = row.comparison, escape(str(summary.reference))
    assert comparison is not None
    words = {
        "better": f'<span class="verdict-better">better</span> than {reference}',
        "worse": f'<span class="verdict-worse">worse</span> than {reference}',
        "no difference shown": f"not shown to differ from {reference}",
        "not tested": f"not tested against {reference} (one seed)",
    }[comparison.verdict]
    saved = ""
    if not math.isnan(comparison.labels_needed) and comparison.labels_needed < summary.budgets[-1]:
        share = 1 - comparison.labels_needed / summary.budgets[-1]
        saved = (
            f"; its mean curve reaches {reference}'s last figure with "
            f"{comparison.labels_needed:,.0f} labels, {100 * share:.0f}% fewer"
        )
    return (
        f"<strong>{escape(row.strategy)}</strong> {words}: {tables.difference(comparison)} points "
        f"of area{_p(comparison.p_adjusted)}{saved}."
    )


def _p(p: float) -> str:
    if math.isnan(p):
        return ""
    shown = tables.p_value(p)
    sign, number = ("<", shown[1:]) if shown.startswith("<") else ("=", shown)
    return escape(f", p\N{NO-BREAK SPACE}{sign}\N{NO-BREAK SPACE}{number}")


def _difference(summary: Summary) -> list[str]:
    if not any(row.comparison for row in summary.rows):
        return []
    fewest = min(len(row.comparison.seeds) for row in summary.rows if row.comparison)
    bars = (
        " Bars: 95% interval of the mean difference, not corrected for the number of comparisons."
        if fewest >= INTERVAL_SEEDS
        else " Faint points: the seeds; there are too few for an interval."
        if fewest > 1
        else ""
    )
    return [
        f"<h2>Difference to {escape(str(summary.reference))}, seed by seed</h2>",
        _figure(
            summary,
            "differences",
            f"Paired differences to {escape(str(summary.reference))}",
            "Runs of one seed share the initial set, the initial weights and the data order, so "
            f"the difference is taken within each seed.{bars}",
        ),
    ]


def _tests(summary: Summary) -> list[str]:
    compared = [(row, row.comparison) for row in summary.rows if row.comparison is not None]
    if not compared:
        return []
    head = ["strategy", "difference of area", "seeds better", "p, paired t", "p, Holm"]
    rows = [
        [
            row.strategy,
            tables.difference(comparison),
            f"{comparison.area.wins} of {len(comparison.seeds)}",
            tables.p_value(comparison.area.p_t),
            tables.p_value(comparison.p_adjusted),
            tables.p_value(comparison.area.p_sign_flip),
            comparison.verdict,
        ]
        for row, comparison in compared
    ]
    floor = smallest_sign_flip_p(min(len(comparison.seeds) for _, comparison in compared))
    caveat = (
        f"The verdict is by Holm's p below {LEVEL}. The sign-flip test assumes nothing about the "
        f"shape of the differences, but with these seeds its p cannot fall below {floor:.2g}"
        + (", so it cannot confirm any difference at that level." if floor >= LEVEL else ".")
    )
    return [
        "<h2>Paired tests</h2>",
        _table([*head, "p, sign flip", "verdict"], rows),
        f'<p class="note">{escape(caveat)} A difference that is not shown is not a difference '
        "shown to be zero.</p>",
    ]


def _protocol(summary: Summary) -> str:
    study = summary.study
    if not study.config:
        return '<p class="note">The runs carry no configuration.</p>'
    text = yaml.safe_dump(dict(study.config), sort_keys=False, allow_unicode=True)
    return (
        "<p>The test set is read by evaluation alone; no strategy and no choice of a checkpoint "
        "sees it.</p>"
        f"<details open><summary>Resolved configuration</summary><pre>{escape(text)}</pre>"
        "</details>"
    )


def _spread(summary: Summary) -> str:
    """One sentence on what shows how seeds differ."""
    if summary.seeds >= INTERVAL_SEEDS:
        low, _ = bounds(summary.study.metric)
        ends = "at 0 and 100%" if low == 0 else "at 100%"
        return f" Bands: 95% confidence interval of the mean (Student t), cut {ends}."
    if summary.seeds > 1:
        return " Faint points: the seeds; there are too few for an interval."
    return ""


def _figure(summary: Summary, kind: str, description: str, caption: str) -> str:
    """The picture twice, for wide and for narrow screens; style sheets show one of them."""
    wide = inline_svg(summary, kind, description)
    narrow = inline_svg(summary, kind, description, narrow=True)
    return (
        f'<figure><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{_quiet_half(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="hint {_scrolls(head, rows)}">Scroll sideways for all columns &rarr;</div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table, may scroll sideways">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


_WIDTHS = (400, 550, 700, 850, 1000, 1150)


def _scrolls(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The class that names the widest screen on which a table has to scroll, by its letters."""
    letters = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    width = sum(7 * n + 13 for n in letters) + 48  # pixels: a letter, a cell's and a page's edges
    return f"to-{next((w for w in _WIDTHS if w >= width), 'all')}"


def _quiet_half(cell: str) -> str:
    """`95.1 ±0.8` with the half-width in small, soft letters."""
    mean, sign, half = escape(cell).partition(" ±")
    return f"{mean} <small>±{half}</small>" if sign else mean


def _definitions(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(_flat(value))}</dd>"
        for key, value in values.items()
    )
    return f"<dl>{items}</dl>" if items else '<p class="note">Not recorded.</p>'


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(v) for v in value)
    return "not known" if value is None else str(value)


def _names(summary: Summary) -> str:
    return ", ".join(escape(row.strategy) for row in summary.rows)
