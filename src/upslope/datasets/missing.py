"""Words that stand for a missing label in tables, manifests and star files.

Readers call `is_missing` for each label, leave the sample unlabelled where it is true, and say so
with the sentences of `missing_notes`. The option `missing_labels` replaces the words, so that a
class may be called None or NA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

from pydantic import Field

MISSING_WORDS: tuple[str, ...] = (
    "NA", "na", "N/A", "n/a", "N/a", "N.A.", "n.a.", "#N/A", "#NA", "<NA>", "<na>",
    "NaN", "nan", "NAN", "-nan", "-NaN", "NaT",
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
    "empty", "tbd", "todo", ".", "..", "--", "---", "??", "???", "_", "*",
    "#value!", "#ref!", "#null!", "#div/0!", "#name?", "#num!",
)  # fmt: skip
"""Lower-case words that are as likely to be a class as to stand for none: they remain classes, and
the reader points at them."""

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


def missing_notes(
    labels: Iterable[str | None], words: Collection[str] | None = None, what: str = "rows"
) -> tuple[str, ...]:
    """Return sentences about the labels that were taken as missing, and about doubtful classes.

    labels: every label as the file has it. words: as for `is_missing`. what: what has the labels,
    in the plural. Empty where no label is missing or doubtful.
    """
    counts = Counter("" if label is None else label.strip() for label in labels)
    total = counts.total()
    missing = {word: n for word, n in counts.items() if is_missing(word, words)}
    notes = []
    if missing:
        told = ", ".join(f"{_quoted(word)} ({n:,})" for word, n in sorted(missing.items()))
        note = (
            f"{sum(missing.values()):,} of {total:,} {what} are unlabelled: their label is {told}."
        )
        if any(missing):
            note += (
                " Where such a word is a label, set `data.missing_labels` to the words that stand "
                "for no label ([]: none but the empty one)."
            )
        notes.append(note)
    doubtful = [w for w in sorted(counts) if w.lower() in DOUBTFUL_WORDS and words is None]
    if words is None and _is_minus_one_for_none(counts.keys() - missing.keys()):
        doubtful.append("-1")
    notes += [
        f"{counts[word]:,} of {total:,} {what} are of the class {word!r}, which is counted as a "
        f"class. If it stands for no label, set `data.missing_labels` to [{word!r}]."
        for word in doubtful
    ]
    return tuple(notes)


def class_folder_notes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on classes by folder whose name is as likely to stand for no label.

    classes: the names of the folders.
    """
    return tuple(
        f"The folder {name!r} is counted as a class. If it stands for no label, call it unlabelled."
        for name in classes
        if name in MISSING_WORDS or name.lower().replace("_", " ") in DOUBTFUL_WORDS
    )


def _is_minus_one_for_none(labels: Collection[str]) -> bool:
    """Tell whether -1 stands beside whole numbers from 0, where it often stands for no label."""
    others = set(labels) - {"-1"}
    return "-1" in labels and len(others) > 1 and all(label.isdecimal() for label in others)


def _quoted(word: str) -> str:
    return repr(word) if word else "empty"
