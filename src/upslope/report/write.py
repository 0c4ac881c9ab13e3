"""A summary on disk: page, pictures, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.files import disk_errors, to_json, write_text
from upslope.progress import Observer, no_progress
from upslope.report import tables
from upslope.report.document import document
from upslope.report.figures import save_curves
from upslope.report.gallery import gallery
from upslope.report.look import FILE
from upslope.report.page import MOST_BYTES, page
from upslope.report.savings import Costs
from upslope.report.summary import Summary

PAGE = "report.html"
_ROOM = 6_000_000  # bytes of pictures: the rest of the page, in its largest form, takes three more


@dataclass(frozen=True)
class Files:
    """Where everything was written.

    page: the HTML page. png, svg: the curves. markdown, csv, json: the table and the figures.
    """

    page: Path
    png: Path
    svg: Path
    markdown: Path
    csv: Path
    json: Path


def write(
    summary: Summary,
    out: Path | str,
    title: str | None = None,
    *,
    costs: Costs | None = None,
    samples: bool = True,
    observer: Observer = no_progress,
) -> Files:
    """Write `report.html`, `curves.png`, `curves.svg`, `table.md`, `curves.csv`, `results.json`.

    title: by default that of the report whose look the summary has, or "Learning curves".

    summary: the statistics. out: the folder. costs: what labelling is taken to cost. samples:
    whether the page shows pictures or texts of the data set. observer: is told of samples read.

    Returns: the paths of the files.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    out = Path(out)
    title = title or summary.title or "Learning curves"
    with disk_errors(out):
        html = _page([summary], title, costs, observer, samples=samples)
        write_text(out / PAGE, html)
        return _write_tables(summary, out, out / PAGE, title)


def write_sets(
    summaries: Sequence[Summary],
    out: Path | str,
    title: str | None = None,
    *,
    costs: Costs | None = None,
    samples: bool = True,
    observer: Observer = no_progress,
) -> tuple[Files, ...]:
    """Write one page on several data sets, and the other files of each in a folder of its name.

    summaries: one per data set, of distinct names. out, title, costs, samples, observer: as for
    `write`.

    Returns: the paths of the files, one entry per data set, all with the same page.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    if len(summaries) == 1:
        only = write(summaries[0], out, title, costs=costs, samples=samples, observer=observer)
        return (only,)
    out = Path(out)
    title = title or summaries[0].title or "Learning curves"
    with disk_errors(out):
        write_text(out / PAGE, _page(summaries, title, costs, observer, samples=samples))
        slots = {name: slot for summary in summaries for name, slot in summary.slots.items()}
        names = [summary.study.name for summary in summaries]
        write_text(out / FILE, to_json({"title": title, "colours": slots, "sets": names}))
        return tuple(
            _write_tables(summary, out / summary.study.name, out / PAGE, title)
            for summary in summaries
        )


def _write_tables(summary: Summary, out: Path, page_path: Path, title: str) -> Files:
    png, svg = save_curves(summary, out)
    files = Files(
        page=page_path,
        png=png,
        svg=svg,
        markdown=out / "table.md",
        csv=out / "curves.csv",
        json=out / FILE,
    )
    write_text(files.markdown, tables.markdown(summary))
    write_text(files.csv, tables.as_csv(summary))
    write_text(files.json, tables.as_json(summary, title))
    return files


def _page(
    summaries: Sequence[Summary],
    title: str,
    costs: Costs | None,
    observer: Observer,
    *,
    samples: bool,
) -> str:
    """The page, with as many pictures as leave it small enough."""
    noscript = "\n".join(
        f"{summary.study.name}\n\n{tables.markdown(summary)}" for summary in summaries
    )
    room = _ROOM // len(summaries)
    while True:
        galleries: list[Mapping[str, Any] | None] = [
            gallery(summary, room, observer, with_samples=samples) for summary in summaries
        ]
        html = page(document(summaries, title, costs or Costs(), galleries), noscript)
        if len(html) < MOST_BYTES or not samples:
            return html
        room //= 2
        samples = room > 10_000
