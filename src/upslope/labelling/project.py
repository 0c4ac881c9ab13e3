"""A labelling project: a folder that holds every answer, in an event log of its own.

    with Project.create("photos-labels", ProjectSettings("photos", ("cat", "dog"))) as project:
        project.answer("a.jpg", "cat", author="me")      # on the disk when this returns
        project.undo("me")

Folder and files can be read by their owner alone. One process at a time writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from upslope.errors import DataError, RunError
from upslope.files import disk_errors, new_folder, sync_file
from upslope.labelling.answer_events import (
    make_details,
    make_import_events,
    make_label_events,
    make_pass_events,
    make_undo_event,
)
from upslope.labelling.events import fold
from upslope.labelling.outlines import canonical
from upslope.labelling.ranking import Ranking
from upslope.labelling.settings import OUTLINES, ProjectSettings
from upslope.labelling.state import (
    IMPORT_AUTHOR,
    REASONS,
    Answer,
    AnswerLabel,
    LabelState,
    Measurement,
    Pass,
)
from upslope.ledger import Event
from upslope.ledger.log import EventLog, LogFormat, is_begun, open_to_read, read_log
from upslope.tasks.answers import class_label, label_set

FORMAT = LogFormat(
    "labels.sqlite",
    0x5550534C,
    3,
    ("project",),
    fold,
    settle_every=100,  # "UPSL"
)
TOKEN = "token"
"""The file that holds what a browser must show to be let in."""
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes: a project belongs to its user."""
_MEASURE_EVERY = 5  # labels between two measurements that are recorded


class Project:
    """A project open for writing.

    Raises:
        RunError: there is none in the folder, another process has it open, or it is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        _require(self.folder)
        self._log = EventLog(self.folder, FORMAT, {})
        self._first_settings = ProjectSettings.from_record(self._log.meta["project"])

    @classmethod
    def create(cls, folder: Path | str, settings: ProjectSettings) -> Project:
        """Begin a project in a folder that holds none.

        Raises:
            RunError: there is a project already, or the folder holds other files.
            ConfigError: settings with which no project may begin.
        """
        settings.check_new()
        folder = Path(folder)
        if (folder / FORMAT.file).exists():
            raise RunError(
                f"Expected no project in {folder} but there is one. Go on with it: `upslope label "
                f"serve {folder}`; or choose another folder."
            )
        if folder.is_dir() and any(folder.iterdir()):
            raise RunError(
                f"Expected {folder} to be a new or an empty folder but it holds other files. "
                "Choose another folder for the project: --out FOLDER."
            )
        with new_folder(folder) as new:
            new.chmod(PRIVATE_FOLDER)
            for name in (FORMAT.file, "run.lock"):
                (new / name).touch(mode=PRIVATE_FILE)
            _write_token(new)
            EventLog(new, FORMAT, {"project": settings.record()}).close()
        return cls(folder)

    @property
    def settings(self) -> ProjectSettings:
        """Return what is labelled, and how."""
        return _with_data(self._first_settings, self.state)

    @property
    def state(self) -> LabelState:
        """Return where the project stands."""
        return self._log.state

    @property
    def token(self) -> str:
        """What a browser must show to be let in; a new one where its file is gone or empty."""
        path = self.folder / TOKEN
        token = path.read_text(encoding="ascii", errors="replace") if path.is_file() else ""
        return token.strip() or _write_token(self.folder)

    def answer(
        self,
        id_: str,
        answer: str | Sequence[str],
        *,
        author: str,
        seconds: float | None = None,
        note: str = "",
        slice_: str = "",
        why: str = "",
        guess_shown: bool = False,
        content: str = "",
    ) -> None:
        """Record a label; the same again changes nothing, another one corrects the first.

        answer: the name of a class, or the names of the labels that are present. seconds: that it
        took, None where unknown; 0 says no more. content: of the sample, as `content_of` returns
        it; "" where unknown.

        Raises:
            DataError: names that are no classes, or an author who is called as an import.
            RunError: the disk is full.
        """
        check_author(author)
        label = self.label(answer)
        before = self.state.answers.get(id_, {}).get(author)
        if before is not None and before.label == label and before.note == note:
            self._confirm(id_, author, content)
            return
        slice_ = before.slice if before else slice_
        details = make_details(author, seconds, note, slice_, why, guess_shown, content)
        self._log.record(*make_label_events(id_, label, before, details))

    def skip(
        self,
        id_: str,
        reason: str,
        *,
        author: str,
        seconds: float | None = None,
        note: str = "",
        slice_: str = "",
        why: str = "",
        guess_shown: bool = False,
        content: str = "",
    ) -> None:
        """Record that a person gives no label; the sample is not asked of them again.

        Raises:
            DataError: a reason that is none of `REASONS`, or an author who is called as an import.
        """
        check_author(author)
        if reason not in REASONS:
            raise DataError(f"Expected one of {', '.join(REASONS)} but got {reason!r}.")
        before = self.state.answers.get(id_, {}).get(author)
        if before is not None and before.reason == reason and before.note == note:
            self._confirm(id_, author, content)
            return
        slice_ = before.slice if before else slice_
        details = make_details(author, seconds, note, slice_, why, guess_shown, content)
        self._log.record(*make_pass_events(id_, reason, before, details))

    def ask_again(self, reasons: Mapping[str, str]) -> int:
        """Have samples answered once more; return how many are new among those.

        reasons: id -> why, of samples that have an answer.

        Raises:
            DataError: a sample without an answer.
        """
        if missing := [id_ for id_ in reasons if id_ not in self.state.answers]:
            raise DataError(f"Expected samples with an answer to ask again but got {missing[0]!r}.")
        new = {id_: why for id_, why in reasons.items() if id_ not in self.state.again}
        if new:
            self._log.record(Event("asked_again", 0, {"ids": new}))
        return len(new)

    def _confirm(self, id_: str, author: str, content: str) -> None:
        """Record that a sample that was asked again, or replaced, is answered as before."""
        if id_ in self.state.again or content not in ("", self.state.contents.get(id_)):
            body = {"ids": [id_], "author": author} | ({"content": content} if content else {})
            self._log.record(Event("confirmed", 0, body))

    def undo(self, author: str, id_: str | None = None) -> Answer | None:
        """Take back an answer of a person; return it, None where there is none to take back.

        id_: of the sample whose answer it is; None for the newest answer.
        """
        if id_ is None:
            answer = next(iter(self.state.newest_of(author, 1)), None)
        else:
            answer = self.state.answers.get(id_, {}).get(author)
        if answer is not None:
            self._log.record(make_undo_event(answer))
        return answer

    def take_in(
        self,
        labels: Mapping[str, str | Sequence[str] | Pass],
        source: str,
        contents: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Record labels that exist already; return how many were new, and how many answers changed.

        labels: id -> name of a class, names of labels, or that somebody gave none. source: where
        they come from, which is recorded as their author. contents: id -> content of the sample
        (`content_of`), where that is known.

        Raises:
            DataError: names that are no classes; nothing is recorded.
        """
        values = {
            id_: answer if isinstance(answer, Pass) else self.label(answer)
            for id_, answer in labels.items()
        }
        import_ = make_import_events(self.state, values, f"{IMPORT_AUTHOR}{source}", contents or {})
        if import_.events:
            self._log.record(*import_.events)
        return import_.new, import_.corrected

    def label(self, answer: str | Sequence[str]) -> AnswerLabel:
        """Return the label that names stand for. Raises DataError."""
        classes = self.settings.classes
        if self.settings.kind in OUTLINES:
            return canonical(str(answer), self.settings.kind, classes)
        if self.settings.kind == "class":
            if not isinstance(answer, str):
                raise DataError(f"Expected the name of one class but got {answer!r}.")
            return class_label(answer, classes)
        if isinstance(answer, str):
            raise DataError(f"Expected a list of the labels present but got {answer!r}.")
        return label_set(list(answer), classes)

    def measure(self, measurement: Measurement) -> None:
        """Record how many control answers a model agreed with."""
        body: dict[str, Any] = {
            "labels": measurement.labels,
            "correct": measurement.correct,
            "of": measurement.of,
        }
        if measurement.advice is not None:
            body["advice"] = measurement.advice
        self._log.record(Event("measured", 0, body))

    def take_ranking(self, ranking: Ranking, ids: Collection[str]) -> None:
        """Record what a new ranking measured, and which of the samples `ids` are not asked."""
        self._note_unreadable({id_ for id_ in ranking.unreadable if id_ in ids})
        if ranking.copies is not None and ranking.copies != self.state.copies:
            self._log.record(Event("copies", 0, {"ids": dict(ranking.copies)}))
        if not ranking.of:
            return
        measurements = self.state.measurements
        before = measurements[-1] if measurements else Measurement(-_MEASURE_EVERY, 0, 0)
        advice = ranking.advice if ranking.advice != self.state.advice else None
        if advice is not None or ranking.labels >= before.labels + _MEASURE_EVERY:
            self.measure(Measurement(ranking.labels, ranking.correct, ranking.of, advice))

    def _note_unreadable(self, ids: Set[str]) -> None:
        """Record which samples cannot be read, and are not asked: these, and no others any more."""
        before = self.state.unreadable
        if ids != before:
            body = {"ids": sorted(ids - before), "readable": sorted(before - ids)}
            self._log.record(Event("unreadable", 0, body))

    def move(self, data: str) -> None:
        """Record that the data lie elsewhere from here on. data: as in the settings."""
        if data != self.settings.data:
            self._log.record(Event("moved", 0, {"data": data}))

    def close_control(self) -> None:
        """Train on control answers from here on; the accuracy is not measured any more."""
        if not self.state.closed:
            self._log.record(Event("closed", 0, {}))

    def close(self) -> None:
        """Let other processes at the project."""
        self._log.close()

    def __enter__(self) -> Project:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_project(folder: Path | str) -> tuple[ProjectSettings, LabelState]:
    """Read a project, while it is served or after.

    Raises:
        RunError: there is none in the folder, or it is damaged.
    """
    path = _require(Path(folder))
    with open_to_read(path) as db:
        meta, state, _ = read_log(db, path, FORMAT)
    return _with_data(ProjectSettings.from_record(meta["project"]), state), state


def _with_data(settings: ProjectSettings, state: LabelState) -> ProjectSettings:
    """Return the settings with which a project began, but for where its data lie now."""
    return settings if state.data is None else replace(settings, data=state.data)


def _write_token(folder: Path) -> str:
    """Write a new token into the folder of a project, for its owner alone; return it."""
    token = secrets.token_urlsafe(32)
    path = folder / TOKEN
    with disk_errors(path):
        path.unlink(missing_ok=True)
        path.touch(mode=PRIVATE_FILE)
        path.write_text(token, encoding="ascii")
        sync_file(path)
    return token


def check_author(author: str) -> None:
    """Refuse a person's name by which answers would be taken for imported labels.

    Raises:
        DataError: it begins as the authors of imports do.
    """
    if author.startswith(IMPORT_AUTHOR):
        raise DataError(
            f"Expected a name that does not begin with {IMPORT_AUTHOR!r}, as imported labels are "
            f"marked, but got {author!r}. Take another name."
        )


def names_of(label: AnswerLabel, classes: Sequence[str]) -> Any:
    """Return what was answered: the name of a class, names of a set, or the text of outlines."""
    if isinstance(label, str):
        return label
    if isinstance(label, int):
        return classes[label]
    return [name for name, present in zip(classes, label, strict=True) if present]


def _require(folder: Path) -> Path:
    path = folder / FORMAT.file
    if path.is_file() and not is_begun(path):
        raise RunError(
            f"Expected the labels of a project in {path} but it is empty, which no project "
            "that was begun is. Restore it from a copy, or begin anew in another folder."
        )
    if not path.is_file():
        raise RunError(
            f"Expected {folder} to be a labelling project, which holds {FORMAT.file}, but there is "
            f"none. Begin one: upslope label init {folder} --data PHOTOS --classes cat,dog"
        )
    return path
