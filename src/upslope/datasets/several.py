"""One class per image, of annotations that name the classes of all objects in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from upslope.counts import format_count
from upslope.errors import DataError

Several = Annotated[
    Literal["refuse", "skip"],
    Field(description="images with objects of several classes: an error, or left out and counted"),
]


def one_class(
    classes: Mapping[str, Sequence[str]], several: str, where: object
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (id -> its class, "" where it has no object; notes).

    classes: id -> the distinct classes of its objects. several: the option of that name. where:
    what messages name.

    Raises:
        DataError: an image of several classes, unless these are left out.
    """
    ids = [id_ for id_, names in classes.items() if len(names) > 1]
    notes: list[str] = []
    if ids:
        text = (
            f"{format_count(len(ids), 'image')} of {len(classes):,} with objects of several "
            f"classes, first {ids[0]!r} with {', '.join(classes[ids[0]])}"
        )
        if several != "skip":
            raise DataError(
                f"Expected objects of one class in each image of {where} but got {text}. Set "
                "`data.several` to skip to leave them out, or `data.target` to masks."
            )
        notes.append(f"Left out {text}.")
    without = [id_ for id_, names in classes.items() if not names]
    if without:
        notes.append(
            f"{format_count(len(without), 'image has', 'images have')} no object, first "
            f"{without[0]!r}: unlabelled."
        )
    return {id_: "".join(names) for id_, names in classes.items() if len(names) < 2}, tuple(notes)
