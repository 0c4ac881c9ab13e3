"""The JSON that Label Studio exports, as a file of labels for `upslope label import`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from upslope.errors import DataError
from upslope.labelling.annotators.label_studio_form import ID, LABEL, PASS_CHOICE, answer_of
from upslope.labelling.image_names import ImageNames
from upslope.labelling.imported_labels import ImportedLabel
from upslope.labelling.settings import AnswerKind
from upslope.labelling.state import SKIP, Pass

_TYPES: Mapping[AnswerKind, str] = {
    "class": "choices",
    "labels": "choices",
    "boxes": "rectanglelabels",
    "masks": "brushlabels",
}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what the server puts before the name of an upload
_NOT_IN_UPLOADS = re.compile(r"[^-\w.]")  # what the server leaves out of the name of an upload
_UPLOADS = "/data/upload/"
_BUCKET = re.compile(r"^(s3|gs|azure-blob)://[^/]*/(.+)$", re.DOTALL)
_LOCAL_FILES = "/data/local-files/"
_MOST_NAMES = 3


def read_label_studio_labels(
    path: Path, tasks: Sequence[Any], kind: AnswerKind, classes: Sequence[str], ids: Sequence[str]
) -> list[tuple[str, ImportedLabel]]:
    """Return (id, label) of each task; None for those without an annotation.

    path: of the export. tasks: its content. ids: of the project's samples. A task means the sample
    whose id it carries, where Upslope sent it, else the image whose file its data name. Where one
    person labelled a task that another skipped, the label counts.

    Raises:
        DataError: another form of export, tasks without a name of an image, forms of several
            fields, annotations of one task that differ, or that are none of the project's kind.
    """
    names = ImageNames(ids)
    files_by_upload: dict[str, set[str]] = {}
    for id_ in ids:
        file = id_.rpartition("/")[2]
        files_by_upload.setdefault(_upload_name(file), set()).add(file)
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
        where = f"task {number} of {path}"
        id_ = names.match_one(_names_by_field(data, files_by_upload, where), where)
        answers: list[ImportedLabel] = []
        for annotation in annotations:
            answer = _answer(annotation, kind, classes, where)
            if isinstance(answer, list):  # in whatever order the choices were ticked
                answer = sorted(set(answer))
            if answer is not None and answer not in answers:
                answers.append(answer)
        labels = [answer for answer in answers if not isinstance(answer, Pass)]
        if len(labels) > 1:
            different.append(id_)
        rows.append((id_, next(iter(labels or answers), None)))
    if different:
        raise DataError(
            f"Expected one answer for each task in {path} but the annotations of "
            f"{len(different)} differ, first {', '.join(map(repr, different[:_MOST_NAMES]))}. "
            "Settle "
            "them in Label Studio, or have `upslope label next --tool label-studio` take the "
            "answers of each person; nothing was recorded."
        )
    return rows


def _names_by_field(
    data: Mapping[str, Any], files_by_upload: Mapping[str, set[str]], where: str
) -> dict[str, list[str]]:
    """Field of a task's data -> what its text may call the sample, the likeliest name first.

    files_by_upload: names of uploads -> names of the project's files.
    """
    if isinstance(data.get(ID), str):
        return {ID: [data[ID]]}
    by_field = {
        str(field): [name for name in dict.fromkeys(_names_in(value, files_by_upload)) if name]
        for field, value in data.items()
        if isinstance(value, str) and not value.startswith("data:")
    }
    by_field = {field: names for field, names in by_field.items() if names}
    if not by_field:
        raise DataError(
            f"Expected the data of {where} to name an image, by a path or an address. Nothing was "
            "recorded."
        )
    return by_field


def _names_in(value: str, files_by_upload: Mapping[str, set[str]]) -> Iterator[str]:
    """The names that a path or an address may mean: as it stands, then as its scheme spells it."""
    yield value.lstrip("/")
    path = _path_in(value)
    yield path.lstrip("/")
    folder, _, file = path.rpartition("/")
    original = _UPLOAD.sub("", file)
    if original != file:
        yield f"{folder}/{original}".lstrip("/")
        files = files_by_upload.get(original, set())
        if _UPLOADS in path and len(files) == 1:
            yield f"{folder}/{next(iter(files))}".lstrip("/")


def _upload_name(file: str) -> str:
    """The name of a file as the server spells it once it was sent there."""
    return _NOT_IN_UPLOADS.sub("", file.strip().replace(" ", "_"))


def _path_in(value: str) -> str:
    """The path of a file in an address of Label Studio, of a bucket or of a web server."""
    if bucket := _BUCKET.match(value):  # a key as it is, with any ? and #
        return unquote(bucket[2]) if "%" in bucket[2] else bucket[2]
    try:
        address = urlsplit(value)
    except ValueError:  # no address but text, with a bracket in the wrong place
        return value
    query = parse_qs(address.query)
    if address.path.endswith(_LOCAL_FILES) and "d" in query:  # files on the server's own disk
        return query["d"][0]
    if "fileuri" in query:  # an address in a bucket, handed on by the server
        code = query["fileuri"][0]
        try:
            inner = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)).decode()
        except ValueError:
            return code
        return _path_in(inner) if _BUCKET.match(inner) else inner
    return unquote(address.path)


def _answer(annotation: Any, kind: AnswerKind, classes: Sequence[str], where: str) -> ImportedLabel:
    """What one annotation says; None for an empty one."""
    results = _results(annotation, where)
    if annotation.get("was_cancelled"):
        return Pass(SKIP)
    if not results:
        return None
    _check_one_field(results, kind, where)
    try:
        label, reason = answer_of(list(map(_as_in_own_form, results)), kind, classes)
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"Expected an annotation as Label Studio writes it in {where} but reading it failed: "
            f"{type(error).__name__}: {error}. Nothing was recorded."
        ) from error
    except DataError as error:
        raise DataError(f"{error} That is in {where}; nothing was recorded.") from error
    return Pass(reason) if label is None else label


def _results(annotation: Any, where: str) -> list[Mapping[str, Any]]:
    """The fields that an annotation has filled in. Raises DataError."""
    results = annotation.get("result") if isinstance(annotation, Mapping) else None
    if not isinstance(results, list) or not all(isinstance(r, Mapping) for r in results):
        raise DataError(f"Expected a list `result` in an annotation of {where}.")
    return results


def _is_pass(result: Mapping[str, Any]) -> bool:
    return result.get("from_name") == PASS_CHOICE


def _check_one_field(results: Sequence[Mapping[str, Any]], kind: AnswerKind, where: str) -> None:
    """Raise DataError where an annotation holds more than answers of the kind, of one field."""
    answers = [r for r in results if not _is_pass(r)]
    others = sorted({str(r.get("type")) for r in answers if r.get("type") != _TYPES[kind]})
    fields = sorted({str(r.get("from_name")) for r in answers if r.get("type") == _TYPES[kind]})
    if not others and len(fields) < 2:
        return
    what = f"results of the types {', '.join(others)}" if others else (
        f"the fields {', '.join(fields)}"
    )  # fmt: skip
    raise DataError(
        f"Expected {_TYPES[kind]} of one field, as the kind {kind} has them, in {where} but got "
        f"{what}. Export them by themselves; nothing was recorded."
    )


def _as_in_own_form(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A filled-in field under the name that it has in Upslope's own form."""
    return result if _is_pass(result) else {**result, "from_name": LABEL}
