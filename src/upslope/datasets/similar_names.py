"""Classes whose names look alike: Cat beside cat, hot_dog beside hot dog, 01 or 1e0 beside 1, ü in
one code point or in two, a of the Latin letters beside that of the Cyrillic ones.

They are counted as classes of their own, which is rarely meant: the readers of folders, tables and
arrays tell it in their notes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

from upslope.counts import format_count

_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[+-]?[0-9]{1,3})?")
_LATIN = str.maketrans(
    "авеёкмнорстухіїјѕһԁԛԝαεικνορτυχı‐‑‒–—−’‘ʼ",
    "abeëkmhopctyxiïjshdqwaeikvoptuxi------'''",
)
"""Small letters of Cyrillic and Greek, and marks -> those of Latin texts that look like them, or of
which the capitals look so."""
_BETWEEN = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")  # letters and digits


def similar_name_notes(
    names: Iterable[str], noun: str = "classes", where: str = ""
) -> tuple[str, ...]:
    """Return a sentence for each group of names that differ in how they are written alone.

    names: of all classes, or all categories. noun: what they are, in the plural. where: of what, as
    " of `colour`".
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bare_name(str(name)), []).append(str(name))
    return tuple(
        f"The {noun} {' and '.join(map(repr, sorted(group)))}{where} differ in how they are "
        "written alone, and are counted as different ones: where they are one, name them alike."
        f"{_letters_words(sorted(group))}"
        for group in groups.values()
        if len(group) > 1
    )


def _letters_words(names: list[str]) -> str:
    """Return a sentence on what names consist of, where two of them look the same."""
    looks = {_plain_letters(name).translate(_LATIN) for name in names}
    if len(looks) == len(names) or all(map(str.isascii, names)):
        return ""
    return f" They look alike and are {' and '.join(map(ascii, names))}."


def similar_id_notes(ids: Iterable[object]) -> tuple[str, ...]:
    """Return a sentence on ids that look alike: accented letters in one code point, or in two.

    Systems differ in which of the two forms a file is named, so that copies of one get both.

    ids: of all samples.
    """
    by_form: dict[str, str] = {}
    pairs = []
    for id_ in ids:
        if isinstance(id_, str) and not id_.isascii():
            other = by_form.setdefault(unicodedata.normalize("NFC", id_), id_)
            if other != id_:
                pairs.append((other, id_))
    if not pairs:
        return ()
    first, second = map(ascii, pairs[0])
    return (
        f"{format_count(len(pairs), 'id looks', 'ids look')} like another, written with another "
        f"form of accented letters (NFC and NFD of Unicode), first {second} like {first}: each is "
        "a sample of its own. Where they are copies, remove one.",
    )


def bare_name(name: str) -> str:
    """Return the name without what two spellings of one name differ in."""
    bare = _plain_letters(name).casefold().translate(_LATIN).strip()
    if _NUMBER.fullmatch(bare):
        return str(Fraction(bare))
    return _BETWEEN.sub(" ", bare)


def _plain_letters(name: str) -> str:
    """The name in one form of accented letters, with digits of one script, and without characters
    that take no room."""
    letters = (c for c in name if unicodedata.category(c) != "Cf")
    normal = unicodedata.normalize("NFKC", "".join(letters))
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in normal)
