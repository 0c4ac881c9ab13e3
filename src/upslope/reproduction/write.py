"""An artefact on disk, and the page that leads to all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.batches import resolve_device
from upslope.experiment.environment import environment
from upslope.files import disk_errors, write_atomically
from upslope.reproduction.artefacts import ARTEFACTS
from upslope.reproduction.studies.runner import StudyRunner
from upslope.reproduction.output.protocol_diff import Line, differences
from upslope.reproduction.output.picture import save
from upslope.reproduction.output.formats import latex, long_form, markdown
from upslope.reproduction.output.results import Result

META = "meta.json"
SHADES = (
    "Shades and whiskers in the picture are intervals of the table; where one would be larger than "
    "the picture, it has none."
)


def write(name: str, result: Result, runner: StudyRunner, command: str, seconds: float) -> Path:
    """`table.csv`, `.md`, `.tex`, `figure.png`, `.svg` and `meta.json` in `<out>/<name>/`.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    folder = runner.out / name
    opened = [runner.opened(study) for study in result.studies]
    lines = differences(opened, result.protocol, runner.scale.variant.name, result.seeds)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.csv").write_text(long_form(result.tables), encoding="utf-8")
        (folder / "table.tex").write_text(latex(result.tables), encoding="utf-8")
        (folder / "table.md").write_text(_page(name, result, lines, command), encoding="utf-8")
        save(result.panels, folder)
    meta = {
        "artefact": name,
        "title": ARTEFACTS[name].title,
        "scale": runner.scale.name,
        "variant": runner.scale.variant.name,
        "command": command,
        "seconds": seconds,
        "findings": list(result.findings),
        "environment": environment(resolve_device(opened[0].config.device)),
        "studies": {
            o.study.name: {
                **o.protocol,
                "seeds": list(o.config.seeds)[: result.seeds],
                "commits": _commits(runner, o.study.name),
            }
            for o in opened
        },
        "extra": dict(result.extra),
    }
    text = json.dumps(_without_nan(meta), indent=2, default=str) + "\n"
    write_atomically(folder / META, lambda path: _text(path, text))
    return folder


def index(out: Path, left_out: Mapping[str, str]) -> Path:
    """`README.md` of all artefacts that lie in `out`, of this call or earlier ones.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    found = {name: meta for name in ARTEFACTS if (meta := _meta(out / name / META))}
    lines = ["# Tables and figures of the paper, measured again", ""]
    for said in dict.fromkeys(_made(meta) for meta in found.values()):
        lines += [said, ""]
    lines += ["| artefact | | found |", "| --- | --- | --- |"]
    for name, meta in found.items():
        said = " ".join(meta["findings"])
        lines.append(f"| [{name}]({name}/table.md) | {meta['title']} | {said} |")
    if left_out:
        lines += ["", "Left out:", ""]
        lines += [f"- {name}: {' '.join(why.split())}" for name, why in left_out.items()]
    page = out / "README.md"
    write_atomically(page, lambda path: _text(path, "\n".join([*lines, ""])))
    return page


def _page(name: str, result: Result, lines: Sequence[Line], command: str) -> str:
    """Findings, tables, picture, notes and the two protocols."""
    parts = [f"# {name}: {ARTEFACTS[name].title}", "", f"    {command}", ""]
    parts += [f"{finding}\n" for finding in result.findings]
    parts += ["Lines in italics are the paper's numbers, or chance.", ""]
    parts += [markdown(table) for table in result.tables]
    parts += [f"![{ARTEFACTS[name].title}](figure.png)", ""]
    halves = [half for panel in result.panels for series in panel.series for half in series.half]
    if any(math.isfinite(half) for half in halves):
        parts.append(f"- {SHADES}")
    parts += [f"- {note}" for note in result.notes]
    parts += ["", "| | here | the paper |", "| --- | --- | --- |"]
    parts += [f"| {what} | {ours} | {theirs} |" for what, ours, theirs in lines]
    return "\n".join([*parts, ""])


def _commits(runner: StudyRunner, study: str) -> list[str]:
    """Of the source that its runs were made with; one that was gone on with may have several."""
    made = {run.environment.get("commit") for runs in runner.runs(study).values() for run in runs}
    return sorted(str(commit) for commit in made)


def _made(meta: Mapping[str, Any]) -> str:
    where = meta["environment"]
    packages, written = where["packages"], str(where["commit"])
    commits = sorted({c for study in meta["studies"].values() for c in study.get("commits", ())})
    runs = ", ".join(commits) or written
    return (
        f"Scale {meta['scale']}, variant {meta['variant']}; {where['device_name']}, "
        f"{where['processors']} processors, torch {packages['torch']}, commit {runs}"
        + (f"; tables and pictures written by {written}." if runs != written else ".")
    )


def _meta(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
