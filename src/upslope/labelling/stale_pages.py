"""Answers that come from a page which shows an older state than the project has."""

from __future__ import annotations

from collections.abc import Sequence

from upslope.errors import DataError
from upslope.labelling.project import names_of
from upslope.labelling.state import Answer, AnswerLabel


def refuse_stale(
    before: Answer | None,
    shown_order: object,
    answer: tuple[AnswerLabel | None, str, str],
    classes: Sequence[str],
) -> None:
    """Refuse an answer that would replace one which the page did not show.

    before: the person's answer at present, None for none. shown_order: that of the answer which the
    page showed, None for none. answer: label, reason and note; the same as there are is not
    refused, as a request may come twice.

    Raises:
        DataError: the sample was answered otherwise since the page showed it.
    """
    if before is None or before.order == shown_order:
        return
    if answer == (before.label, before.reason, before.note):
        return
    words = before.reason if before.label is None else names_of(before.label, classes)
    raise DataError(
        f"{before.id} was answered meanwhile, as {words!r}, in another window or by another person "
        "of the same name: this answer was not recorded. To correct the other, click on it under "
        "Last answers. Several people need a name each, `&name=Ann` behind the address."
    )
