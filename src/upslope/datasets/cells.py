"""Read a column of a table as numbers or as categories, or refuse it by name.

Nothing is guessed: a column is numbers if all its cells are, categories if none is. Decimal commas,
dates, amounts with a sign, numbers among words and ids are neither, and are refused with the option
that settles them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.counts import format_count
from upslope.datasets.arrow import is_list, is_number, is_text, numbers_of
from upslope.datasets.missing import MISSING_WORDS
from upslope.datasets.notations import first_amount, first_date
from upslope.datasets.rows import Rows
from upslope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Decimal = Annotated[
    Literal["point", "comma", ".", ","],
    Field(description="between the whole and the fraction of numbers that are written as text"),
]

_LOSS_SHARE = 1e-3
"""Of the deviation of numbers: more may not be lost where they become single precision."""
_SHARE_OF_IDS = 0.9
_FEWEST_FOR_IDS = 10
"""Rows from which a column of (nearly) as many categories as rows is refused."""


@dataclass(frozen=True)
class Numbers:
    """values: (n, k), NaN where the cell is empty. words: the words for missing among the cells,
    with counts. leading_zero: a cell such as 007, where there is one. grouped: a cell such as
    1.250, where all are written so, and the point may be between thousands."""

    values: NDArray[np.float64]
    words: Mapping[str, int] = field(default_factory=dict)
    leading_zero: str | None = None
    grouped: str | None = None

    @property
    def empty(self) -> NDArray[np.bool_]:
        """(n,): rows with an empty cell."""
        return np.asarray(np.isnan(self.values).any(axis=1), dtype=np.bool_)


@dataclass(frozen=True)
class Categories:
    """cells: the text of each, "" where it is empty."""

    cells: list[str]

    @property
    def empty(self) -> NDArray[np.bool_]:
        """(n,): rows with an empty cell."""
        return np.array([not cell for cell in self.cells])


def read_input(rows: Rows, name: str, as_categories: bool) -> Numbers | Categories:
    """Return a column of inputs as what it is; `as_categories`: the user says that it is these.

    Raises:
        ConfigError: there is no such column.
        DataError: it is neither, or both.
    """
    import pyarrow as pa

    column = rows.column(name, "columns")
    kind = column.type
    where = f"the column `{name}` of {rows.path}"
    if as_categories and pa.types.is_nested(kind):
        raise DataError(
            f"Expected one value per cell in {where}, which `data.categorical` names, but got "
            f"cells of type {kind}. Take it off that list."
        )
    if as_categories:
        cells = ["" if cell is None else str(cell) for cell in column.to_pylist()]
        return Categories(["" if cell == "nan" and is_number(kind) else cell for cell in cells])
    if pa.types.is_null(kind):
        return Numbers(np.full((len(column), 1), np.nan))
    if pa.types.is_integer(kind) and (exact := _exact_from_least(column.to_pylist())) is not None:
        return Numbers(exact)
    if pa.types.is_decimal(kind):
        decimals = column.to_pylist()
        if (exact := _exact_from_least(decimals)) is not None:
            return Numbers(exact)
    if is_number(kind):
        return Numbers(finite(numbers_of(column), f"numbers in {where}")[:, None])
    if pa.types.is_boolean(kind):
        return Categories(["" if cell is None else str(cell) for cell in column.to_pylist()])
    if is_list(kind):
        return Numbers(_lists(column, where))
    if not is_text(kind):
        raise DataError(
            f"Expected numbers, text, truth values or lists of numbers in {where} but got cells of "
            f"type {kind}. Convert them (dates to days since one), or leave the column out with "
            "`data.columns`."
        )
    return _text(column, name, rows)


def text_numbers(column: pa.ChunkedArray, decimal: str) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return (numbers, (n,) mask of cells that are neither number nor missing) of a column of text.

    Space around a number does not count. Infinity is a number here: `finite` refuses it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.large_string()), ""))
    point = "[.]" if decimal == "." else ","
    number = rf"^[+-]?(\d+({point}\d*)?|{point}\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
    is_value = pc.match_substring_regex(cells, number)
    words = pa.array(["", *MISSING_WORDS], pa.large_string())
    is_missing = pc.is_in(cells, value_set=words)
    plain = pc.if_else(is_value, cells, pa.scalar(None, pa.large_string()))
    if decimal == ",":
        plain = pc.replace_substring(plain, ",", ".")
    values = plain.cast(pa.float64()).to_numpy()
    said = Counter(cell for cell in cells.filter(is_missing).to_pylist() if cell)
    zeros = cells.filter(pc.match_substring_regex(cells, r"^0\d+$"))
    first = zeros[0].as_py() if len(zeros) else None
    unread = ~np.asarray(pc.or_(is_value, is_missing).to_numpy(), dtype=bool)
    texts = cells.filter(is_value)
    thousands = rf"^[+-]?[1-9]\d{{0,2}}{point}\d{{3}}$"
    all_so = len(texts) > 2 and pc.all(pc.match_substring_regex(texts, thousands)).as_py()
    return Numbers(values[:, None], said, first, texts[0].as_py() if all_so else None), unread


def in_single_precision(values: NDArray[np.float64], what: str) -> NDArray[np.float32]:
    """Return rows of numbers as float32, in which networks learn. what: what they are.

    Raises:
        DataError: one that is infinite there, or a column whose values lie so close together, far
            from 0, that they run together there.
    """
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32)
    if (is_wrong := np.isinf(singles)).any():
        place = tuple(int(i[0]) for i in np.nonzero(is_wrong))
        raise DataError(
            f"Expected {what} that are finite in single precision, up to 3.4e38, but got "
            f"{values[place]:.6g} in row {place[0]}. Give them in a larger unit, or repair them."
        )
    for column, single in zip(_columns(values), _columns(singles), strict=True):
        _refuse_lost_digits(column[~np.isnan(column)], single[~np.isnan(column)], what)
    return singles


def _columns(values: NDArray[Any]) -> NDArray[Any]:
    """Return (n,) or (n, k) values as k rows."""
    return values.reshape(len(values), -1).T


def _refuse_lost_digits(
    values: NDArray[np.float64], singles: NDArray[np.float32], what: str
) -> None:
    """Raise DataError where single precision moves values by much of their spread, or where they
    are all one from 2**53 to 2**64, as whole numbers are there that differ by little."""
    if not len(values):
        return
    deviation, error = float(values.std()), float(np.abs(singles - values).max())
    large = len(values) > 1 and 2**53 <= float(np.abs(values).max()) <= 2**64
    if error > _LOSS_SHARE * deviation if deviation > 0 else large:
        raise DataError(
            f"Expected {what} that single precision, of 7 digits, tells apart but some with mean "
            f"{float(values.mean()):.15g} and deviation {deviation:.3g} are moved by up to "
            f"{error:.3g} there. Take off what they have in common, about their mean."
        )


def finite(values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Return the values, NaN included; DataError where one is infinite. what: what they are."""
    if np.isinf(values).any():
        raise DataError(f"Expected finite {what} but row {int(np.isinf(values).argmax())} is not.")
    return values


def comma_advice(column: pa.ChunkedArray, unread: NDArray[np.bool_], decimal: str) -> str:
    """Return what to do where all unread cells of a column are numbers in another notation."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.large_string()), ""))
    cells = cells.filter(pa.array(unread))
    if (
        not len(cells)
        or not pc.all(pc.match_substring_regex(cells, r"^[+-]?[\d.,]*\d[.,]?$")).as_py()
    ):
        return ""
    both = pc.any(pc.and_(pc.match_substring(cells, "."), pc.match_substring(cells, ","))).as_py()
    other = "comma" if decimal == "." else "point"
    if not both:
        return (
            f"Where a {other} is between the whole and the fraction, set `data.decimal` to "
            f"{other}; where it is between thousands, remove it."
        )
    return "Remove what is between thousands; a decimal comma is read with `data.decimal` comma."


_LEAVE_OUT = "or leave it out with `data.columns`"


def _text(column: pa.ChunkedArray, name: str, rows: Rows) -> Numbers | Categories:
    """A column of text as numbers where all cells are, as categories where none is."""
    where = f"the column `{name}` of {rows.path}"
    numbers, unread = text_numbers(column, rows.decimal)
    count = int((~np.isnan(numbers.values)).sum())
    cells = ["" if cell is None else cell for cell in column.to_pylist()]
    all_empty = not any(cell.strip() for cell in cells)
    if not unread.any() and (count or numbers.words or all_empty):
        return _text_as_numbers(numbers, cells, count, not rows.untyped, where)
    _refuse_other_notations(column, cells, unread, rows.decimal, where)
    if count:
        first = int(unread.argmax())
        raise DataError(
            f"Expected numbers alone or words alone in {where} but "
            f"{format_count(count, 'cell is a number', 'cells are numbers')} and "
            f"{int(unread.sum()):,} not, first {cells[first]!r} of "
            f"{rows.ids[first]!r}. Empty the cells that stand for a missing number; where all "
            f"cells are categories, name the column in `data.categorical`, {_LEAVE_OUT}."
        )
    return Categories(cells)


def _text_as_numbers(
    numbers: Numbers, cells: Sequence[str], count: int, has_types: bool, where: str
) -> Numbers:
    """Numbers that are written as text, exact where all `count` of them are whole.

    has_types: the file has types, in which numbers would not be written so.

    Raises:
        DataError: infinity; text in a file whose types have numbers.
    """
    finite(numbers.values, f"numbers in {where}")
    wholes = [_whole(cell) for cell in cells] if not has_types else []
    if sum(whole is not None for whole in wholes) == count:
        exact = _exact_from_least(wholes)
        return numbers if exact is None else replace(numbers, values=exact)
    if not has_types or not count:
        return numbers
    raise DataError(
        f"Expected numbers in {where} but got numbers written as text, first "
        f"{next(cell for cell in cells if cell)!r}. Convert them to numbers, name the column "
        f"in `data.categorical`, {_LEAVE_OUT}."
    )


def _refuse_other_notations(
    column: pa.ChunkedArray,
    cells: Sequence[str],
    unread: NDArray[np.bool_],
    decimal: str,
    where: str,
) -> None:
    """Refuse dates, numbers with another decimal mark, and amounts among the unread cells."""
    others = Counter(cell for cell, it in zip(cells, unread.tolist(), strict=True) if it)
    if date := first_date(others):
        raise DataError(
            f"Expected numbers or categories in {where} but got dates or times, first {date!r}. "
            "Convert them to numbers, such as days since a date, name the column in "
            f"`data.categorical`, {_LEAVE_OUT}."
        )
    if advice := comma_advice(column, unread, decimal):
        raise DataError(
            f"Expected numbers with {decimal!r} in {where} but {int(unread.sum()):,} of "
            f"{len(cells):,} cells are written otherwise, first {cells[int(unread.argmax())]!r}. "
            f"{advice} Or name the column in `data.categorical`, {_LEAVE_OUT}."
        )
    if amount := first_amount(others):
        raise DataError(
            f"Expected numbers or categories in {where} but got numbers with a sign or a unit, "
            f"first {amount!r}. Remove it, name the column in `data.categorical`, {_LEAVE_OUT}."
        )


def _exact_from_least(numbers: Sequence[Any]) -> NDArray[np.float64] | None:
    """(n, 1): whole and decimal numbers beyond 2**53 as their exact distance from the least, which
    is what standardised columns are made of; as floats they would run together. None for others."""
    values = [number for number in numbers if number is not None]
    if not values or max(map(abs, values)) <= 2**53:
        return None
    least = Fraction(min(values))
    return np.array([np.nan if n is None else float(Fraction(n) - least) for n in numbers])[:, None]


def refuse_merged(cells: Sequence[Any], values: NDArray[np.float64], what: str) -> None:
    """Raise DataError where whole numbers or decimals beyond 2**64 that differ are one as floats;
    those below are told by `in_single_precision`.

    cells: (n,) integers, decimals, text of either, or None. values: (n,) what they are as floats,
    NaN for none. what: what they are.
    """
    floats = values[~np.isnan(values)]
    if not (np.abs(floats) > 2**64).any():
        return
    numbers = [_whole(cell) if isinstance(cell, str) else cell for cell in cells]
    count, count_of_floats = len({*numbers} - {None}), len(np.unique(floats))
    if count > count_of_floats:
        raise DataError(
            f"Expected {what} that differ in their first 15 digits but {count:,} numbers are "
            f"{count_of_floats:,} so, near {floats[np.abs(floats).argmax()]:.15g}. Take off what "
            "they have in common."
        )


def _whole(cell: str) -> int | None:
    """The whole number that a cell is, None for other numbers and for empty cells."""
    bare = cell.strip()
    return int(bare) if bare.lstrip("+-").isdecimal() else None


def looks_like_ids(categories: Categories) -> bool:
    """Return whether there are (nearly) as many categories as rows: ids, or free text."""
    cell_values = [cell for cell in categories.cells if cell]
    return len(cell_values) >= _FEWEST_FOR_IDS and len(set(cell_values)) > _SHARE_OF_IDS * len(
        cell_values
    )


def _lists(column: pa.ChunkedArray, where: str) -> NDArray[np.float64]:
    """(n, k): the numbers of each row's list; NaN in rows without one.

    Raises:
        DataError: lists of other things than numbers, or of differing lengths.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column)
    sizes = sorted(set(lengths.drop_null().to_pylist()))
    inner = pc.list_flatten(column)
    if len(sizes) != 1 or not sizes[0] or not is_number(inner.type):
        shapes = (
            f"of {sizes[0]} to {sizes[-1]} items" if len(sizes) > 1 else f"of type {column.type}"
        )
        raise DataError(
            f"Expected lists of numbers, all of one length, in {where} but got lists {shapes}. "
            "Leave the column out with `data.columns`."
        )
    if not isinstance(inner, pa.ChunkedArray):
        inner = pa.chunked_array([inner])
    is_valid = lengths.is_valid().to_numpy()
    values = np.full((len(column), sizes[0]), np.nan)
    values[is_valid] = _places(inner, sizes[0], where)
    return values


def _places(inner: pa.ChunkedArray, size: int, where: str) -> NDArray[np.float64]:
    """(n, size): the numbers of lists of one size, each place of them exact as a column is."""
    import pyarrow as pa

    floats = finite(numbers_of(inner), f"numbers in {where}").reshape(-1, size).copy()
    if pa.types.is_floating(inner.type) or not (np.abs(floats) >= 2**53).any():
        return floats
    for place in range(size):
        numbers = inner.take(np.arange(place, len(inner), size)).to_pylist()
        if (exact := _exact_from_least(numbers)) is not None:
            floats[:, place] = exact[:, 0]
    return floats
