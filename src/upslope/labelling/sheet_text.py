"""The text of CSV files that people fill in for a labelling project, and how refusals of it end."""

from __future__ import annotations

from pathlib import Path

from upslope.datasets.decoding import UndecodableError, read_text
from upslope.errors import DataError

NOT_RECORDED = "Nothing was recorded."
"""The end of the message where a file is refused: all of it is taken in, or nothing."""


def read_sheet_text(path: Path) -> str:
    """Return the text of a CSV file, without its byte order mark.

    Raises:
        DataError: it cannot be read, or is neither in UTF-8 nor in UTF-16.
    """
    try:
        return read_text(path)
    except UndecodableError as error:
        raise DataError(
            f"Expected {path} in UTF-8, or in UTF-16 with a byte order mark, but {error.reason}. "
            f'Save it again as "CSV UTF-8". {NOT_RECORDED}'
        ) from error
