"""Samples as the files of `upslope label import` describe them; tables of labels are read here.

A CSV has the columns `id` and `label`; label sets are names with semicolons between, `none` for
none; boxes and masks are JSON, as an export writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from upslope.errors import DataError
from upslope.experiment.sheet_rows import by_lower_names
from upslope.experiment.sheet_text import read_rows
from upslope.files import plain_cell
from upslope.labelling.exports import NO_LABEL
from upslope.labelling.settings import OUTLINES, AnswerKind
from upslope.labelling.sheet_text import NOT_RECORDED
from upslope.labelling.state import REASONS, Pass

ImportedLabel = str | list[str] | Pass | None
"""A name or an outline's text, names of a set, that somebody passed the sample, or None where the
file says nothing of it."""


def read_label_table(path: Path, is_known: Callable[[str, str], bool]) -> list[tuple[str, str]]:
    """Return the id of each row of a CSV, and its label or else what its column `reason` says.

    Exports have that column beside the label. Other words in it are a note of somebody's own.
    is_known: whether an id and a label can be taken, by which an encoding is told that the file
    does not name (see `experiment.sheet_text`).

    Raises:
        DataError: no CSV, an encoding that cannot be told, no columns `id` and `label`, or a row
            that ends before one of these.
    """

    def parse(text: str) -> list[tuple[int, dict[str, str]]]:
        return by_lower_names(path, text, ("id", "label"), NOT_RECORDED)

    def can_be_taken(row: Mapping[str, str]) -> bool:
        return is_known(plain_cell(row.get("id", "")), plain_cell(row.get("label", "").strip()))

    labels = []
    for number, row in read_rows(path, parse, can_be_taken, NOT_RECORDED):
        if "id" not in row or "label" not in row:
            raise DataError(
                f"Expected an id and a label, at least 2 cells in row {number} of {path}, but got "
                f"{len(row)}. {NOT_RECORDED}"
            )
        label = plain_cell(row["label"].strip())
        if not label and (reason := row.get("reason", "").strip()) in REASONS:
            label = reason
        labels.append((plain_cell(row["id"]), label))
    return labels


def label_in_cell(text: str, kind: AnswerKind, classes: Sequence[str]) -> ImportedLabel:
    """Return the label that a cell of a table says.

    text: a name; names with semicolons between, `none` for none of them; an outline as JSON; or a
    reason for which there is no label, unless a class is called so.
    """
    if not text:
        return None
    if text.lower() in REASONS and text not in classes:
        return Pass(text.lower())
    if kind in ("class", *OUTLINES):
        return text
    return [] if text == NO_LABEL else [name.strip() for name in text.split(";")]
