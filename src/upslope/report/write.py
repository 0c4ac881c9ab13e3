"""A summary on disk: page, pictures, tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upslope.files import disk_errors, write_text
from upslope.report import tables
from upslope.report.figures import save_curves
from upslope.report.page import page
from upslope.report.summary import Summary


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


def write(summary: Summary, out: Path | str, title: str | None = None) -> Files:
    """Write `report.html`, `curves.png`, `curves.svg`, `table.md`, `curves.csv`, `results.json`.

    title: by default that of the report whose look the summary has, or "Learning curves".

    summary: the statistics. out: the folder.

    Returns: the paths of the files.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    out = Path(out)
    title = title or summary.title or "Learning curves"
    with disk_errors(out):
        png, svg = save_curves(summary, out)
        files = Files(
            page=out / "report.html",
            png=png,
            svg=svg,
            markdown=out / "table.md",
            csv=out / "curves.csv",
            json=out / "results.json",
        )
        write_text(files.page, page(summary, title))
        write_text(files.markdown, tables.markdown(summary))
        write_text(files.csv, tables.as_csv(summary))
        write_text(files.json, tables.as_json(summary, title))
    return files
