"""The tokenizer of our own: what a word is, its number, and the data set `data.text` with it."""

import hashlib

import numpy as np
import pytest

from upslope import datasets
from upslope.datasets.words import cut_words, hash_word
from upslope.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Good film, really!", ["good", "film", ",", "really", "!"]),
        ("don't  pay\t$5\n", ["don", "'", "t", "pay", "$", "5"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ﬁlm ｆｉｌｍ", ["film", "film"]),  # one letter for f and i; full width
        ("cafe\u0301 café", ["café", "café"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("好电影 ok", ["好", "电", "影", "ok"]),
        ("映画だ。", ["映", "画", "だ", "。"]),
        ("", []),
        (" \u200b\n", []),
    ],
)
def test_words(text, words):
    assert cut_words(text) == words


def test_numbers_are_the_same_on_every_machine():
    digest = hashlib.blake2b(b"film", digest_size=8).digest()
    assert hash_word("film") == 1 + int.from_bytes(digest, "big") % (2**31 - 1)
    numbers = [hash_word(f"word{i}") for i in range(20_000)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 1
    assert max(numbers) < 2**31


def test_texts_need_no_file_for_their_words(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "text,label,split\nGood film,up,train\n  ,down,train\na b c d e,up,train\nBad,NA,train\n"
        "good FILM,up,test\n",
        encoding="utf-8",
    )
    splits = datasets.load("text", path, length=4)
    assert splits.pool.input_shape == (2, 4)
    good, film = hash_word("good"), hash_word("film")
    assert splits.pool.inputs([0, 1]).tolist() == [
        [[good, film, 0, 0], [1, 1, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert splits.pool.inputs([2])[0, 0].tolist() == [hash_word(c) for c in "abcd"]
    assert datasets.class_counts(splits.pool) == {"down": 1, "up": 2}
    assert splits.notes[0].startswith("1 of 5 rows are unlabelled: their label is 'NA' (1)")
    assert splits.notes[1].startswith("1 of 5 texts are longer than 4 tokens, up to 5,")
    assert splits.notes[2] == "1 of 5 texts are empty, first 'row-00001'."
    assert splits.notes[3].startswith("1 of 1 test rows have the same inputs")
    # Another pool gives the same numbers to the same words.
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "film,a\nx good,b\n" * 5, encoding="utf-8")
    again = datasets.load("text", other)
    assert {film, good, hash_word("x"), 0} == set(np.unique(again.pool.inputs(range(8))[:, 0]))
    with pytest.raises(ConfigError, match=r"`data.tokenizer` to be 'words', the path of"):
        datasets.load("text", path, tokenizer="")
