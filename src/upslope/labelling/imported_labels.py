"""Samples as the files of `upslope label import` describe them; tables of labels are read here.

A CSV has the columns `id` and `label`; label sets are names with semicolons between, `none` for
none; boxes and masks are JSON, as an export writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upslope.errors import DataError
from upslope.files import plain_cell
from upslope.labelling.csv_rows import read_csv_text, rows_below_header, split_rows
from upslope.labelling.exports import NO_LABEL
from upslope.labelling.settings import OUTLINES, AnswerKind
from upslope.labelling.state import REASONS, Pass

ImportedLabel = str | list[str] | Pass | None
"""A name or an outline's text, names of a set, that somebody passed the sample, or None where the
file says nothing of it."""


def read_label_table(path: Path) -> list[tuple[str, str]]:
    """Return the id of each row of a CSV, and its label or else what its column `reason` says.

    Exports have that column beside the label. Other words in it are a note of somebody's own.

    Raises:
        DataError: no CSV in UTF-8, no columns `id` and `label`, or lines of differing lengths.
    """
    text = read_csv_text(path)
    first = text.partition("\n")[0]
    for delimiter in ",;\t":
        header = next(iter(split_rows(first, delimiter, path, is_whole=False)), [])
        names = [name.strip().lower() for name in header]
        if {"id", "label"} <= set(names):
            break
    else:
        raise DataError(
            f"Expected the columns id and label in the first line of {path} but got "
            f"{first.strip()!r}. Name them so."
        )
    if twice := [name for name in ("id", "label") if names.count(name) > 1]:
        raise DataError(
            f"Expected one column {twice[0]} in {path} but got {names.count(twice[0])}. Rename "
            "those that are not meant; nothing was recorded."
        )
    rows = []
    for cells in rows_below_header(split_rows(text, delimiter, path), path):
        row = dict(zip(names, cells, strict=True))
        label = plain_cell(row["label"].strip())
        if not label and (reason := row.get("reason", "").strip()) in REASONS:
            label = reason
        rows.append((plain_cell(row["id"]), label))
    return rows


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
