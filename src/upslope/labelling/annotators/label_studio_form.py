"""Label Studio's side of a project's answers: the form that people see, and what they fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from upslope.errors import DataError
from upslope.labelling.annotators.brush import decode_brush
from upslope.labelling.outlines import Box, Mask, boxes_text, masks_text
from upslope.labelling.ranking import Guess
from upslope.labelling.samples import Kind
from upslope.labelling.settings import AnswerKind
from upslope.labelling.state import CANNOT_TELL

SAMPLE, LABEL, PASS_CHOICE = "sample", "label", "passed"
"""Names of the tags of the form."""
ID = "upslope_id"
"""The field of a task that holds the id of its sample."""
_ROUNDING = 1e-6
"""Percent of an edge by which a box that a mouse drew may be beyond it in floating point."""


def label_config(kind: AnswerKind, sample_kind: Kind, classes: Sequence[str]) -> str:
    """Return the form of a project, in Label Studio's XML."""
    data_tag = {
        "image": f'<Image name="{SAMPLE}" value="$image" zoom="true"/>',
        "text": f'<Text name="{SAMPLE}" value="$text"/>',
        "row": f'<Table name="{SAMPLE}" value="$row"/>',
    }[sample_kind]
    tag, entry, more = {
        "class": ("Choices", "Choice", ' choice="single" showInLine="true"'),
        "labels": ("Choices", "Choice", ' choice="multiple" showInLine="true"'),
        "boxes": ("RectangleLabels", "Label", ""),
        "masks": ("BrushLabels", "Label", ""),
    }[kind]
    entries = "".join(f"<{entry} value={quoteattr(name)}/>" for name in classes)
    why = '<Header value="$why" size="6"/>'
    pass_tag = (
        f'<Choices name="{PASS_CHOICE}" toName="{SAMPLE}" choice="single" showInLine="true">'
        f"<Choice value={quoteattr(CANNOT_TELL)}/></Choices>"
    )
    return (
        f'<View>{data_tag}{why}<{tag} name="{LABEL}" toName="{SAMPLE}"{more}>{entries}</{tag}>'
        f"{pass_tag}</View>"
    )


def prediction(guess: Guess, kind: AnswerKind, version: str) -> dict[str, Any] | None:
    """Return a guess as Label Studio shows it: ticked. None for outlines, which have no guess."""
    if kind not in ("class", "labels"):
        return None
    names = [name for name, p in guess.classes if p > 0.5] if kind == "labels" else [
        guess.classes[0][0]
    ]  # fmt: skip
    result = {"from_name": LABEL, "to_name": SAMPLE, "type": "choices", "value": {"choices": names}}
    return {"model_version": version, "score": guess.classes[0][1], "result": [result]}


def answer_of(
    results: Sequence[Mapping[str, Any]], kind: AnswerKind, classes: Sequence[str]
) -> tuple[str | list[str] | None, str]:
    """Return the answer and the reason of a filled-in form; one of them is empty.

    Raises:
        DataError: a form that has both, or neither, or outlines that cannot be read.
    """
    is_pass = any(r.get("from_name") == PASS_CHOICE for r in results)
    label_results = [r for r in results if r.get("from_name") == LABEL]
    if is_pass and label_results:
        raise DataError(f"Expected a label or `{CANNOT_TELL}` but got both.")
    if is_pass:
        return None, CANNOT_TELL
    if kind in ("class", "labels"):
        names = [name for r in label_results for name in _names(r["value"], "choices")]
        if kind == "labels":
            return names, ""
        if len(names) != 1:
            raise DataError(f"Expected one class but got {', '.join(names) or 'none'}.")
        return names[0], ""
    if not label_results:
        raise DataError(
            f"Expected {kind} but the form is empty. Where there is nothing to mark, choose "
            f"`{CANNOT_TELL}` or skip it."
        )
    sizes = {(int(r["original_height"]), int(r["original_width"])) for r in label_results}
    if len(sizes) != 1:
        raise DataError(f"Expected outlines of one image but they have the sizes {sorted(sizes)}.")
    (size,) = sizes
    if any(r.get("image_rotation") for r in label_results):
        raise DataError(
            "Expected outlines of the image as it is but one was drawn on the rotated image. Draw "
            "it again, unrotated."
        )
    if kind == "boxes":
        return boxes_text(size, [_box(r, size) for r in label_results]), ""
    return masks_text(size, _masks(label_results, size), classes), ""


def _box(result: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """A box in pixels; Label Studio keeps percent of the image."""
    height, width = size
    value = result["value"]
    if float(value.get("rotation") or 0) != 0:
        raise DataError("Expected boxes along the image's edges but one is rotated. Draw it again.")
    names = _names(value, "rectanglelabels")
    if len(names) != 1:
        raise DataError(f"Expected one class for a box but got {', '.join(names) or 'none'}.")
    x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
    left, across = _edge(x, w, width)
    top, down = _edge(y, h, height)
    return names[0], left, top, across, down


def _edge(start: float, extent: float, side: int) -> tuple[float, float]:
    """Start and extent of a box along one edge in pixels, given in percent of its `side` pixels.

    What is beyond the image by rounding is cut off.

    Raises:
        DataError: a box that is empty, or reaches beyond the image.
    """
    inside = start >= -_ROUNDING and extent > 0 and start + extent <= 100 + _ROUNDING
    if not inside:  # NaN among others
        raise DataError(
            f"Expected a box inside the image but one goes from {start:g}% to {start + extent:g}% "
            "of an edge. Draw it again."
        )
    first = max(0.0, start / 100 * side)
    return first, min(extent / 100 * side, side - first)


def _names(value: Mapping[str, Any], key: str) -> list[str]:
    """The names in a list of a result's value. Raises DataError where it is no list of names."""
    names = value.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"Expected a list of names as `{key}` but got {names!r}.")
    return names


def _masks(results: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, Mask]:
    """Class -> mask: the union of its strokes' regions."""
    masks: dict[str, Mask] = {}
    for result in results:
        value = result["value"]
        if value.get("format") != "rle":
            raise DataError(f"Expected a brush's mask but got the format {value.get('format')!r}.")
        mask = decode_brush(value["rle"], size[1], size[0])
        for name in _names(value, "brushlabels"):
            masks[name] = masks[name] | mask if name in masks else mask
    return masks
