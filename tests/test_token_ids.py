"""A network of texts gets the numbers of words that its weights were trained on, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from upslope import config
from upslope.config.schema import Config
from upslope.errors import ConfigError

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "film": 2, "good": 3}
MARKS = [{"id": 0, "content": "[PAD]"}, {"id": 1, "content": "[UNK]"}]


def folder(path: Path, vocabulary: Any, marks: Any = MARKS, **more: Any) -> Path:
    """A folder with a tokenizer, as transformers save it."""
    path.mkdir(exist_ok=True)
    content = {"added_tokens": marks, "model": {"vocab": vocabulary}, **more}
    (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = folder(tmp_path / "network", VOCABULARY)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def load(network: Path, tokenizer: object = None, **options: object) -> Config:
    data: dict[str, object] = {"name": "text", "root": "reviews.csv"}
    if tokenizer is not None:
        data["tokenizer"] = str(tokenizer)
    model = {"name": "transformers", "path": str(network), **options}
    task = {"name": "text-classification"}
    return config.load({"data": data, "model": model, "task": task})


def test_the_networks_own_tokenizer_is_taken_wherever_it_lies(
    network: Path, tmp_path: Path
) -> None:
    again = folder(tmp_path / "again", VOCABULARY, truncation={"max_length": 9})
    for path in (network, network / "tokenizer.json", again, again / "tokenizer.json"):
        assert load(network, path).data.options["tokenizer"] == str(path)


@pytest.mark.parametrize(
    ("vocabulary", "marks"),
    [
        ({**VOCABULARY, "film": 3, "good": 2}, MARKS),
        ({**VOCABULARY, "bad": 4}, MARKS),
        (VOCABULARY, [{"id": 1, "content": "[PAD]"}]),
        ([["[PAD]", 0.0], ["film", -1.5]], MARKS),
        (VOCABULARY, "none"),
    ],
)
def test_another_tokenizer_is_refused(
    vocabulary: Any, marks: Any, network: Path, tmp_path: Path
) -> None:
    other = folder(tmp_path / "other", vocabulary, marks)
    with pytest.raises(ConfigError, match=rf"data\.tokenizer: .*Set data\.tokenizer={network}\."):
        load(network, other)
    assert load(network, other, weights=False).model.options["weights"] is False


def test_words_by_hash_are_refused(network: Path) -> None:
    with pytest.raises(ConfigError, match="but got 'words', which gives others"):
        load(network)
    assert load(network, weights=False).data.name == "text"


def test_a_folder_without_a_tokenizer_says_nothing(network: Path, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", {})
    (network / "tokenizer.json").unlink()
    assert load(network, other).data.options["tokenizer"] == str(other)


def test_a_tokenizer_that_is_not_there_is_told_where_texts_are_read(network: Path) -> None:
    assert load(network, "nowhere").data.options["tokenizer"] == "nowhere"
