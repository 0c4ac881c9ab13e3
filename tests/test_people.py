"""From nothing labelled to the second batch, by the command line and a file to fill in."""

from __future__ import annotations

import codecs
import csv
import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from upslope import compare, datasets, models, strategies, tasks
from upslope.cli import app
from upslope.cli.sitting import WAITING
from upslope.errors import ConfigError, DataError
from upslope.experiment.sheet import ANEW, Question, read_sheet, write_sheet
from upslope.ledger import read_run
from upslope.signals import contrastive
from upslope.tasks.answers import class_answer, class_label, label_set_answer, numbers_answer

Rows = list[dict[str, str]]
QUICK = ["-s", "training.epochs=30", "-s", "training.batch_size=8", "--device", "cpu"]
SMALL = ["-s", "experiment={initial: 6, budget: 4, cycles: 3}"]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def photographs(folder: Path, count: int = 40) -> None:
    """Bright and dark pictures, loose and one folder down."""
    rng = np.random.default_rng(0)
    (folder / "trip").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 90, (12, 12, 3)) + (150 if is_bright(f"{i}.png") else 0)
        name = f"trip/{i}.png" if i % 4 == 0 else f"{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)


def is_bright(id_: str) -> bool:
    return int(Path(id_).stem) % 3 == 0


def rows_of(sheet: Path) -> Rows:
    with sheet.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def fill(sheet: Path, answer: Callable[[str], str], first: int = 10**9) -> None:
    rows = rows_of(sheet)
    for row in rows[:first]:
        row["label"] = answer(row["id"])
    save(sheet, rows)


def save(sheet: Path, rows: Rows, delimiter: str = ",") -> None:
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def brightness(id_: str) -> str:
    return "bright" if is_bright(id_) else "dark"


@pytest.fixture
def command(tmp_path: Path) -> list[Any]:
    photographs(tmp_path / "photos")
    return [
        *("run", "-s", "data={name: folder, classes: [dark, bright]}", "--out", tmp_path / "run"),
        *("-s", f"data.root={tmp_path / 'photos'}", "-s", "model={name: mlp, hidden: 16}"),
        *QUICK,
        *SMALL,
    ]


def test_photographs_from_nothing_to_the_end_and_on(command: list[Any], tmp_path: Path) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    code, out, err = call(*command)
    assert code == WAITING == 7, err
    assert f"6 samples wait for a label: {sheet}" in out
    assert "dark, bright or `skip`" in out
    assert "no test set" in out
    rows = rows_of(sheet)
    assert list(rows[0]) == ["id", "path", "label", "why"]
    assert [row["label"] for row in rows] == [""] * 6
    assert all(Path(row["path"]).is_file() and row["path"].endswith(row["id"]) for row in rows)
    assert {row["why"] for row in rows} == {"initial set, at random"}

    before = sheet.read_bytes()
    assert call(*command)[0] == WAITING  # nothing filled in: nothing happens
    assert sheet.read_bytes() == before

    fill(sheet, brightness, first=2)
    code, out, _ = call(*command)
    assert code == WAITING
    assert "recorded: 2 labels" in out
    assert [row["id"] for row in rows_of(sheet)] == [row["id"] for row in rows[2:]]

    left = rows_of(sheet)
    fill(sheet, lambda i: "skip: blurred" if i == left[0]["id"] else brightness(i))
    code, out, _ = call(*command)
    assert "recorded: 3 labels, 1 skipped" in out
    (another,) = rows_of(sheet)
    assert another["id"] not in {row["id"] for row in rows}

    fill(sheet, brightness)
    code, out, _ = call(*command)
    assert code == WAITING
    assert "cycle 1 of 3: accuracy 100.0% on the labelled set; there is no test set" in out
    second = rows_of(sheet)
    assert len(second) == 4
    assert second[0]["why"].startswith("margin, rank 1 of 4, score ")

    code, out, _ = call("status", tmp_path / "run")
    assert code == 0
    assert "1 of 3 finished" in out
    assert "6, 4 asked and waiting, 1 skipped" in out
    assert f"fill in the column `label` of {sheet}" in out
    (found,) = json.loads(call("status", tmp_path / "run", "--json")[1])
    assert (found["cycles_done"], found["labels"], found["waiting"]) == (1, 6, 4)
    assert found["to_label"] == str(sheet)
    assert (found["test"], found["training"]) == (None, 1.0)

    for _ in range(2):
        fill(sheet, brightness)
        code, out, err = call(*command)
    assert code == 0, err
    assert not sheet.exists()
    assert "3 of 3 finished" in out
    run = read_run(tmp_path / "run")
    assert [c.n_labelled for c in run.cycles] == [6, 10, 14]
    assert [run.info["classes"][label] for label in run.labels.values()] == [
        brightness(i) for i in run.labels
    ]

    code, out, _ = call(*command, "-s", "experiment.cycles=4")
    assert code == WAITING
    assert "changed: from cycle 4 on, experiment.cycles 3 -> 4" in out
    Image.new("RGB", (12, 12)).save(tmp_path / "photos" / "99.png")
    code, out, _ = call(*command, "-s", "experiment.cycles=4")
    assert "the pool has 1 sample more" in out


def test_a_run_from_nothing_scores_and_predicts(command: list[Any], tmp_path: Path) -> None:
    call(*command)
    fill(tmp_path / "run" / "to-label.csv", brightness)
    call(*command)
    predicted, scored = tmp_path / "p.csv", tmp_path / "s.csv"
    code, _, err = call("predict", tmp_path / "run", "--out", predicted)
    assert code == 0, err
    rows = rows_of(predicted)
    assert len(rows) == 40
    assert all(row["class"] == brightness(row["id"]) for row in rows)
    code, _, err = call("score", tmp_path / "run", "--scores", "margin", "--out", scored)
    assert code == 0, err
    assert {row["id"] for row in rows_of(scored)} == {row["id"] for row in rows}


def test_wrong_words_are_told_by_row_and_nothing_is_lost(
    command: list[Any], tmp_path: Path
) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    call(*command)
    rows = rows_of(sheet)
    for row, word in zip(rows, ("drak", "dark", "2", "", "skipped", "Bright"), strict=True):
        row["label"] = word
    rows.append({**rows[0], "id": "stranger.png"})
    rows.append({**rows[1], "label": "bright"})
    save(sheet, rows)
    before = sheet.read_bytes()
    code, _, err = call(*command)
    assert code == 3
    for words in (
        f"row 2, '{rows[0]['id']}': Expected one of the classes 'dark', 'bright' but got 'drak'",
        f"row 4, '{rows[2]['id']}'",
        f"row 6, '{rows[4]['id']}'",
        f"row 7, '{rows[5]['id']}'",
        "row 8: expected the id of a sample that was asked but got 'stranger.png'",
        f"row 9: '{rows[1]['id']}' is there before, with the label 'dark'",
    ):
        assert words in err
    assert "row 3" not in err
    assert "row 5" not in err
    assert sheet.read_bytes() == before
    assert read_run(tmp_path / "run").labels == {}


def test_an_earlier_answer_is_corrected_by_a_line_of_its_own(
    command: list[Any], tmp_path: Path
) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    call(*command)
    rows = rows_of(sheet)
    fill(sheet, brightness)
    call(*command)
    first = rows[0]["id"]
    other = "dark" if is_bright(first) else "bright"
    save(sheet, [*rows_of(sheet), {**rows[0], "label": other}], delimiter=";")
    code, out, _ = call(*command)
    assert code == WAITING
    assert "recorded: 1 correction\n" in out
    run = read_run(tmp_path / "run")
    assert run.info["classes"][run.labels[first]] == other


def test_the_first_set_by_a_strategy_that_needs_no_labels(
    command: list[Any], tmp_path: Path
) -> None:
    code, _, err = call(
        *command, "-s", "experiment.start={name: typiclust, steps: 2, features: contrastive}"
    )
    assert code == WAITING, err
    assert {row["why"] for row in rows_of(tmp_path / "run" / "to-label.csv")} == {
        "initial set, typiclust"
    }
    for wrong in ("margin", "tcm", "u-herding", "nothing"):
        code, _, err = call(*command, "-s", f"experiment.start={wrong}", "--dry-run")
        assert code == 2
        assert "start" in err
    code, _, err = call(*command)
    assert code == 6
    assert "experiment.start" in err


def test_a_skip_in_such_a_first_set_learns_no_features_again(
    command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["-s", "experiment.start={name: typiclust, steps: 2}"]  # steps are of features learnt
    code, _, err = call(*command, *start)
    assert code == WAITING, err
    sheet = tmp_path / "run" / "to-label.csv"
    before = {row["id"] for row in rows_of(sheet)}
    fill(sheet, lambda _: "skip", first=2)
    # A process that begins anew holds no encoder in memory.
    monkeypatch.setattr(contrastive, "_LAST", contrastive._Last())

    def no_training(*_: object) -> None:
        raise AssertionError("features are learnt again")

    monkeypatch.setattr(contrastive, "nt_xent", no_training)
    code, _, err = call(*command, *start)
    assert code == WAITING, err
    after = {row["id"] for row in rows_of(sheet)}
    assert len(after) == 6
    assert len(after - before) == 2


def test_a_table_without_labels(tmp_path: Path) -> None:
    """Ids that a spreadsheet would take for formulas, and classes named by numbers."""
    ids = ["=1+1", "'=1+1", "+2", "-3", "@x", "a b", "7", "é"] + [f"r{i}" for i in range(30)]
    lines = [f'"{i}","-{n % 2},5",{n}' for n, i in enumerate(ids)]
    (tmp_path / "t.csv").write_text("id,x,y\n" + "\n".join(lines), encoding="utf-8")
    command = [
        *("run", "-s", f"data.root={tmp_path / 't.csv'}", "-s", "data.name=table", *QUICK),
        *("-s", 'data.classes=["1","2"]', "-s", "model={name: mlp, hidden: 8}"),
        *("-s", "data.decimal=comma"),
        *("--out", tmp_path / "run", "-s", "experiment={initial: 36, budget: 1, cycles: 2}"),
    ]
    code, _, err = call(*command)
    assert code == WAITING, err
    sheet = tmp_path / "run" / "to-label.csv"
    rows = rows_of(sheet)
    assert list(rows[0]) == ["id", "label", "why", "x", "y"]  # the row itself is shown
    assert all(row["y"] == str(ids.index(unsafe(row["id"]))) for row in rows)
    assert not [row["id"] for row in rows if row["id"][0] in "=+-@"]
    assert {row["x"] for row in rows} == {"-0,5", "-1,5"}  # numbers are shown as they are
    for row in rows:
        row["label"] = "1"
    save(sheet, rows)
    code, _, err = call(*command)
    assert code == WAITING, err
    labels = read_run(tmp_path / "run").labels
    assert len(labels) == 36
    assert set(labels) <= set(ids)
    assert set(labels.values()) == {0}


def unsafe(cell: str) -> str:
    """The id in a cell, by the rule that the documentation states."""
    return cell[1:] if cell.startswith("'") else cell


def test_masks_that_appear_beside_the_images_are_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "cells"
    (root / "images" / "unlabelled").mkdir(parents=True)
    (root / "classes.csv").write_text("name,id\nground,0\ndisc,1\n")
    for i in range(12):
        pixels = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / "unlabelled" / f"{i}.png")
    command = [
        *("run", "-s", "data.name=mask-folder", "-s", f"data.root={root}", *QUICK),
        *("-s", "task=segmentation", "-s", "model={name: dilated-small, width: 4}"),
        *("-s", "training.epochs=1", "-s", "experiment={initial: 4, budget: 2, cycles: 2}"),
        *("--strategy", "entropy", "--out", tmp_path / "run"),
    ]
    code, out, err = call(*command)
    assert code == WAITING, err
    assert "masks/unlabelled/<name>.png" in " ".join(out.split())
    sheet = tmp_path / "run" / "to-label.csv"
    rows = rows_of(sheet)

    def draw(id_: str) -> None:
        target = root / "masks" / f"{id_}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.random((16, 16)) > 0.5).astype(np.uint8)).save(target)

    draw(rows[0]["id"])
    rows[1]["label"] = "ground"
    save(sheet, rows)
    code, _, err = call(*command)
    assert code == 3
    assert "Draw the mask into the data set" in err
    rows[1]["label"] = "skip"
    save(sheet, rows)
    code, out, err = call(*command)
    assert code == WAITING, err
    assert "recorded: 1 skipped, 1 label that the data set has itself" in out
    draw(rows[1]["id"])  # the one skipped: taken once its row says so
    assert "recorded: " not in call(*command)[1]
    save(sheet, [*rows_of(sheet), {**rows[1], "label": ""}])
    assert "recorded: 1 label (1 skipped before" in call(*command)[1]
    for row in rows_of(sheet):
        draw(row["id"])
    code, out, err = call(*command)
    assert code == WAITING, err
    run = read_run(tmp_path / "run")
    assert run.cycles[0].n_labelled == 5
    assert list(run.labels.values()) == [None] * 5
    assert len(run.pending) == 2


def test_a_broken_mask_is_told_and_not_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "cells"
    for kind in ("images", "masks"):
        (root / kind / "unlabelled").mkdir(parents=True)
    (root / "classes.csv").write_text("name,id\nground,0\ndisc,1\n")
    for i in range(4):
        Image.new("RGB", (8, 8)).save(root / "images" / "unlabelled" / f"{i}.png")
        Image.new("L", (8, 8), 9).save(root / "masks" / "unlabelled" / f"{i}.png")
    code, _, err = call(
        *("run", "-s", "data.name=mask-folder", "-s", f"data.root={root}", "--strategy", "random"),
        *("-s", "task=segmentation", "-s", "model={name: dilated-small, width: 4}", *QUICK),
        *("-s", "experiment={initial: 2, cycles: 1}", "--out", tmp_path / "run"),
    )
    assert code == 3
    assert "but got 9" in err


def test_comparisons_and_several_seeds_ask_nobody(command: list[Any], tmp_path: Path) -> None:
    code, _, err = call("compare", *command[1:])
    assert code == 2
    assert "each of the 40 samples of the pool to have a label" in err
    assert "40 have none, first '1.png'. Take `upslope run`" in err
    table = tmp_path / "t.csv"
    table.write_text("x,label\n" + "".join(f"{i},{'ab'[i % 2] * (i != 7)}\n" for i in range(30)))
    splits = datasets.load("table", root=table)
    with pytest.raises(ConfigError, match=r"1 has none, first 'row-00007'. Take `upslope run`"):
        compare(
            tmp_path / "c",
            strategies={"margin": strategies.build("margin")},
            seeds=[0],
            splits=splits,
            task=tasks.build("classification", num_classes=2),
            model=partial(models.build, "mlp", num_classes=2, input_shape=(1,)),
        )
    assert not (tmp_path / "c").exists()
    code, _, err = call(*command, "--seeds", "2")
    assert code == 2
    assert "one strategy and one seed" in err
    assert not (tmp_path / "run").exists()


def test_status_of_a_comparison_and_of_nothing(tmp_path: Path) -> None:
    code, _, err = call(
        *("compare", "--strategies", "random,margin", "--out", tmp_path / "c", "--device", "cpu"),
        *("-s", "data.limit=60", "-s", "data.test_limit=20", "-s", "model={name: mlp, hidden: 8}"),
        *("-s", "training.epochs=1", "-s", "experiment.cycles=2"),
    )
    assert code == 0, err
    code, out, _ = call("status", tmp_path / "c")
    assert code == 0
    assert out.count("2 of 2 finished") == 2
    assert "on the test set" in out
    assert "not fitted" in out
    found = json.loads(call("status", tmp_path / "c", "--json")[1])
    assert [one["strategy"] for one in found] == ["margin", "random"]
    assert all(one["finished"] for one in found)
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nowhere"):
        code, _, err = call("status", tmp_path / nothing)
        assert code == 6


def test_unlabelled_folders_tables_and_what_they_refuse(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 8)
    (tmp_path / "photos" / "run").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "photos" / "run" / "curves.png")
    (tmp_path / "photos" / "run" / "ledger.sqlite").touch()  # a run's pictures are no samples
    splits = datasets.load("folder", root=tmp_path / "photos", classes=["dark", "bright"])
    assert splits.pool.classes == ("dark", "bright")
    assert len(splits.pool) == 8
    assert len(splits.test) == 0
    with pytest.raises(DataError, match="must give it"):
        splits.pool.targets([0])
    for wrong in ([0, 1], [True, False], ["a"], ["a", "a"], ["a", " "], []):
        with pytest.raises(ConfigError, match="classes"):
            datasets.load("folder", root=tmp_path / "photos", classes=wrong)
    (tmp_path / "photos" / "dark").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "photos" / "dark" / "1.png")
    with pytest.raises(DataError, match="lies beside"):
        datasets.load("folder", root=tmp_path / "photos", classes=["dark", "bright"])
    table = tmp_path / "t.csv"
    table.write_text("x,label\n1,\n2,dark\n3,\n4,\n")
    splits = datasets.load("table", root=table, classes=["dark", "bright"])
    assert splits.pool.classes == ("dark", "bright")
    assert (len(splits.pool), len(splits.test)) == (4, 0)
    table.write_text("x,label\n1,\n2,dusk\n3,\n4,\n")
    with pytest.raises(DataError, match="dusk"):
        datasets.load("table", root=table, classes=["dark", "bright"])
    with pytest.raises(DataError, match=r"data\.classes"):
        datasets.load("table", root=table)


def test_sheets_are_read_as_spreadsheets_save_them(tmp_path: Path) -> None:
    sheet, classes = tmp_path / "s.csv", ("cat", "dog", "=x")

    def read(text: str) -> Any:
        answer = class_answer(text, classes)
        class_label(answer, classes)
        return answer

    write_sheet(sheet, [Question(i, why="w") for i in ("a", "=b", "'=b", "c d", "e", "f")])
    text = sheet.read_text().replace(",,", ",dog,", 3).replace(",,", ",SKIP : torn ,", 1)
    text = text.replace("e,,", "e,1,").replace("f,,", "f,'=x,")
    for variant in (text, "\ufeff" + text, text.replace(",", ";"), text.replace("\n", "\r\n")):
        sheet.write_text(variant, encoding="utf-8", newline="")
        found = read_sheet(sheet, ["a", "=b", "'=b", "c d", "e", "f"], classes, read)
        assert found.labels == {"a": "dog", "=b": "dog", "'=b": "dog", "e": 1, "f": "=x"}
        assert found.passed == {"c d": "torn"}
    for broken in ("", "id,why\n1,2\n", "id;label\n".encode("utf-16").decode("latin-1")):
        sheet.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match="remove the file"):
            read_sheet(sheet, ["a"], classes, read, ANEW)
    sheet.write_bytes(b"id,label\na,caf\xe9\n")
    with pytest.raises(DataError, match=r'byte 0xe9 at offset 14, line 2.*"CSV UTF-8"'):
        read_sheet(sheet, ["a"], classes, read)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("head", ["", "sep"])
def test_sheets_in_the_encodings_of_spreadsheets(
    encoding: str, delimiter: str, end: str, head: str, tmp_path: Path
) -> None:
    sheet = tmp_path / "s.csv"
    lines = ["id,label,why", "größe.png,Käfer,w", '日本,"skip: zu groß; ""dunkel""",w', ",,,"]
    text = end.join([*([f"sep={delimiter}"] if head else []), *lines]).replace(",", delimiter)
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    sheet.write_bytes(mark + text.encode(encoding))
    found = read_sheet(sheet, ["größe.png", "日本"], ("Käfer", "Maus"), str)
    assert found.labels == {"größe.png": "Käfer"}
    assert found.passed == {"日本": 'zu groß; "dunkel"'}


@pytest.mark.parametrize("encoding", ["cp1252", "mac_roman", "cp850", "latin-1", "cp1250"])
def test_a_sheet_without_utf_8_is_read_where_its_words_tell_the_encoding(
    encoding: str, tmp_path: Path
) -> None:
    sheet = tmp_path / "s.csv"
    text = "id;label;why\ngröße.png;Käfer;ü\nb;skip: trüb;x\nc;Maus;x\n"
    sheet.write_bytes(text.encode(encoding))
    with pytest.warns(UserWarning, match="is not in UTF-8. It was read as "):
        answers = read_sheet(sheet, ["größe.png", "b", "c"], ("Käfer", "Maus"), one_of_two)
    assert answers.labels == {"größe.png": "Käfer", "c": "Maus"}
    assert answers.passed == {"b": "trüb"}


def test_a_sheet_in_a_script_of_its_own_is_read_by_its_classes(tmp_path: Path) -> None:
    for encoding, names in (("cp1251", ("кошка", "собака")), ("gb18030", ("猫", "狗"))):
        sheet = tmp_path / "s.csv"
        sheet.write_bytes(f"id,label\na,{names[0]}\nb,{names[1]}\n".encode(encoding))
        with pytest.warns(UserWarning, match=encoding):
            answers = read_sheet(sheet, ["a", "b"], names, lambda t, n=names: n[class_label(t, n)])
        assert answers.labels == dict(zip("ab", names, strict=True))


@pytest.mark.parametrize(
    "row",
    [
        "a,skip: größer",  # no id and no class tells what the letters are
        "a,Köfer",
        "größer.png,Käfer",
        "a,Käfer\nb,skip: señal",  # cp1252 and cp1250 agree on the class, not on the reason
    ],
)
def test_a_sheet_whose_encoding_its_words_do_not_tell_is_refused(row: str, tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_bytes(f"id,label\n{row}\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"do not tell the encoding.*CSV UTF-8"):
        read_sheet(sheet, ["a", "b", "größe.png"], ("Käfer", "Maus"), one_of_two)


def test_a_sheet_that_excel_opened_in_a_wrong_encoding_and_saved_is_read(tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    write_sheet(sheet, [Question(id_) for id_ in ("größe.png", "Über.png", "日本.png", "b.png")])
    assert sheet.read_bytes().startswith(codecs.BOM_UTF8)  # by which Excel reads it as it is
    seen = sheet.read_bytes()[3:]
    for encoding in ("cp1252", "mac_roman"):
        # Bytes that cp1252 leaves open become the control characters of their numbers.
        shown = "".join(_read_as(bytes([byte]), encoding) for byte in seen)
        rows = [line + ("Maus" if i else "") for i, line in enumerate(shown.splitlines())]
        text = "\n".join(line.replace(",,Maus", ",Maus,") for line in rows)
        sheet.write_text(text.replace("\n\n", "\n"), encoding="utf-8-sig")
        with pytest.warns(UserWarning, match="3 ids of .* had been read in a wrong encoding"):
            answers = read_sheet(
                sheet, ["größe.png", "Über.png", "日本.png", "b.png"], ("Käfer", "Maus"), one_of_two
            )
        assert set(answers.labels) == {"größe.png", "Über.png", "日本.png", "b.png"}


def _read_as(byte: bytes, encoding: str) -> str:
    try:
        return byte.decode(encoding)
    except UnicodeDecodeError:
        return chr(byte[0])


def one_of_two(text: str) -> object:
    answer = class_answer(text, ("Käfer", "Maus"))
    class_label(answer, ("Käfer", "Maus"))
    return answer


def test_sheets_that_cannot_be_read_are_refused_by_one_error(tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    for data, words in (
        ("id,label\ngrößer,cat\n".encode("cp1252"), "byte 0xf6 at offset 11, line 2"),
        ("id,label\na,cat\n".encode("utf-16-le"), "character 2 is NUL"),
        (b"id,label\na,skip: dark, blurred\n", "row 2 has 3"),
        (b'id,label\na,"cat\nb,dog\n', "after row 1"),
        (b"id,label,LABEL\na,cat,dog\n", "one column label"),
    ):
        sheet.write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_sheet(sheet, ["a", "b", "größe"], ("cat", "dog"), str, ANEW)
        assert words in str(caught.value)
        assert "data.encoding" not in str(caught.value)
        assert "remove the file" in str(caught.value)


def test_a_skipped_sample_is_answered_after_all(command: list[Any], tmp_path: Path) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    call(*command)
    first, *_ = rows_of(sheet)
    fill(sheet, lambda i: "skip: blurred" if i == first["id"] else "")
    call(*command)
    rows = rows_of(sheet)
    assert first["id"] not in [row["id"] for row in rows]
    assert len(rows) == 6  # another took its place
    save(sheet, [{**first, "label": brightness(first["id"])}, *rows])
    code, out, err = call(*command)
    assert code == WAITING, err
    assert "recorded: 1 label (1 skipped before, beyond the cycle's count)" in out
    assert rows_of(sheet) == rows
    fill(sheet, brightness)
    call(*command)
    run = read_run(tmp_path / "run")
    assert run.cycles[0].n_labelled == 7
    assert run.passed == {}
    assert run.info["classes"][run.labels[first["id"]]] == brightness(first["id"])
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        told = db.execute("SELECT kind, body FROM events").fetchall()
    db.close()
    kinds = [kind for kind, _ in told]
    assert kinds[:7] == [
        *("pool", "asked", "passed", "asked_instead", "taken_back", "labelled", "labelled")
    ]
    assert json.loads(told[4][1])["passed"] == {first["id"]: "blurred"}


def test_answers_and_skips_are_taken_back_by_a_word(command: list[Any], tmp_path: Path) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    call(*command)
    one, two, *_ = rows_of(sheet)
    fill(sheet, lambda i: {one["id"]: brightness(i), two["id"]: "skip"}.get(i, ""))
    call(*command)
    waiting = {row["id"] for row in rows_of(sheet)}
    words = [{**one, "label": "Take back"}, {**two, "label": "take back"}]
    save(sheet, [*rows_of(sheet), *words])
    code, out, err = call(*command)
    assert code == WAITING, err
    assert "recorded: 2 taken back" in out
    assert {row["id"] for row in rows_of(sheet)} == {*waiting, one["id"]}
    run = read_run(tmp_path / "run")
    assert (run.labels, run.passed) == ({}, {})
    fill(sheet, lambda i: "skip" if i == one["id"] else "take back")
    code, _, err = call(*command)
    assert code == 3
    assert "to have an answer to take back but it has none" in err
    assert read_run(tmp_path / "run").passed == {}  # nothing of the file was recorded


def test_answers_and_rows_that_vanished_are_told(command: list[Any], tmp_path: Path) -> None:
    sheet = tmp_path / "run" / "to-label.csv"
    call(*command)
    rows = rows_of(sheet)
    fill(sheet, brightness, first=2)
    _, out, _ = call(*command)
    assert "had no" not in out
    # A spreadsheet that still shows the first file saves it: an answer emptied, two rows gone.
    save(sheet, [{**rows[0], "label": ""}, *rows[2:4]])
    code, out, _ = call(*command)
    assert code == WAITING
    assert f"2 samples that waited had no row in to-label.csv, first '{rows[4]['id']}'" in out
    assert f"1 row of to-label.csv had no answer, first '{rows[0]['id']}'" in out
    assert "take back" in out
    assert set(read_run(tmp_path / "run").labels) == {rows[0]["id"], rows[1]["id"]}
    assert [row["id"] for row in rows_of(sheet)] == [row["id"] for row in rows[2:]]


def test_ids_that_a_spreadsheet_changed_are_told(tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_text("id,label\n12,dog\n7,dog\n")
    with pytest.raises(DataError) as caught:
        read_sheet(sheet, ["0012", "0013"], ("cat", "dog"), lambda text: text)
    assert "got '12', which a spreadsheet may have made of '0012'" in str(caught.value)
    assert "got '7'\n" in str(caught.value)


def test_a_class_called_skip_and_cells_of_other_tasks(tmp_path: Path) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_text("id,label\na,skip\nb,skip:\nc,skip: no\n")
    found = read_sheet(sheet, ["a", "b", "c"], ("skip", "go"), lambda text: text)
    assert found.labels == {"a": "skip"}
    assert found.passed == {"b": "", "c": "no"}
    assert label_set_answer("red; wet", ("red", "wet")) == ["red", "wet"]
    assert label_set_answer("none", ("red", "wet")) == []
    assert label_set_answer("none", ("red", "none")) == ["none"]
    assert numbers_answer("1.5; -2", ("a", "b")) == [1.5, -2.0]
    with pytest.raises(DataError, match="decimal point"):
        numbers_answer("1,5", ("a",))
    assert class_answer("1", ("1", "2")) == "1"
    assert class_answer("1", ("cat", "dog")) == 1


def test_help_shows_how_classes_are_named() -> None:
    assert "data.classes=[cat,dog]" in " ".join(call("run", "--help")[1].split())
