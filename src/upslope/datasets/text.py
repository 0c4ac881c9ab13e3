"""Texts with a class each, from CSV, JSON Lines or Parquet, as token ids and masks.

A text becomes (2, t) integers: the ids of its tokens, and 1 where there is one; t is the length of
the longest text, `length` at most. The tokens are words, numbered by a hash (see `words`), or those
of a file `tokenizer.json`, as `tokenizers` and `transformers` write it; nothing is downloaded but
by a name that asks for it, hf:owner/model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from upslope.datasets.arrow import is_text
from upslope.datasets.decoding import EncodingOption
from upslope.datasets.delimited import Delimiter
from upslope.datasets.missing import MissingLabels
from upslope.datasets.paths import needed_root
from upslope.datasets.rows import IdColumn, Rows, TestShare, read_rows
from upslope.datasets.splits import Splits
from upslope.datasets.targets import Target, read_targets, split
from upslope.datasets.unlabelled import ClassNames
from upslope.datasets.words import cut_words, hash_word
from upslope.errors import ConfigError, DataError
from upslope.extras import import_package
from upslope.model_hub import PREFIX, folder_of
from upslope.progress import Observer, Progress, no_progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 10_000
WORDS = "words"
"""The tokenizer of our own."""
PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


def load(
    root: Path | None = None,
    *,
    progress: Observer = no_progress,
    tokenizer: Annotated[
        str,
        Field(
            description="words, or the path of a tokenizer.json or of a folder that has one, or "
            "hf:owner/model"
        ),
    ] = WORDS,
    text: Annotated[str, Field(description="column of the texts")] = "text",
    target: Target = None,
    classes: ClassNames = None,
    missing_labels: MissingLabels = None,
    length: Annotated[int, Field(ge=1, description="tokens of a text at most")] = 128,
    id: IdColumn = None,
    test_share: TestShare = 0.2,
    encoding: EncodingOption = None,
    delimiter: Delimiter = None,
) -> Splits:
    """Your own texts with a class each, from CSV, TSV, JSON Lines or Parquet, as token ids."""
    path = needed_root(root, "text", "your own files")
    rows = read_rows(path, id, encoding=encoding, delimiter=delimiter)
    return from_rows(
        rows, tokenizer, text, target, classes, missing_labels, length, test_share, progress
    )


def from_rows(
    rows: Rows,
    tokenizer: str,
    text: str,
    target: str | list[str] | None,
    classes: Sequence[object] | None,
    missing_labels: Collection[str] | None,
    length: int,
    test_share: float,
    progress: Observer = no_progress,
) -> Splits:
    """Make the splits of rows with a text each; the arguments are the options of `load`."""
    text_tokenizer = None if tokenizer == WORDS else _tokenizer(tokenizer)
    texts = _texts(rows, text)
    target_columns = read_targets(rows, target, "class", missing_labels, classes, has_kinds=False)
    if text_tokenizer is None:
        tokens = [[hash_word(word) for word in cut_words(one)] for one in texts]
        values, notes = _array([one[:length] for one in tokens], 0), _cut(tokens, length)
        progress(Progress("read", len(tokens), len(tokens)))
    else:
        values, notes = _encode(text_tokenizer, texts, length, progress)
    empty = [i for i, one in enumerate(texts) if not one.strip()]
    if empty:
        notes = (
            *notes,
            f"{len(empty):,} of {len(texts):,} texts are empty, first {rows.ids[empty[0]]!r}.",
        )
    return split(rows, rows.path.stem, values, target_columns, test_share, notes)


def _texts(rows: Rows, name: str) -> list[str]:
    column = rows.column(name, "text")
    if not is_text(column.type):
        raise DataError(
            f"Expected texts in the column `{name}` of {rows.path} but got {column.type}. Name "
            "another column with `data.text`."
        )
    texts: list[str] = column.to_pylist()
    missing = [i for i, value in enumerate(texts) if value is None]
    if missing:
        raise DataError(
            f"Expected a text in every row of {rows.path} but {len(missing)} of {len(texts)} have "
            f"none in `{name}`, first {rows.ids[missing[0]]!r}. Leave these rows out."
        )
    return texts


def _cut(tokens: Sequence[Sequence[int]], length: int) -> tuple[str, ...]:
    """Return a sentence about the texts that are longer than `length`, if there are any."""
    longer = [len(one) for one in tokens if len(one) > length]
    if not longer:
        return ()
    return (
        f"{len(longer):,} of {len(tokens):,} texts are longer than {length:,} tokens, up to "
        f"{max(longer):,}, and are cut there: raise `data.length` to read them whole.",
    )


def _encode(
    tokenizer: Tokenizer, texts: list[str], length: int, progress: Observer
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return ((n, 2, t), notes) by a tokenizer from a file, which leaves room for its own marks."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    ids: list[list[int]] = []
    longer = 0
    for start in range(0, len(texts), AT_ONCE):
        part = tokenizer.encode_batch(texts[start : start + AT_ONCE])
        ids += [one.ids for one in part]
        longer += sum(bool(one.overflowing) for one in part)
        progress(Progress("read", len(ids), len(texts)))
    notes = (
        f"{longer:,} of {len(texts):,} texts are longer than {length:,} tokens and are cut there: "
        "raise `data.length` to read them whole.",
    )
    return _array(ids, _padding(tokenizer)), notes if longer else ()


def _array(ids: Sequence[Sequence[int]], padding: int) -> NDArray[np.int32]:
    """Return (n, 2, t): ids, then the mask; t is the length of the longest, or 1."""
    longest = max(1, *(len(one) for one in ids))
    values = np.zeros((len(ids), 2, longest), dtype=np.int32)
    values[:, 0] = padding
    for row, one in zip(values, ids, strict=True):
        row[0, : len(one)] = one
        row[1, : len(one)] = 1
    return values


def _padding(tokenizer: Tokenizer) -> int:
    """Return the id that stands where no token is. The mask says so too, but GPT-2 goes by the
    id.
    """
    numbers = (tokenizer.token_to_id(word) for word in PADDING)
    return next((number for number in numbers if number is not None), 0)


def _tokenizer(name: str) -> Tokenizer:
    path = folder_of(name) if name.startswith(PREFIX) else Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"Expected `data.tokenizer` to be {WORDS!r}, the path of a tokenizer.json, or of a "
            f"folder that has one, but there is no {file}. Older folders: load them with "
            "transformers' AutoTokenizer, and save_pretrained writes the file."
        )
    tokenizers = import_package("tokenizers", "to read tokenizer.json", "text")
    try:
        tokenizer: Tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise ConfigError(
            f"Expected a tokenizer in {file} but reading it failed: {error}."
        ) from error
    return tokenizer
