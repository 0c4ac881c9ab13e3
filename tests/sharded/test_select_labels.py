"""`upslope select` from a folder of scores, by a strategy that reads which class a label is."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shards_to_write import write_parquet
from test_score_command import STATISTICS, checkpoint, score, select
from test_score_shards import scorer

from upslope import strategies
from upslope.errors import RunError
from upslope.files import read_digested_json, write_digested_json
from upslope.pool import PoolView
from upslope.scoring.shards import RECORD, SIGNALS
from upslope.signal_store import SignalStore

__all__ = ["checkpoint"]

CLASSES = ("ape", "bee", "cat", "dog")


@pytest.fixture
def scored(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder of scores that knows the classes, with the signals of `dcom`."""
    out = tmp_path / "scores"
    given = ("--data", str(write_parquet(tmp_path / "pool")), "--out", str(out), *STATISTICS)
    assert "15 samples scored" in score(checkpoint, *given, "--keep", "dcom")
    write_digested_json(
        out / RECORD, {**(read_digested_json(out / RECORD) or {}), "classes": CLASSES}
    )
    assert "0 of" in score(checkpoint, *given, "--keep", "dcom")  # the record may hold more
    return out


def write_labels(path: Path, answers: dict[str, str]) -> Path:
    path.write_text("id,label\n" + "".join(f"{id_},{a}\n" for id_, a in answers.items()))
    return path


def test_classes_are_read_by_name_and_by_number(scored: Path, tmp_path: Path) -> None:
    store = SignalStore(scored / SIGNALS)
    ids = store.ids(range(len(store)))
    answers = {ids[1]: "bee", ids[4]: "2", ids[9]: "skip", ids[12]: "dog"}
    sheet = write_labels(tmp_path / "labels.csv", answers)
    told = select(scored, tmp_path / "ask.csv", "-k", "6", "--strategy", "dcom",
                  "--labelled", str(sheet))  # fmt: skip
    assert "3 labelled before" in told
    strategy = strategies.build("dcom")
    free = [i for i in range(15) if ids[i] not in answers]
    view = PoolView(
        [ids[i] for i in free],
        {n: store.rows(replace(n, labelled=False), free) for n in strategy.needs},
        [ids[1], ids[4], ids[12]],
        {n: store.rows(replace(n, labelled=False), [1, 4, 12]) for n in strategy.needs},
        torch.tensor([1, 2, 3]),
    )
    expected = strategy.select(view, 6, torch.Generator()).ids
    lines = (tmp_path / "ask.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == list(expected)


def test_what_is_no_class_is_told_with_its_row(scored: Path, tmp_path: Path) -> None:
    store = SignalStore(scored / SIGNALS)
    sheet = write_labels(tmp_path / "labels.csv", {store.ids([3])[0]: "cow"})
    given = ("-k", "2", "--labelled", str(sheet), "--strategy")
    assert "row 2" in select(scored, tmp_path / "ask.csv", *given, "dcom")
    assert select(scored, tmp_path / "ask.csv", *given, "core-set").startswith("0 ")


def test_labels_need_the_names_of_classes(scored: Path, tmp_path: Path) -> None:
    record = read_digested_json(scored / RECORD) or {}
    write_digested_json(scored / RECORD, {k: v for k, v in record.items() if k != "classes"})
    store = SignalStore(scored / SIGNALS)
    sheet = write_labels(tmp_path / "labels.csv", {store.ids([3])[0]: "cat"})
    given = ("-k", "2", "--strategy", "dcom")
    told = select(scored, tmp_path / "ask.csv", *given, "--labelled", str(sheet))
    assert told.startswith("2 ")
    assert "Expected the names of the classes" in told
    assert select(scored, tmp_path / "ask.csv", *given).startswith("0 ")


def test_classes_are_recorded_and_other_classes_refused(tmp_path: Path) -> None:
    one = replace(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out"), classes=CLASSES)
    one.prepare()
    assert (read_digested_json(tmp_path / "out" / RECORD) or {})["classes"] == list(CLASSES)
    replace(one, classes=()).prepare()
    with pytest.raises(RunError, match="classes was"):
        replace(one, classes=CLASSES[::-1]).prepare()


def test_lines_without_a_label_are_counted(scored: Path, tmp_path: Path) -> None:
    ids = SignalStore(scored / SIGNALS).ids([3, 4])
    sheet = write_labels(tmp_path / "labels.csv", {ids[0]: "cat", ids[1]: ""})
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command tells them
        told = select(scored, tmp_path / "ask.csv", "-k", "2", "--strategy", "core-set",
                      "--labelled", str(sheet))  # fmt: skip
    assert f"labels.csv have no label, first {ids[1]!r}" in told
    assert "1 of 2 lines of" in told
    assert "1 labelled before" in told


def test_a_score_that_was_not_computed_is_told_with_how_it_is(scored: Path, tmp_path: Path) -> None:
    told = select(scored, tmp_path / "ask.csv", "-k", "2", "--strategy", "egl-rms")
    assert told.startswith("2 ")
    assert "but got 'egl-rms', a score that was not computed" in told
    assert "--out FOLDER --scores entropy-gradnorm,egl-rms`." in told
