"""Words that stand for a missing label in tables, manifests and star files.

Readers call `is_missing` for each label, leave the sample unlabelled where it is true, and say so
with the sentences of `missing_notes`. The option `missing_labels` replaces the words, so that a
class may be called None or NA.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

MISSING_WORDS: tuple[str, ...] = (
    "NA", "na", "N/A", "n/a", "N/a", "N.A.", "n.a.", "#N/A", "#N/A N/A", "#NA",
    "<NA>", "<na>", "NA_character_", "NA_integer_",
    "NaN", "nan", "NAN", "-nan", "-NaN", "NaT", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND",
    "NULL", "null", "Null", "\\N",
    "None", "none", "NONE",
    "?", "-",
)  # fmt: skip
"""What pandas, R, SQL dumps, spreadsheets and ARFF files write for a missing value. "Na" is not
among them: it is sodium."""

DOUBTFUL_WORDS: tuple[str, ...] = (
    "unknown", "missing", "unlabelled", "unlabeled", "not labelled", "not labeled", "no label",
    "to label", "unsorted",
    "undefined", "unassigned", "unspecified", "not available", "not applicable", "nil", "void",
    "empty", "tbd", "todo", "to do", "to be done", "pending", "unsure", "skip", "skipped",
    "nothing", "no data", "undef", "blank", "xx", "xxx", "''", "n.a", "n\\a", "n/d",
    "(null)", "[null]", "(none)", "[none]", "(empty)", "(missing)", "(blank)", "k.a.", "k. a.",
    "unbekannt", "fehlt", "fehlend", "leer", "keine", "keine angabe", "o.a.",
    "inconnu", "inconnue", "manquant", "vide", "n.c.", "n.r.", "s/o", "aucun", "aucune",
    "desconocido", "desconocida", "s/d", "n.d.", "nd", "vacio", "vac\u00edo", "ninguno", "ninguna",
    "sconosciuto", "desconhecido", "nessuno", "nenhum", "onbekend", "geen", "okänd", "ukjent",
    "неизвестно", "нет", "н/д", "未知", "无", "無", "空", "不明", "なし", "없음",
    "#value!", "#ref!", "#null!", "#div/0!", "#name?", "#num!",
)  # fmt: skip
"""Lower-case words that are as likely to be a class as to stand for none: they remain classes, and
the reader points at them."""

_STROKES = re.compile(r"[.\u2026_?*/ \u2013\u2014\u2212-]+")
"""Labels of these marks alone, such as "--" or "...", are as doubtful as the words."""

_WORDS_IN_SMALL_LETTERS = {word.lower() for word in (*MISSING_WORDS, *DOUBTFUL_WORDS)} - {"na"}
"""Without "na", which is sodium."""

_NEGATIVE_MARKS = ("-1", "-9", "-99", "-999", "-9999")
_MARKS = ("99", "999", "9999", "255", "65535")  # the last two: -1 in unsigned types
_LEAST_MARK = 90
"""Whole numbers that often stand for no label, beside labels below the last."""

MissingLabels = Annotated[
    list[str] | None,
    Field(
        description="words that stand for no label, beside an empty one; "
        "NA, nan, null, None, ?, - and the like, if not given"
    ),
]


def is_missing(text: str | None, words: Collection[str] | None = None) -> bool:
    """Return whether a label stands for no label.

    text: the label as the file has it; space around it does not count. None and empty text are
    always missing. words: the option `missing_labels`; None for `MISSING_WORDS`.
    """
    bare = (text or "").strip()
    return not bare or bare in (MISSING_WORDS if words is None else words)


def known_in_part_notes(unknown: NDArray[np.bool_], what: str = "rows") -> tuple[str, ...]:
    """Return a sentence on samples of which some targets are known and others are not.

    unknown: (n, k). what: what has the targets, in the plural. Empty where there are none such.
    """
    count = int((unknown.any(axis=1) & ~unknown.all(axis=1)).sum())
    if not count:
        return ()
    return (
        f"{count:,} of {len(unknown):,} {what} have some of their {unknown.shape[1]} targets and "
        "not all: these count as unlabelled, since a sample is labelled as a whole or not at all.",
    )


def missing_notes(
    labels: Iterable[str | None],
    words: Collection[str] | None = None,
    what: str = "rows",
    *,
    classes_are_stated: bool = False,
) -> tuple[str, ...]:
    """Return sentences about the labels that were taken as missing, and about doubtful classes.

    labels: every label as the file has it. words: as for `is_missing`. what: what has the labels,
    in the plural. classes_are_stated: the option `classes` names them, so that none is doubtful,
    and a word for no label becomes a class by being named there. Empty where no label is missing
    or doubtful.
    """
    counts = Counter("" if label is None else label.strip() for label in labels)
    total = counts.total()
    missing = {word: n for word, n in counts.items() if is_missing(word, words)}
    notes = []
    if missing:
        word_counts = ", ".join(f"{_quote(word)} ({n:,})" for word, n in sorted(missing.items()))
        count = f"{sum(missing.values()):,} of {total:,}"
        note = f"{count} {what} are unlabelled: their label is {word_counts}."
        if any(missing):
            note += (
                " Where such a word is a class, name it among the `data.classes`."
                if classes_are_stated
                else " Where such a word is a label, set `data.missing_labels` to the words that "
                "stand for no label ([]: none but the empty one)."
            )
        notes.append(note)
    certain = classes_are_stated or words is not None
    doubtful = [] if certain else _doubtful(counts.keys() - missing.keys())
    notes += [
        f"{counts[word]:,} of {total:,} {what} are of the class {word!r}, which is counted as a "
        f"class. If it stands for no label, set `data.missing_labels` to [{word!r}]."
        for word in doubtful
    ]
    return tuple(notes)


_DOUBTFUL_FOLDERS = (
    "rejected", "rejects", "discarded", "deleted", "trash", "junk", "unusable", "backup", "temp",
    "tmp", "duplicates", "copies", "to sort", "inbox", "papierkorb", "aussortiert", "doppelt",
)  # fmt: skip
"""Names of folders, beside the words, that are as likely to hold what should not be read."""


def class_folder_notes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on classes by folder whose name is as likely to stand for no label.

    classes: the names of the folders.
    """
    return tuple(
        f"The folder {name!r} is counted as a class. If it stands for no label, call it "
        "unlabelled; if its images should not be read, move it elsewhere."
        for name in classes
        if name in MISSING_WORDS
        or _doubtful([name.replace("_", " ")])
        or name.strip("_ ").replace("_", " ").lower() in _DOUBTFUL_FOLDERS
    )


def _doubtful(labels: Collection[str]) -> list[str]:
    """Return the labels that are as likely to be a class as to stand for none."""
    return sorted({*filter(_is_doubtful_word, labels), *_doubtful_marks(labels)})


def _is_doubtful_word(label: str) -> bool:
    """Whether a label is a word for none, but for how it is written."""
    bare = _bare(label)
    words = _WORDS_IN_SMALL_LETTERS
    if _STROKES.fullmatch(_visible(label)):
        return True
    if _visible(label).lower() in words or bare.lower() in words:
        return True
    return bare != label and bare in MISSING_WORDS


def _doubtful_marks(labels: Collection[str]) -> list[str]:
    """The numbers that often stand for none: beside whole numbers from 0, such as 0, 1 and -1 or
    99, where no other label is so large; and beside names alone."""
    wholes = {label for label in labels if label.isdecimal()}
    low = {label for label in wholes if len(label) == 1 or int(label) < _LEAST_MARK}
    marks = [m for m in labels if m in _NEGATIVE_MARKS or (m in _MARKS and m in wholes)]
    others = {*labels} - {*marks}
    beside_numbers = len(low) > 1 and low == others
    beside_names = len(others) > 1 and not any(map(_has_digit, others))
    return marks if beside_numbers or beside_names else []


def _has_digit(label: str) -> bool:
    return any(character.isdigit() for character in label)


def _bare(label: str) -> str:
    """The label without quotes, brackets and full stops around it."""
    return label.strip(" '\"`()[]<>{}.")


def _visible(label: str) -> str:
    """The label without characters that take no room, as the zero-width space."""
    bare = "".join(c for c in label if unicodedata.category(c) != "Cf").strip()
    return bare or "-"


def _quote(word: str) -> str:
    return repr(word) if word else "empty"
