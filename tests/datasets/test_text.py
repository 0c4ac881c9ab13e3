"""Texts as token ids and masks, with a tokenizer that the publisher's library wrote."""

import json
import sys

import pytest
import torch

from upslope import datasets
from upslope.errors import ConfigError, DataError

WORDS = {"[PAD]": 3, "[UNK]": 0, "good": 1, "bad": 2, "film": 4, "[CLS]": 5}


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 5)]
    )
    folder = tmp_path / "network"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


ROWS = [
    {"text": "good film", "label": "up", "split": "train"},
    {"text": "bad", "label": "down", "split": "train"},
    {"text": "", "label": None, "split": "train"},
    {"text": "good good unseen film film film", "label": "up", "split": "test"},
]


def test_ids_and_masks(tmp_path, tokenizer):
    path = lines(tmp_path / "t.jsonl", ROWS)
    for name in (tokenizer, tokenizer / "tokenizer.json"):
        splits = datasets.load("text", path, tokenizer=str(name), length=5)
        assert splits.pool.input_shape == (2, 5)
        assert splits.pool.classes == ("down", "up")
        x = splits.pool.inputs([0, 1, 2])
        assert not x.is_floating_point()
        assert x.tolist() == [
            [[5, 1, 4, 3, 3], [1, 1, 1, 0, 0]],
            [[5, 2, 3, 3, 3], [1, 1, 0, 0, 0]],
            [[5, 3, 3, 3, 3], [1, 0, 0, 0, 0]],
        ]
        assert splits.test.inputs([0])[0, 0].tolist() == [5, 1, 1, 0, 4]  # cut at five
        assert splits.test.targets([0]).tolist() == [1]
        assert datasets.statistics(splits.pool) == ((), ())
    assert datasets.load("text", path, tokenizer=str(tokenizer)).pool.input_shape == (2, 7)


def test_csv_with_commas_and_lines_in_quotes(tmp_path, tokenizer):
    path = tmp_path / "t.csv"
    path.write_text('words,label\n"good, film",1\n"bad\nfilm",0\n' * 5, encoding="utf-8")
    splits = datasets.load("text", path, tokenizer=str(tokenizer), text="words")
    assert splits.pool.input_shape == (2, 4)  # [CLS] good [UNK] film
    assert torch.equal(splits.pool.inputs([0]), splits.pool.inputs([0]))


def test_faults_are_told(tmp_path, tokenizer, monkeypatch):
    path = lines(tmp_path / "t.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"there is no .*other"):
        datasets.load("text", path, tokenizer=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"`data.text` to name a column .* 'words'"):
        datasets.load("text", path, tokenizer=str(tokenizer), text="words")
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer in .*broken.json but reading it failed"):
        datasets.load("text", path, tokenizer=str(tmp_path / "broken.json"))
    missing = lines(tmp_path / "m.jsonl", [*ROWS, {"text": None, "label": "up", "split": "train"}])
    with pytest.raises(DataError, match=r"1 of 5 have none in `text`, first 'row-00004'"):
        datasets.load("text", missing, tokenizer=str(tokenizer))
    numbers = lines(tmp_path / "n.jsonl", [{"text": 1, "label": "up"}, {"text": 2, "label": "b"}])
    with pytest.raises(DataError, match=r"Expected texts in the column `text` .* got int64"):
        datasets.load("text", numbers, tokenizer=str(tokenizer))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r".\[text\]"):
        datasets.load("text", path, tokenizer=str(tokenizer))


def test_fractions_as_classes_of_texts_are_refused_without_an_option_that_there_is_not(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i / 2} for i in range(8)])
    with pytest.raises(
        DataError, match=r"got 0\.5\. Name another column with `data\.target`"
    ) as error:
        datasets.load("text", path)
    assert not {"kind", "decimal"} & {*datasets.options("text")}
    assert "data.kind" not in str(error.value)
