"""The commands that faults are made in, on tiny digits, and what they must leave behind.

A command works in a folder of its own; what it needs besides, a finished run, lies in another and
is only read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.faults import annotator
from tests.faults.children import Child, quick_workers

from upslope.errors import UpslopeError
from upslope.labelling.project import FORMAT, TOKEN
from upslope.labelling.session import QUESTIONS_FILE
from upslope.ledger import read_run

_TINY = {
    "data.limit": 120,
    "data.test_limit": 40,
    "model.width": 4,
    "training.epochs": 3,
    "training.batch_size": 16,
    "experiment.initial": 20,
    "experiment.budget": 10,
    "experiment.cycles": 3,
}
CHECKPOINTS = 0.02
"""Seconds between two checkpoints of a training, so that faults meet them too."""
_VANISHING = re.compile(r"seconds|minutes|commit|command|time|content_sha256", re.IGNORECASE)
"""What differs between two undisturbed runs: how long something took, where it was typed, and
digests of these."""
_CELLS = re.compile(r"(?<=[| >])\d+\.\d(?=[ <])")
"""Numbers of one decimal in tables: seconds, and percents that are in JSON and CSV as well."""
_CACHES = ".first-models"
"""What may be missing in the end: it only saves time."""
LEDGER, LOCK = "ledger.sqlite", "run.lock"


@dataclass(frozen=True)
class Command:
    """A command. arguments: (its folder, the finished run) -> what is typed after `upslope`.

    workers: it starts processes. begins: what its folder holds before. before: called with its
    folder in its process first. lost: (folder, what it printed) -> what it had promised to keep and
    has not; "" where all is there. done: the exit code of an undisturbed call.
    """

    name: str
    arguments: Callable[[Path, Path], list[str]]
    workers: bool = False
    begins: Callable[[Path], None] = lambda _: None
    before: Callable[[Path], None] = lambda _: None
    lost: Callable[[Path, str], str] = lambda _folder, _output: ""
    done: int = 0


def _options(**changes: object) -> list[str]:
    values = {**_TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    if "model.name" in values:
        del values["model.width"]  # of the network of the others
    return [word for key, value in values.items() for word in ("-s", f"{key}={value}")]


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "run",
            lambda folder, _: [
                "run", "--strategy", "margin", "--seeds", "[0]", "--out", str(folder / "out"),
                *_options(),
            ],
        ),
        Command(
            "compare",
            lambda folder, _: [
                "compare", "--strategies", "random,ll4al", "--seeds", "2", "--workers", "2",
                "--out", str(folder / "out"), *_options(experiment__keep_models="all"),
            ],
            workers=True,
        ),
        Command(
            "score",
            lambda folder, run: [
                "score", str(run / "out" / "margin" / "seed-0"), "--scores",
                "entropy-gradnorm,margin", "--out", str(folder / "out" / "scores.parquet"),
            ],
        ),
        Command(
            "reproduce",
            lambda folder, _: [
                "reproduce", "table8", "--scale", "smoke", "--out", str(folder / "out"),
                "-s", "training.epochs=1", "--seeds", "1",
            ],
        ),
        Command(
            "features",
            lambda folder, _: [
                "run", "--strategy", "badge", "--seeds", "[0]", "--out", str(folder / "out"),
                *_options(model__name="tests.faults.frozen_network:make", model__freeze=True),
            ],
            before=lambda folder: small_blocks(folder),
        ),
        Command(
            "label",
            lambda folder, _: [
                "label", "serve", str(folder / annotator.PROJECT), "--no-browser", "--port", "0",
                "--name", "somebody",
            ],
            begins=lambda folder: begin_project(folder),
            before=annotator.begin,
            lost=annotator.lost_answers,
            done=130,
        ),
    )
}  # fmt: skip
"""name -> command, as tables of results name them."""


def frequent_checkpoints() -> None:
    """Make this process write checkpoints of trainings as often as trials want them."""
    from upslope.training import loop

    loop.CHECKPOINT_SECONDS = CHECKPOINTS


def small_blocks(folder: Path) -> None:
    """Keep features in this folder, in blocks of some samples in place of hundreds."""
    from importlib import import_module

    import_module("upslope.frozen.freeze").BLOCK = 24
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")


def begin_project(folder: Path) -> None:
    """Make a labelling project in a folder."""
    from upslope.labelling.project import Project
    from upslope.labelling.settings import ProjectSettings

    rows = folder / "rows.csv"
    annotator.write_rows(rows)
    with Project.create(folder / annotator.PROJECT, ProjectSettings(str(rows), annotator.CLASSES)):
        pass


class Subject:
    """A command with what an undisturbed call of it leaves in `reference`: `expected`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.command = COMMANDS[name]
        self.finished = finished_run(folder)
        self.reference = folder / f"reference-{name}"
        if not self.reference.exists():
            self.reference.mkdir()
            self.command.begins(self.reference)
            first = self.start(self.reference, folder / f"reference-{name}.log").end()
            if first.code != self.command.done:
                shutil.rmtree(self.reference)  # else the next trial would take it for whole
                raise RuntimeError(f"{name} fails undisturbed: {first.output}")
        self.expected = fingerprints(self.reference)

    def start(
        self,
        folder: Path,
        log: Path,
        before: Callable[[], None] = lambda: None,
        *,
        python: bool = False,
    ) -> Child:
        """Start the command in a folder. log: the file of its output; before: called in its process
        before anything else; python: its workers are new Pythons, not forks."""

        def prepare() -> None:
            if not python:
                quick_workers()
            self.command.before(folder)
            before()

        return Child(self.command.arguments(folder, self.finished), log, prepare)

    def differences(self, folder: Path) -> dict[str, list[str]]:
        """Return outcome -> the files of a finished folder that are "different" or "left over"."""
        there = fingerprints(folder)
        changed = [
            name
            for name, value in self.expected.items()
            if there.get(name, value if _CACHES in name else "missing") != value
        ]
        more = sorted(there.keys() - self.expected.keys())
        return {k: v for k, v in {"different": changed, "left over": more}.items() if v}


@cache
def finished_run(folder: Path) -> Path:
    """Return the folder of a finished run that other commands read, made at the first call."""
    made = folder / "finished"
    if not made.exists():
        made.mkdir()
        ended = Child(COMMANDS["run"].arguments(made, made), folder / "finished.log").end()
        if ended.code != 0:
            shutil.rmtree(made)
            raise RuntimeError(f"a run fails undisturbed: {ended.output}")
    return made


def fingerprints(folder: Path) -> dict[str, str]:
    """Return what must be the same after every fault: a digest of each file, by its name.

    Of ledgers, it is that of what they record, but for times and environments; of JSON and
    Markdown, all but times, commands and commits; of a lock, that it is there.
    """
    return {
        str(path.relative_to(folder)): _fingerprint(path, str(folder).encode())
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def what_counts(run: Path) -> object:
    """Return everything that a run has recorded but the seconds."""
    result = read_run(run)
    cycles = [
        (c.n_labelled, c.metrics, c.train_metrics, c.train_loss, c.model_sha256, c.asked, c.scores)
        for c in result.cycles
    ]
    return [result.initial, sorted(result.labels.items()), result.pending, result.finished, cycles]


def _fingerprint(path: Path, folder: bytes) -> str:
    if path.name in (LOCK, TOKEN, QUESTIONS_FILE):
        return "there"
    if path.name == FORMAT.file:
        try:
            return repr(annotator.answers(path.parent))
        except UpslopeError as error:
            return f"unreadable: {error}"
    if path.name == LEDGER:
        try:
            return _sha256(repr(what_counts(path.parent)).encode())
        except UpslopeError as error:
            return f"unreadable: {error}"
    data = path.read_bytes().replace(folder, b"FOLDER")
    if path.suffix == ".json":
        try:
            return _sha256(json.dumps(_timeless(json.loads(data))).encode())
        except ValueError:
            return "no JSON"
    if path.suffix in (".md", ".html"):
        lines = data.decode().splitlines()
        text = "\n".join(line for line in lines if not _VANISHING.search(line))
        return _sha256(_CELLS.sub("", text).encode())
    return _sha256(data)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not _VANISHING.search(k)}
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
