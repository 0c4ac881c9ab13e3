"""`to-label.csv`: what people are asked, and where they write their answers.

    id, path, label, why

One line for each sample that waits. People fill in `label` with any program that edits CSV files:
a class by its name, names of labels or numbers with semicolons between, `skip` or `skip: reason`.
An empty cell is an answer still to come. A line for a sample labelled before corrects its answer,
one for a sample skipped before answers it after all, and `take back` withdraws either.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.counts import first_lines, format_count
from upslope.errors import ConfigError, DataError
from upslope.experiment.sheet_rows import by_lower_names
from upslope.experiment.sheet_text import decode_mixed_up, read_rows
from upslope.files import FORMULA, csv_line, name_in_use, safe_cell, write_text

SKIP = "skip"
TAKE_BACK = "take back"
COLUMNS = ("id", "path", "label", "why")
_FORMULA = (*FORMULA, "'")
_MARK = "\ufeff"
_MOST_NAMES = 10
ANEW = "Or remove the file, and the same command writes it anew, without the answers."
"""What else to do about a sheet that cannot be read, where it is one that Upslope writes."""


@dataclass(frozen=True)
class Question:
    """One line of the sheet. path: of the sample's file, empty where it has none; why: who asks
    for it. content: columns of the data set that people need to see, by name."""

    id: str
    path: str = ""
    why: str = ""
    content: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What a sheet says.

    ids: of all its lines, in order. labels: id -> answer, as `tell` takes it. passed: id ->
    reason. withdrawn: ids whose answers are taken back.
    """

    ids: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    passed: Mapping[str, str] = field(default_factory=dict)
    withdrawn: tuple[str, ...] = ()

    @property
    def empty(self) -> tuple[str, ...]:
        """The ids whose lines have no answer."""
        answered_ids = {*self.labels, *self.passed, *self.withdrawn}
        return tuple(id_ for id_ in self.ids if id_ not in answered_ids)


def warn_of_empty(path: Path, sheet: Answers) -> None:
    """Say that lines of a sheet have no answer: their samples count as unlabelled.

    path, sheet: where it was read, and what it says.
    """
    if sheet.empty:
        warnings.warn(
            f"{len(sheet.empty):,} of {format_count(len(sheet.ids), 'line')} of {path} have no "
            f"label, first {sheet.empty[0]!r}: these samples may be chosen again. Fill the column "
            "`label` in, with `skip` for those that are not to be chosen.",
            stacklevel=3,
        )


def write_sheet(path: Path, questions: Sequence[Question]) -> None:
    """Write the sheet, whole or not at all; the column `path` only where some sample has one.

    The columns of the data set, where it has some, come last. A cell that a spreadsheet would take
    for a formula gets an apostrophe in front, which reading takes off again; of the data set's own
    columns, which are shown and not read, numbers stay as they are.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    content = list(dict.fromkeys(name for q in questions for name in q.content))
    columns = [c for c in COLUMNS if c != "path" or any(q.path for q in questions)]
    # A column of the data set must not be taken for one of the sheet.
    column_names = [f"data {name}" if name.strip().lower() in COLUMNS else name for name in content]
    lines = [csv_line([*columns, *(_safe(name) for name in column_names)])]
    for q in questions:
        cells = {"id": q.id, "path": q.path, "label": "", "why": q.why}
        row = [_safe(cells[name]) for name in columns]
        row += [safe_cell(q.content.get(name, "")) for name in content]
        lines.append(csv_line(row))
    text = "".join(lines)
    # Excel takes a file without the mark for one in the encoding of the machine.
    write_text(path, text if text.isascii() else f"{_MARK}{text}")


def check_unanswered(path: Path) -> None:
    """Raise ConfigError where a new sheet would take the place of more than an unanswered one.

    path: of the new sheet.
    """
    if problem := name_in_use(path, as_file=True):
        raise ConfigError(f"Expected to be able to write {path} but {problem}")
    if path.is_file() and path.stat().st_size and (content := _content_of(path)):
        raise ConfigError(
            f"Expected no file at {path}, or a sheet without answers, but there is {content}. "
            "Choose another name for the new sheet, or move the file away."
        )


def _content_of(path: Path) -> str:
    """What a file holds other than questions without answers, in words; "" for nothing."""
    try:
        rows = read_rows(path, lambda text: _rows(path, text, ""), None, "")
    except DataError:
        return "a file of another kind"
    count = sum(bool((row.get("label") or "").strip()) for _, row in rows)
    return f"one with {format_count(count, 'answer')}" if count else ""


def read_sheet(
    path: Path,
    ids: Collection[str],
    classes: Sequence[str],
    read: Callable[[str], Any],
    remedy: str = "",
) -> Answers:
    """Return the answers in a sheet.

    ids: those that an answer can be for. read: makes an answer of a cell, or raises DataError.
    remedy: what else to do about a file that cannot be read, such as `ANEW`.

    Raises:
        DataError: no sheet, or rows that cannot be taken: all are named by their number, and
            nothing is to be recorded.
    """
    reader = _SheetReader(ids, classes, read)
    rows = read_rows(path, lambda text: _rows(path, text, remedy), reader.is_known, remedy)
    for number, row in rows:
        reader.take(number, row)
    if reader.problems:
        raise DataError(
            f"Expected every row of {path} to hold an answer or none but:\n"
            f"{first_lines(reader.problems, _MOST_NAMES)}\n"
            "Correct the file and run the same command again: nothing of it was recorded yet, "
            "and it was left as it is."
        )
    if reader.ids_in_other_letters:
        count, first = len(reader.ids_in_other_letters), reader.ids_in_other_letters[0]
        warnings.warn(
            f"{format_count(count, 'id')} of {path} had been read in a wrong encoding and "
            f"saved so, as {first!r} for {decode_mixed_up(first)!r}: taken for what was asked.",
            stacklevel=2,
        )
    return reader.answers()


class _SheetReader:
    """Takes in the rows of a sheet one by one. Arguments are those of `read_sheet`."""

    def __init__(self, ids: Collection[str], classes: Sequence[str], read: Callable[[str], Any]):
        self._ids, self._classes, self._read = ids, classes, read
        self._by_cell = {id_: id_ for id_ in ids} | {_safe(id_): id_ for id_ in ids}
        self._labels: dict[str, Any] = {}
        self._passes: dict[str, str] = {}
        self._withdrawals: list[str] = []
        self._texts: dict[str, str] = {}
        """Id -> its answer as it was written."""
        self.problems: list[str] = []
        """What cannot be taken, a line of text for each such row."""
        self.ids_in_other_letters: list[str] = []
        """Cells that were ids in another encoding."""

    def is_known(self, row: Mapping[str, str]) -> bool:
        """Tell whether the cells that depend on the encoding are an id and an answer."""
        id_, text = row.get("id", "").strip(), _plain(row.get("label", "").strip())
        if not id_.isascii() and id_ not in self._by_cell and row["id"] not in self._by_cell:
            return False
        if text.isascii() or _reason(text, self._classes) is not None:
            return True
        try:
            self._read(text)
        except DataError:
            return False
        return True

    def take(self, number: int, row: Mapping[str, str]) -> None:
        """Take in a row, or note what is wrong with it. number: as spreadsheets count it."""
        id_ = self._id_of(number, row)
        if id_ is None:
            return
        text = _plain((row.get("label") or "").strip())
        if self._texts.setdefault(id_, text) != text:
            self.problems.append(
                f"row {number}: {id_!r} is there before, with the label {self._texts[id_]!r}"
            )
        elif (reason := _reason(text, self._classes)) is not None:
            self._passes[id_] = reason
        elif text.lower() == TAKE_BACK and text not in self._classes:
            self._withdrawals.append(id_)
        elif text:
            try:
                self._labels[id_] = self._read(text)
            except DataError as error:
                self.problems.append(f"row {number}, {id_!r}: {error}")

    def _id_of(self, number: int, row: Mapping[str, str]) -> str | None:
        """Return whose row it is; None, with a problem noted, where it is none of the ids."""
        cell = row.get("id") or ""
        if cell not in self._by_cell:
            cell = cell.strip()
        id_ = self._by_cell.get(cell)
        if id_ is None:
            id_ = self._by_cell.get(decode_mixed_up(cell) or "")
            if id_ is not None:
                self.ids_in_other_letters.append(cell)
        if id_ is None:
            self.problems.append(
                f"row {number}: expected the id of a sample that was asked but got {cell!r}"
                f"{_id_before_excel(cell, self._ids)}"
            )
        return id_

    def answers(self) -> Answers:
        """Return what all rows so far say."""
        withdrawals = tuple(self._withdrawals)
        return Answers(tuple(self._texts), self._labels, self._passes, withdrawals)


def ids_meant(path: Path) -> set[str]:
    """Return every id that a cell of a sheet may stand for, whatever its encoding.

    For pools whose ids are not held in memory: those of them that are really there are then what
    `read_sheet` takes.

    Raises:
        DataError: no sheet.
    """
    cells: set[str] = set()
    for _, row in read_rows(path, lambda text: _rows(path, text, ""), None, ""):
        cell = row.get("id") or ""
        for one in (cell, cell.strip()):
            cells |= {one, _plain(one), decode_mixed_up(one) or one}
    return cells


def _rows(path: Path, text: str, remedy: str) -> list[tuple[int, dict[str, str]]]:
    """Return (number, cells by column) of each row. Raises DataError as `by_lower_names`."""
    return by_lower_names(path, text, ("id", "label"), remedy)


def _reason(text: str, classes: Sequence[str]) -> str | None:
    """The reason after `skip:`, empty after `skip`; None where a cell is no such word.

    Where a class is called skip, the word alone means the class.
    """
    word, colon, reason = text.partition(":")
    if word.strip().lower() != SKIP or (text in classes) or (not colon and SKIP in classes):
        return None
    return reason.strip()


def _id_before_excel(cell: str, ids: Collection[str]) -> str:
    """Which id a spreadsheet may have made this cell of, as 12 of 0012."""
    bare = cell.lstrip("0")
    close = [id_ for id_ in ids if bare and id_.lstrip("0") == bare]
    if len(close) != 1:
        return ""
    return f", which a spreadsheet may have made of {close[0]!r}: open the column as text"


def _safe(cell: str) -> str:
    """The cell as text to a spreadsheet, numbers as well: of the id +2 one would make 2."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _plain(cell: str) -> str:
    """The cell without the apostrophe that `_safe` put in front."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
