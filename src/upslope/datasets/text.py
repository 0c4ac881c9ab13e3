"""Texts with a class each, from CSV, JSON Lines or Parquet, as token ids and masks.

A text becomes (2, t) integers: the ids of its tokens, and 1 where there is one; t is the length of
the longest text, `length` at most. The tokenizer is a file `tokenizer.json`, as `tokenizers` and
`transformers` write it, or a folder that has one; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.answers import Target, read_answers, split
from upslope.datasets.base import Splits
from upslope.datasets.files import needed_root
from upslope.datasets.rows import IdColumn, Rows, TestShare, read_rows
from upslope.datasets.unlabelled import ClassNames
from upslope.errors import ConfigError, DataError
from upslope.progress import Observer, Progress, silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 10_000
PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


def load(
    root: Path | None = None,
    *,
    progress: Observer = silent,
    tokenizer: Annotated[
        str, Field(description="path of a tokenizer.json, or of a folder that has one")
    ] = "",
    text: Annotated[str, Field(description="column of the texts")] = "text",
    target: Target = None,
    classes: ClassNames = None,
    length: Annotated[int, Field(ge=1, description="tokens of a text at most")] = 128,
    id: IdColumn = None,
    test_share: TestShare = 0.2,
) -> Splits:
    """Your own texts with a class each, from CSV, TSV, JSON Lines or Parquet, as token ids."""
    path = needed_root(root, "text", "your own files")
    tokens = _tokenizer(tokenizer)
    rows = read_rows(path, id)
    answers = read_answers(rows, target, "class", classes)
    values = _tokens(tokens, _texts(rows, text), length, progress)
    return split(rows, rows.path.stem, values, answers, test_share)


def _texts(rows: Rows, name: str) -> list[str]:
    import pyarrow as pa

    column = rows.column(name, "text")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(
            f"Expected texts in the column `{name}` of {rows.path} but got {column.type}. Name "
            "another column with `text`."
        )
    texts: list[str] = column.to_pylist()
    missing = [i for i, value in enumerate(texts) if value is None]
    if missing:
        raise DataError(
            f"Expected a text in every row of {rows.path} but {len(missing)} of {len(texts)} have "
            f"none in `{name}`, first {rows.ids[missing[0]]!r}. Leave these rows out."
        )
    return texts


def _tokens(
    tokenizer: Tokenizer, texts: list[str], length: int, progress: Observer
) -> NDArray[np.int32]:
    """(n, 2, t)."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    ids: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        ids += [one.ids for one in tokenizer.encode_batch(part)]
        progress(Progress("read", len(ids), len(texts)))
    longest = max(1, *(len(one) for one in ids))
    values = np.zeros((len(texts), 2, longest), dtype=np.int32)
    values[:, 0] = _padding(tokenizer)
    for row, one in zip(values, ids, strict=True):
        row[0, : len(one)] = one
        row[1, : len(one)] = 1
    return values


def _padding(tokenizer: Tokenizer) -> int:
    """The id that stands where no token is. The mask says so too, but GPT-2 goes by the id."""
    found = (tokenizer.token_to_id(word) for word in PADDING)
    return next((number for number in found if number is not None), 0)


def _tokenizer(name: str) -> Tokenizer:
    if not name:
        raise ConfigError(
            "Expected `tokenizer` to be the path of a tokenizer.json, or of a folder that has one, "
            "but got none. Take the one that belongs to the model."
        )
    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"Expected `tokenizer` to be the path of a tokenizer.json, or of a folder that has "
            f"one, but there is no {file}. Older folders: load them with transformers' "
            "AutoTokenizer, and save_pretrained writes the file."
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "Expected the package `tokenizers`, which reads tokenizer.json, but it is not "
            "installed: pip install '.[text]' in the clone."
        ) from error
    try:
        found: Tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise ConfigError(
            f"Expected a tokenizer in {file} but reading it failed: {error}."
        ) from error
    return found
