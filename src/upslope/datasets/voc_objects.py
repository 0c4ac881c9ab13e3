"""The objects in an annotation file of Pascal VOC, read without any entity being expanded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from upslope.counts import format_count
from upslope.reading import check_regular, check_room, reporting_damage

_NAME = ("annotation", "object", "name")
_DIFFICULT = ("annotation", "object", "difficult")
_FILE = ("annotation", "filename")
_TRUE = ("1", "true", "yes")  # as tools write it; of the development kit it is 1
_DEEPEST = 64  # elements within one another


class VocObjects(NamedTuple):
    """The names of the classes of an image's objects, how many of them are difficult to tell, and
    the file that the annotation says it is of, "" where it says none."""

    names: tuple[str, ...]
    difficult: int
    file: str


def read_objects(path: Path) -> VocObjects:
    """Return the objects of one annotation file; parts of objects are none.

    Raises:
        DataError: the file cannot be read, is too large, is no XML with an `annotation`, declares a
            document type (as files that expand without end do), or has an object without a name.
    """
    texts: dict[tuple[str, ...], list[str]] = {}
    place: list[str] = []
    objects = 0

    def start(tag: str, _: object) -> None:
        nonlocal objects
        place.append(tag)
        if len(place) > _DEEPEST or place[0] != "annotation":
            raise ValueError(f"it is nested too deep, or begins with <{place[0]}>")
        objects += tuple(place) == _NAME[:2]
        if tuple(place) in (_NAME, _DIFFICULT, _FILE):
            texts.setdefault(tuple(place), []).append("")

    def text(content: str) -> None:
        if tuple(place) in (_NAME, _DIFFICULT, _FILE):
            texts[tuple(place)][-1] += content

    def end(_: str) -> None:
        place.pop()

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type, of which entities could be expanded")

    with reporting_damage(f"an annotation of Pascal VOC in {path}", "Export it again."):
        check_regular(path)
        check_room(path.stat().st_size, path)
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, refuse
        parser.Parse(path.read_bytes(), True)
        names = tuple(name.strip() for name in texts.get(_NAME, ()))
        if len(names) != objects or not all(names):
            raise ValueError(f"it has {objects} objects and {len([n for n in names if n])} names")
    difficult = sum(one.strip().lower() in _TRUE for one in texts.get(_DIFFICULT, ()))
    file = next(iter(texts.get(_FILE, ())), "").strip()
    return VocObjects(names, difficult, file)


def object_notes(objects: dict[str, VocObjects]) -> tuple[str, ...]:
    """Return sentences on objects that are difficult, and on annotations of another file.

    objects: file name of an image -> its objects.
    """
    notes = []
    difficult = {file: one.difficult for file, one in objects.items() if one.difficult}
    if difficult:
        count = format_count(sum(difficult.values()), "object is", "objects are")
        notes.append(
            f"{count} marked as difficult, first in {next(iter(difficult))!r}: such objects count "
            "as others do."
        )
    others = [(file, one.file) for file, one in objects.items() if one.file not in ("", file)]
    if others:
        notes.append(
            f"{len(others):,} of {len(objects):,} annotations name another file than their own "
            f"name says, first that of {others[0][0]!r}, which names {others[0][1]!r}: files go by "
            "the name of the annotation."
        )
    return tuple(notes)
