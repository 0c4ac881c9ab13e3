"""Readings of folder names: a split, a class and a split at once, or a date and no class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# No word is made of others, nor repeated inside: what has several readings is tried for ever.
_FILLER = r"(?:the|my|data|set|split|folder|dir|images?|imgs?|files?|samples?|x|\d)*"
_CORES = {
    "train": "train(?:ing)?(?:val(?:idation)?)?|trn",
    "test": "test(?:ing|s)?|tst|holdout|heldout",
    "validation": "val|valid|validation|validate|validating|dev|devel|development|eval|evaluation",
}
_SPLITS = {split: re.compile(f"{_FILLER}(?:{core}){_FILLER}") for split, core in _CORES.items()}
_WORDS = {
    "train": {"train", "training"},
    "test": {"test", "testing"},
    "validation": {"val", "valid", "validation"},
}
_BEGINNINGS = {"train": "train", "test": "test", "validation": "val"}
_MONTHS = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    "|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"
    "|januar|februar|märz|mai|juni|juli|oktober|dezember"
    "|janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre"
    "|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre)"
)
_SEASONS = "(?:spring|summer|autumn|fall|winter|frühling|frühjahr|sommer|herbst)"
_DATE = re.compile(
    r"(?:19|20)\d\d"  # a year
    rf"|(?:\d+[-_. ]?)?{_MONTHS}(?:[-_. ]?\d)*"
    rf"|(?:19|20)\d\d[-_. ]?(?:\d\d|{_MONTHS})(?:[-_. ]?\d\d?)?"
    r"|\d\d?[-_. ]\d\d?[-_. ](?:19|20)\d\d"
    rf"|(?:19|20)\d\d[-_. ]?(?:q[1-4]|(?:w|kw|week)[-_. ]?\d\d?|{_SEASONS})"
    rf"|(?:q[1-4]|{_SEASONS})[-_. ]?(?:19|20)\d\d"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|(?:mon|diens|donners|frei|sams|sonn)tag|mittwoch",
    re.IGNORECASE,
)
_CAMERA = re.compile(r"\d{3}[A-Z_][A-Z0-9_]{4}|DCIM")  # the folders that cameras make
_PART = re.compile(
    r"(?:fold|batch|part|shard|chunk|split|session|visit|take|roll|card|day|tag|week|woche|kw)s?"
    r"[-_. ]?\d+",
    re.IGNORECASE,
)
_KIND = re.compile(
    r"(?:(?:jpeg)?images?|im(?:g|age)s|masks?|labels?|annotations?|xmls?|thumb(?:nail)?s?"
    r"|new folder|neuer ordner)(?: \(\d+\))?",
    re.IGNORECASE,
)
"""Names that say what kind of files lies there, or nothing at all."""
_NO_CLASSES = (_DATE, _CAMERA, _PART, _KIND)


def split_of(name: str) -> str | None:
    """Return the split that a folder or a word names: train, test, validation, or None for none."""
    letters = re.sub(r"[^a-z0-9]+", "", name.lower())
    return next((s for s, pattern in _SPLITS.items() if pattern.fullmatch(letters)), None)


def splits_among(names: Sequence[str]) -> Mapping[str, str]:
    """Return split -> a name that hints at it, such as cats_train, cats_test or Testdaten.

    Names hint by their first or last word or, if all do so, by how they begin.
    """
    hints: dict[str, str] = {}
    for name in names:
        words = re.findall(r"[a-z]+", name.lower())
        for split, split_words in _WORDS.items():
            if words and ({words[0], words[-1]} & split_words):
                hints.setdefault(split, name)
    prefixes = {
        name: next((s for s, b in _BEGINNINGS.items() if name.lower().startswith(b)), "")
        for name in names
    }
    if all(prefixes.values()):
        hints |= {split: name for name, split in prefixes.items()}
    return hints


def are_no_classes(names: Sequence[str]) -> bool:
    """Return whether all names are years or dates, parts of a set, kinds of files, or such as
    cameras give."""
    return bool(names) and all(any(p.fullmatch(name) for p in _NO_CLASSES) for name in names)
