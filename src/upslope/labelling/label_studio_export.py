"""The JSON that Label Studio exports, as a file of labels for `upslope label import`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from upslope.errors import DataError
from upslope.labelling.annotators.label_studio_form import ID, LABEL, PASS_CHOICE, answer_of
from upslope.labelling.coco import ImportedLabel
from upslope.labelling.image_names import ImageNames
from upslope.labelling.settings import AnswerKind

_TYPES: Mapping[AnswerKind, str] = {
    "class": "choices",
    "labels": "choices",
    "boxes": "rectanglelabels",
    "masks": "brushlabels",
}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what the server puts before the name of an upload
_MOST_NAMES = 3


def read_label_studio_labels(
    path: Path, tasks: Sequence[Any], kind: AnswerKind, classes: Sequence[str], ids: Sequence[str]
) -> list[tuple[str, ImportedLabel]]:
    """Return (id, label) of each task; None for those without an annotation, or skipped ones.

    path: of the export. tasks: its content. ids: of the project's samples. A task means the sample
    whose id it carries, where Upslope sent it, else the image whose file its data name.

    Raises:
        DataError: another form of export, tasks without a name of an image, forms of several
            fields, annotations of one task that differ, or that are none of the project's kind.
    """
    names = ImageNames(ids)
    rows: list[tuple[str, ImportedLabel]] = []
    different: list[str] = []
    for number, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task, Mapping) else None
        annotations = task.get("annotations") if isinstance(task, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(annotations, list):
            raise DataError(
                f"Expected task {number} of {path} to have `data` and `annotations`. Export in "
                "Label Studio's format JSON, not JSON-MIN; nothing was recorded."
            )
        id_ = names.match(_names(data, number, path), path)
        answers: list[ImportedLabel] = []
        for annotation in annotations:
            answer = _answer(annotation, kind, classes, f"task {number} of {path}")
            if answer is not None and answer not in answers:
                answers.append(answer)
        if len(answers) > 1:
            different.append(id_)
        rows.append((id_, answers[0] if answers else None))
    if different:
        raise DataError(
            f"Expected one answer for each task in {path} but the annotations of "
            f"{len(different)} differ, first {', '.join(map(repr, different[:_MOST_NAMES]))}. "
            "Settle "
            "them in Label Studio, or have `upslope label next --tool label-studio` take the "
            "answers of each person; nothing was recorded."
        )
    return rows


def _names(data: Mapping[str, Any], number: int, path: Path) -> list[str]:
    """What the data of a task may call its sample, the likeliest first."""
    if isinstance(data.get(ID), str):
        return [data[ID]]
    names: list[str] = []
    for value in data.values():
        if not isinstance(value, str) or not value or value.startswith("data:"):
            continue
        address = urlsplit(value)
        local = parse_qs(address.query).get("d", [])  # how files on the server's disk are named
        whole = local[0] if local else unquote(address.path)
        file = whole.rpartition("/")[2]
        names += [whole.lstrip("/"), file, _UPLOAD.sub("", file)]
    names = [name for name in dict.fromkeys(names) if name]
    if not names:
        raise DataError(
            f"Expected the data of task {number} of {path} to name an image, by a path or an "
            "address. Nothing was recorded."
        )
    return names


def _answer(annotation: Any, kind: AnswerKind, classes: Sequence[str], where: str) -> ImportedLabel:
    """What one annotation says; None for a skipped or an empty one."""
    results = annotation.get("result") if isinstance(annotation, Mapping) else None
    if not isinstance(results, list) or not all(isinstance(r, Mapping) for r in results):
        raise DataError(f"Expected a list `result` in an annotation of {where}.")
    if annotation.get("was_cancelled") or not results:
        return None
    regions = [r for r in results if r.get("type") != "choices"]
    choices = [
        r for r in results if r.get("type") == _TYPES[kind] and r.get("from_name") != PASS_CHOICE
    ]
    others = sorted({str(r.get("type")) for r in regions if r.get("type") != _TYPES[kind]})
    fields = sorted({str(r.get("from_name")) for r in choices})
    if others or len(fields) > 1:
        what = f"results of the types {', '.join(others)}" if others else (
            f"the fields {', '.join(fields)}"
        )  # fmt: skip
        raise DataError(
            f"Expected {_TYPES[kind]} of one field, as the kind {kind} has them, in {where} but "
            f"got {what}. Export them by themselves; nothing was recorded."
        )
    is_pass = [r for r in results if r.get("from_name") == PASS_CHOICE]
    try:
        label, _ = answer_of([{**r, "from_name": LABEL} for r in choices] + is_pass, kind, classes)
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"Expected an annotation as Label Studio writes it in {where} but reading it failed: "
            f"{type(error).__name__}: {error}. Nothing was recorded."
        ) from error
    except DataError as error:
        raise DataError(f"{error} That is in {where}; nothing was recorded.") from error
    return label
