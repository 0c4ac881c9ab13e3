"""A command twice at the same time in one folder, and three others that read or tell there."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from tests.faults import annotator
from tests.faults.children import Child, Ended
from tests.faults.commands import Subject, frequent_checkpoints
from tests.faults.kills import finish
from tests.faults.trials import Trial

from upslope.ledger import read_run

_REFUSED = 6
_OTHERS = 3  # commands beside the two
_ERROR = re.compile(r"^error ", re.MULTILINE)

Arguments = list[str]


def run_together(trial: Trial, subject: Subject, seconds: float, folder: Path) -> None:
    """Start a command twice, and others in its folder; each must end as alone, or be refused.

    seconds: that an undisturbed call takes; all start within these. What others write goes into a
    folder beside. In the end the folder is as after an undisturbed call, and sound.
    """
    rng = trial.rng
    subject.command.begins(folder)
    beside = folder.parent / "beside"
    beside.mkdir()
    others = _BESIDE.get(subject.command.name, _none)(subject, folder, beside)
    starts: list[tuple[float, Arguments | None]] = [(0.0, None), (rng.uniform(0, 0.8), None)]
    names = rng.sample(sorted(others), min(_OTHERS, len(others)))
    starts += [(rng.uniform(0, 1), others[name]) for name in names]
    children: list[tuple[Child, Arguments | None]] = []
    begun = time.monotonic()
    for number, (share, arguments) in enumerate(sorted(starts, key=lambda start: start[0])):
        time.sleep(max(0.0, begun + share * seconds - time.monotonic()))
        log = folder.parent / f"race-{number}.log"
        if arguments is None:
            children.append((subject.start(folder, log, frequent_checkpoints), None))
        else:
            children.append((Child(arguments, log), arguments))
    trial.faults += 1
    for child, arguments in children:
        _judge(trial, subject, child.end(), arguments)
    finish(trial, subject, folder)
    if "verify" in others:
        ended = Child(others["verify"], folder.parent / "verify.log").end()
        if ended.code != 0:
            trial.note("different", f"not sound in the end: {ended.output[-800:]}")


def _judge(trial: Trial, subject: Subject, ended: Ended, arguments: Arguments | None) -> None:
    """Note how a command ended; arguments: of one beside, None for the command itself."""
    name = " ".join((arguments or [subject.command.name])[:2])
    done = subject.command.done if arguments is None else 0
    if fault := ended.fault:
        trial.note(fault[0], f"{name}: {fault[1]}")
    elif ended.code == done:
        return
    elif ended.code is not None and ended.code < 0:
        trial.note("crashed", f"{name}: exit code {ended.code}: {ended.output[-800:]}")
    elif "not what was recorded" in ended.output or "damaged" in ended.output:
        trial.note("different", f"{name} calls a sound folder damaged: {ended.output[-800:]}")
    elif len(_ERROR.findall(ended.output)) == 1 and (arguments or ended.code == _REFUSED):
        trial.note("refused")
    else:
        trial.note("different", f"{name}: exit code {ended.code}: {ended.output[-800:]}")


def _none(_subject: Subject, _folder: Path, _beside: Path) -> Mapping[str, Arguments]:
    return {}


def _beside_run(strategy: str) -> Callable[[Subject, Path, Path], Mapping[str, Arguments]]:
    def beside_run(subject: Subject, folder: Path, beside: Path) -> Mapping[str, Arguments]:
        out = folder / "out"
        run = out / strategy / "seed-0"
        reference = subject.reference / "out" / strategy / "seed-0"
        labels = beside / "labels.csv"
        _write_labels(labels, reference)
        return {
            "status": ["status", str(out)],
            "report": ["report", str(out), "--out", str(beside / "report")],
            "verify": ["verify", str(out)],
            "tell": ["tell", str(run), str(labels)],
            "predict": ["predict", str(run), "--out", str(beside / "predictions.csv")],
            "score": ["score", str(run), "--scores", "margin", "--out", str(beside / "s.csv")],
            "select": ["select", str(run), "--budget", "5", "--out", str(beside / "ask.csv")],
        }

    return beside_run


def _beside_results(subject: Subject, folder: Path, beside: Path) -> Mapping[str, Arguments]:
    out = subject.finished / "out"
    return {
        "status": ["status", str(out)],
        "verify": ["verify", str(out)],
        "predict": ["predict", str(out), "--out", str(beside / "predictions.csv")],
        "report": ["report", str(out), "--out", str(beside / "report")],
    }


def _beside_studies(_subject: Subject, folder: Path, _beside: Path) -> Mapping[str, Arguments]:
    out = str(folder / "out")
    return {"status": ["status", out], "verify": ["verify", out]}


def _beside_project(_subject: Subject, folder: Path, beside: Path) -> Mapping[str, Arguments]:
    project = str(folder / annotator.PROJECT)
    answers = beside / "answers.csv"
    answers.write_text("id,label\nrow-00,even\n", encoding="utf-8")
    return {
        "status": ["label", "status", project],
        "export": ["label", "export", project, str(beside / "labels.csv")],
        "folder": ["label", "export", project, str(beside / "labels.parquet")],
        "import": ["label", "import", project, str(answers)],
    }


_BESIDE: Mapping[str, Callable[[Subject, Path, Path], Mapping[str, Arguments]]] = {
    "run": _beside_run("margin"),
    "features": _beside_run("badge"),
    "compare": _beside_run("random"),
    "score": _beside_results,
    "reproduce": _beside_studies,
    "label": _beside_project,
}
"""name of a command -> (it, its folder, a folder for results) -> what may run beside it."""


def _write_labels(path: Path, run: Path) -> None:
    """Write the labels that a run was given, which others may tell it again."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label"])
        writer.writerows(_labels(run).items())


@cache
def _labels(run: Path) -> Mapping[str, int]:
    result = read_run(run)
    return {id_: result.labels[id_] for id_ in result.initial}
