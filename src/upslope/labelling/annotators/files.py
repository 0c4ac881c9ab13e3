"""A CSV file and a folder as an annotation tool: for who would rather use a spreadsheet or a file
manager.

    FOLDER/to-label.csv     one row per sample: write the answer into the column `label`
    FOLDER/images/          copies of the images, named by their rank: or move one into a folder
                            FOLDER/images/<class>/ instead

Cells of the column `label`: the name of a class; names with semicolons between, or `none`, for a
set of labels; an outline as JSON (`outlines`); `skip` or `cannot tell`. Columns `author`, `seconds`
and `note` may be filled in. People's columns and rows of their own stay as they are. A column of
the data that is called as one of the sheet's own is called `data: NAME` there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.errors import DataError
from upslope.experiment.sheet_rows import split_rows
from upslope.files import (
    csv_text,
    disk_errors,
    make_folder,
    plain_cell,
    write_atomically,
    write_text,
)
from upslope.labelling.annotators.base import AnnotationTask, PulledAnswer, PushCount
from upslope.labelling.settings import AnswerKind
from upslope.labelling.sheet_text import NOT_RECORDED, read_sheet_text
from upslope.labelling.state import REASONS

SHEET, IMAGES = "to-label.csv", "images"
COLUMNS = ("id", "file", "rank", "score", "why", "label", "author", "seconds", "note")
_NO_LABEL = "none"
_MARK = "\ufeff"


@dataclass(frozen=True)
class FilesAnnotator:
    """folder: where sheet and images lie. author: who answers where the sheet names nobody."""

    folder: Path
    kind: AnswerKind
    classes: Sequence[str]
    author: str
    name: str = "files"

    def pushed(self) -> Collection[str]:
        """Return the ids of the rows of the sheet."""
        return {row["id"] for row in self._rows()[1]}

    def push(self, tasks: Sequence[AnnotationTask]) -> PushCount:
        """Append rows to the sheet, and copy images beside it; the rows there stay as they are.

        Raises:
            DataError: a sheet that is no such file any more.
            RunError: a disk that is full.
        """
        columns, rows = self._rows()
        there = {row["id"] for row in rows}
        new = [task for task in tasks if task.id not in there]
        with disk_errors(self.folder):
            make_folder(self.folder / IMAGES)
        for number, task in enumerate(new, self._first_free_number(rows)):
            cells = {f"data: {n}" if n in COLUMNS else n: cell for n, cell in task.cells.items()}
            row = dict.fromkeys(columns, "") | cells
            row |= {"id": task.id, "rank": str(task.rank), "why": task.why}
            row["score"] = "" if task.score is None else f"{task.score:.6g}"
            if task.kind == "image":
                row["file"] = self._copy(task, number)
            columns += [name for name in cells if name not in columns]
            rows.append(row)
        if new:
            lines = [[row.get(name, "") for name in columns] for row in rows]
            text = csv_text(columns, lines)
            # Excel takes a file without the mark for one in the encoding of the machine.
            write_text(self.folder / SHEET, text if text.isascii() else f"{_MARK}{text}")
        return PushCount(len(new), len(tasks) - len(new))

    def pull(self) -> Sequence[PulledAnswer]:
        """Return the answers in the sheet and in the folders of classes.

        Raises:
            DataError: a sample with two answers of one person, cells that are none, or files in
                folders of classes that no row of the sheet has.
        """
        rows = self._rows()[1]
        images_in_folders = self._sorted_images()
        files = {row["file"] for row in rows}
        if strangers := [
            f"{folder}/{n}" for n, folder in images_in_folders.items() if n not in files
        ]:
            raise DataError(
                f"Expected images in {self.folder / IMAGES} under the names in the column `file` "
                f"of {SHEET} but {len(strangers)} have others, first {strangers[0]!r}. Name them "
                "as they were, or move them elsewhere; nothing was recorded."
            )
        by_sample: dict[tuple[str, str], tuple[object, str]] = {}
        time = (self.folder / SHEET).stat().st_mtime if rows else 0.0
        answers = []
        for row in rows:
            text = row["label"].strip()
            folder = images_in_folders.get(row["file"])
            if folder is not None and text and text != folder:
                raise DataError(
                    f"Expected one answer for {row['id']!r} but {SHEET} says {text!r} and the "
                    f"image lies in {IMAGES}/{folder}/. Mend one of them; nothing was recorded."
                )
            text = text or folder or ""
            if not text:
                continue
            author = row["author"].strip() or self.author
            seconds = _seconds(row["seconds"], row["id"])
            reason = text.lower() if text.lower() in REASONS and text not in self.classes else ""
            answer = None if reason else self._answer(text)
            if by_sample.setdefault((row["id"], author), (answer, reason)) != (answer, reason):
                raise DataError(
                    f"Expected one answer for {row['id']!r} by {author} in {SHEET} but two rows "
                    "differ. Mend one of them, or fill in who gave which in the column `author`; "
                    "nothing was recorded."
                )
            answers.append(
                PulledAnswer(row["id"], author, answer, reason, seconds, time, row["note"].strip())
            )
        return answers

    def _answer(self, text: str) -> str | list[str]:
        if self.kind != "labels":
            return text
        return [] if text == _NO_LABEL else [name.strip() for name in text.split(";")]

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of the sheet, the usual columns without a sheet."""
        path = self.folder / SHEET
        if not path.is_file():
            return list(COLUMNS), []
        text = read_sheet_text(path)
        columns, rows = split_rows(path, text, ("id", "file", "label"), NOT_RECORDED)
        columns = list(map(plain_cell, columns))
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise DataError(
                f"Expected one column {twice[0]} in {path} but got {columns.count(twice[0])}. "
                "Rename yours; nothing was recorded."
            )
        if missing := [name for name in ("id", "file", "label") if name not in columns]:
            raise DataError(
                f"Expected the columns {', '.join(COLUMNS)} in {path} but {', '.join(missing)} "
                "is missing. Put the first line back; nothing was recorded."
            )
        empty_row = dict.fromkeys((*COLUMNS, *columns), "")
        return columns, [
            empty_row | dict(zip(columns, map(plain_cell, cells), strict=False))
            for _, cells in rows
        ]

    def _sorted_images(self) -> dict[str, str]:
        """File name -> class, of the images that were moved into a folder of a class."""
        folders: dict[str, str] = {}
        images = self.folder / IMAGES
        if not images.is_dir():
            return folders
        for top in sorted(path for path in images.iterdir() if path.is_dir()):
            if top.name.startswith(".") and top.name not in self.classes:
                continue  # of an operating system or a file manager
            if top.name not in self.classes or self.kind != "class":
                raise DataError(
                    f"Expected folders named as the classes {', '.join(self.classes)} in {images} "
                    f"but got {top.name!r}. Rename it; nothing was recorded."
                )
            for file in sorted(path for path in top.iterdir() if not path.name.startswith(".")):
                if folders.setdefault(file.name, top.name) != top.name:
                    raise DataError(
                        f"Expected {file.name!r} in one folder of a class but it lies in "
                        f"{folders[file.name]!r} and {top.name!r}. Remove one; nothing was "
                        "recorded."
                    )
        return folders

    def _first_free_number(self, rows: Sequence[Mapping[str, str]]) -> int:
        """A number above those of all images that were ever handed out, whose rows may be gone: a
        new image under an old name would get the answer of the old one, or stand in its place."""
        names = [row["file"] for row in rows]
        names += [path.name for path in (self.folder / IMAGES).rglob("*")]
        numbers = (re.match(r"\d{5,}(?=\.)", name) for name in names)
        return max((int(match[0]) for match in numbers if match), default=0) + 1

    def _copy(self, task: AnnotationTask, number: int) -> str:
        kind = task.media_type.rpartition("/")[2] or "png"
        name = f"{number:05d}.{'jpg' if kind == 'jpeg' else kind}"
        target = self.folder / IMAGES / name
        data = task.image if task.image is not None else b""
        write_atomically(target, lambda path: _write(path, data))
        return name


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _seconds(cell: str, id_: str) -> float | None:
    """The seconds in a cell; None where it is empty or says 0, as nobody answers in no time."""
    try:
        seconds = float(cell.strip() or 0)
        if not math.isfinite(seconds):
            raise ValueError
        return seconds if seconds > 0 else None
    except ValueError as error:
        raise DataError(
            f"Expected `seconds` of {id_!r} to be a number but got {cell!r}; nothing was recorded."
        ) from error
