"""Artefacts on disk, and the page that leads to all of them; `run` calls it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.batches import resolve_device
from upslope.experiment.environment import environment
from upslope.files import disk_errors, from_json, make_folder, to_json, write_text
from upslope.report.text_tables import markdown_table
from upslope.reproduction.artefacts import ARTEFACTS
from upslope.reproduction.output.formats import to_csv, to_latex, to_markdown
from upslope.reproduction.output.picture import save_picture
from upslope.reproduction.output.protocol_diff import Line, compare_protocols
from upslope.reproduction.output.results import Result
from upslope.reproduction.studies.runner import StudyRunner

META = "meta.json"
SHADES = (
    "Shades and whiskers in the picture are intervals of the table; where one would be larger than "
    "the picture, it has none."
)


def write_artefact(
    name: str, result: Result, runner: StudyRunner, command: str, seconds: float
) -> Path:
    """Write `table.csv`, `.md`, `.tex`, `figure.png`, `.svg` and `meta.json` into `<out>/<name>/`.

    name: of the artefact. result: its numbers. runner: whose studies it read. command: what to type
    to get the same. seconds: how long it took.

    Returns: the folder.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    folder = runner.out / name
    studies = [runner.open(name) for name in result.studies]
    lines = compare_protocols(studies, result.protocol, runner.scale.variant.name, result.seeds)
    with disk_errors(folder):
        make_folder(folder)
        write_text(folder / "table.csv", to_csv(result.tables))
        write_text(folder / "table.tex", to_latex(result.tables))
        write_text(folder / "table.md", _page(name, result, lines, command))
        save_picture(result.panels, folder)
    meta = {
        "artefact": name,
        "title": ARTEFACTS[name].title,
        "scale": runner.scale.name,
        # The key under which earlier calls recorded it, and with which the index reads them.
        "reading": runner.scale.variant.name,
        "command": command,
        "seconds": seconds,
        "findings": list(result.findings),
        "environment": environment(resolve_device(studies[0].config.device)),
        "studies": {
            study_opened.study.name: {
                **study_opened.protocol,
                "seeds": list(study_opened.config.seeds)[: result.seeds],
                "commits": _commits(runner, study_opened.study.name),
            }
            for study_opened in studies
        },
        "extra": dict(result.extra),
    }
    write_text(folder / META, to_json(meta))
    return folder


def write_index(out: Path, left_out: Mapping[str, str]) -> Path:
    """Write `README.md`, which lists all artefacts that lie in `out`, of this call or earlier ones.

    left_out: artefact -> why it could not be made.

    Returns: the path of the page.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    metas = {name: meta for name in ARTEFACTS if (meta := _meta(out / name / META))}
    lines = ["# Tables and figures of the paper, measured again", ""]
    for said in dict.fromkeys(_made_words(meta) for meta in metas.values()):
        lines += [said, ""]
    rows = [
        (f"[{name}]({name}/table.md)", meta["title"], " ".join(meta["findings"]))
        for name, meta in metas.items()
    ]
    lines.append(markdown_table(("artefact", "", "found"), rows, text_columns=3))
    if left_out:
        lines += ["", "Left out:", ""]
        lines += [f"- {name}: {' '.join(why.split())}" for name, why in left_out.items()]
    page = out / "README.md"
    write_text(page, "\n".join([*lines, ""]))
    return page


def _page(name: str, result: Result, lines: Sequence[Line], command: str) -> str:
    """Findings, tables, picture, notes and the two protocols."""
    parts = [f"# {name}: {ARTEFACTS[name].title}", "", f"    {command}", ""]
    parts += [f"{finding}\n" for finding in result.findings]
    parts += ["Lines in italics are the paper's numbers, or chance.", ""]
    parts += [to_markdown(table) for table in result.tables]
    parts += [f"![{ARTEFACTS[name].title}](figure.png)", ""]
    halves = [half for panel in result.panels for series in panel.series for half in series.half]
    if any(math.isfinite(half) for half in halves):
        parts.append(f"- {SHADES}")
    parts += [f"- {note}" for note in result.notes]
    parts += ["", markdown_table(("", "here", "the paper"), lines, text_columns=3)]
    return "\n".join([*parts, ""])


def _commits(runner: StudyRunner, study: str) -> list[str]:
    """Return the commits of the source that a study's runs were made with: several, where one went
    on.
    """
    commits = {
        run.environment.get("commit") for runs in runner.runs(study).values() for run in runs
    }
    return sorted(str(commit) for commit in commits)


def _made_words(meta: Mapping[str, Any]) -> str:
    where = meta["environment"]
    packages, commit = where["packages"], str(where["commit"])
    commits = sorted({c for study in meta["studies"].values() for c in study.get("commits", ())})
    runs = ", ".join(commits) or commit
    return (
        f"Scale {meta['scale']}, reading {meta['reading']}; {where['device_name']}, "
        f"{where['processors']} processors, torch {packages['torch']}, commit {runs}"
        + (f"; tables and pictures written by {commit}." if runs != commit else ".")
    )


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return meta
