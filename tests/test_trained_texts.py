"""A trained network gets the words and classes that it was trained on, or says that it does not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from upslope import config, datasets, model_hub
from upslope.config.assemble import build_around
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


def test_a_tokenizer_comes_from_the_hub_as_its_model_does(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(network / "tokenizer.json"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--owner--tiny"
    for name in ("refs", "snapshots"):
        (home / name).mkdir(parents=True)
    (home / "refs" / "main").write_text("0123abcd" * 5)
    (home / "snapshots" / ("0123abcd" * 5)).symlink_to(network)
    model_hub._from_hub.cache_clear()
    try:
        load(Path("hf:owner/tiny"), "hf:owner/tiny")
        with pytest.raises(ConfigError, match=r"Set data\.tokenizer=hf:owner/tiny\."):
            load(Path("hf:owner/tiny"), folder(tmp_path / "other", {}))
        reviews = tmp_path / "reviews.csv"
        reviews.write_text("text,label\ngood film,a\nfilm,b\n", encoding="utf-8")
        splits = datasets.load("text", reviews, tokenizer="hf:owner/tiny", test_share=0.5)
        ids = sorted(part.inputs([0])[0, 0].tolist() for part in (splits.pool, splits.test))
        assert ids == [[2, 0], [3, 2]]
    finally:
        model_hub._from_hub.cache_clear()


@pytest.mark.parametrize(
    ("of_head", "warned"),
    [(["up", "down"], True), (["down", "up"], False), (["LABEL_0", "LABEL_1"], False)],
)
def test_a_head_that_knows_the_classes_in_another_order_is_told(
    of_head: list[str], warned: bool, tmp_path: Path
) -> None:
    """Its trained rows stood for the other classes, without a word."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    form = transformers.DistilBertConfig(
        vocab_size=9, dim=8, n_layers=1, n_heads=2, hidden_dim=8, id2label=dict(enumerate(of_head))
    )
    transformers.DistilBertForSequenceClassification(form).save_pretrained(tmp_path / "net")
    folder(tmp_path / "net", VOCABULARY)
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("text,label\n" + "good film,up\nfilm,down\n" * 9, encoding="utf-8")
    read = load(tmp_path / "net", tmp_path / "net")
    splits = datasets.load("text", reviews, test_share=0.5)
    assert splits.pool.classes == ("down", "up")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        build_around(read, splits)
    messages = [str(w.message) for w in told if "in another order" in str(w.message)]
    assert bool(messages) is warned
    assert all("Set data.classes=[up,down]" in message for message in messages)
