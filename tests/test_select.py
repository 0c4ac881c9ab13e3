"""`upslope select` chooses with a trained network: a run's next choice, or from photographs."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from upslope import datasets, query, read_run, tasks
from upslope.cli import app


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_help_says_what_to_do():
    code, text, _ = call("select", "--help")
    assert code == 0
    for word in ("--data", "--labelled", "--budget", "--strategy", "--out", "model.name=nets:make"):
        assert word in text, word
    assert "select" in call("--help")[1]


def test_a_run_is_asked_for_its_next_choice(tmp_path):
    run = tmp_path / "run"
    given = [
        "data.limit=150", "data.test_limit=20", "training.epochs=2", "experiment.initial=20",
        "experiment.budget=6", "experiment.candidates=5x", "strategies=badge",
    ]  # fmt: skip
    options = [part for one in given for part in ("-s", one)]
    command = ["run", *options, "--strategy", "badge", "--seeds", "[4]", "--out", run]
    assert call(*command, "-s", "experiment.cycles=2")[0] == 0
    folder = next(run.rglob("*.sqlite")).parent
    code, text, err = call("select", folder, "--budget", 6, "--out", tmp_path / "ask.csv")
    assert code == 0, err
    assert "6 of 30 candidates chosen by badge, 26 labelled before" in text
    chosen = rows(tmp_path / "ask.csv")
    assert call(*command, "-s", "experiment.cycles=3")[0] == 0
    asked = read_run(folder).cycles[1]
    assert [row["id"] for row in chosen] == list(asked.asked)
    assert [float(row["score"]) for row in chosen] == list(asked.scores)
    assert [row["rank"] for row in chosen] == list("123456")
    assert {row["label"] for row in chosen} == {""}


MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder of images, a network in a file of its own, and its weights."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02d}.png")
    (tmp_path / "nets_of_select.py").write_text(
        "from torch import nn\n\n"
        "def make(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), "
        "nn.Linear(8, num_classes))\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    yield model
    sys.modules.pop("nets_of_select", None)


COMMAND = (
    "select", "w.pt", "--data", "photos", "-s", "model.name=nets_of_select:make",
    "-s", f"data.mean={MEAN}", "-s", f"data.std={STD}", "--budget", 5,
)  # fmt: skip


def test_photographs_and_a_network_of_ones_own(photographs, tmp_path):
    (tmp_path / "labels.csv").write_text("id,label\n03.png,0\n07.png,2\n11.png,skip: blurred\n")
    code, text, err = call(*COMMAND, "--labelled", "labels.csv")
    assert code == 0, err
    assert "5 of 21 candidates chosen by u-herding, 2 labelled before: ask.csv" in text
    pool = datasets.load_to_score("folder", "photos")
    expected = query(
        photographs,
        pool,
        5,
        labelled={"03.png": 0, "07.png": 2},
        without=["11.png"],
        task=tasks.build("classification", num_classes=3, mean=MEAN, std=STD),
    )
    chosen = rows(tmp_path / "ask.csv")
    assert [row["id"] for row in chosen] == list(expected.ids)
    assert [float(row["score"]) for row in chosen] == list(expected.scores)
    assert {row["path"] for row in chosen} == {f"photos/{row['id']}" for row in chosen}
    assert not {"03.png", "07.png", "11.png"} & set(expected.ids)


def test_images_that_nothing_says_how_to_normalise_are_told(photographs):
    command = ("select", "w.pt", "--data", "photos", "--budget", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = call(*command, "-s", "model.name=nets_of_select:make")
    assert code == 0, err
    assert "Nothing says by which mean and std" in " ".join(err.split())


def test_the_command_of_the_page_runs(photographs, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```\nupslope (select.*?)^```", page, re.S | re.M)
    (options,) = re.findall(r"`(--strategy '\{.*?\}')`", page)
    (tmp_path / "labels.csv").write_text("id,label\n03.png,0\n07.png,2\n")
    command = command.replace("nets:make", "nets_of_select:make").replace("=224", "=6")
    words = shlex.split(command.replace("\\\n", ""))
    code, text, err = call(*words, "--budget", 5)
    assert code == 0, err
    assert "5 of 22 candidates chosen by u-herding, 2 labelled before: ask.csv" in text
    code, _, err = call(*words, "--budget", 5, *shlex.split(options))
    assert code == 0, err


def test_the_names_of_the_classes_are_those_given(photographs, tmp_path):
    (tmp_path / "labels.csv").write_text("id,label\n03.png,cat\n07.png,eel\n")
    (tmp_path / "numbers.csv").write_text("id,label\n03.png,0\n07.png,2\n")
    named = [*COMMAND, "-s", "data.classes=[cat,dog,eel]", "--strategy", "isal"]
    code, _, err = call(*named, "--labelled", "labels.csv")
    assert code == 0, err
    first = rows(tmp_path / "ask.csv")
    assert call(*COMMAND, "--strategy", "isal", "--labelled", "numbers.csv")[0] == 0
    assert rows(tmp_path / "ask.csv") == first
    code, _, err = call(*COMMAND, "-s", "data.classes=[cat,dog]", "--labelled", "labels.csv")
    assert code == 4
    assert "number of classes" in " ".join(err.split())


def test_the_file_it_writes_is_read_once_filled_in(photographs, tmp_path):
    assert call(*COMMAND, "--strategy", "{name: random}", "--seed", 3)[0] == 0
    first = rows(tmp_path / "ask.csv")
    assert "score" not in first[0]
    text = (tmp_path / "ask.csv").read_text()
    (tmp_path / "filled.csv").write_text(text.replace(",,random", ",1,random"))
    code, _, err = call(*COMMAND, "--labelled", "filled.csv", "--out", "next.csv")
    assert code == 0, err
    assert not {r["id"] for r in first} & {r["id"] for r in rows(tmp_path / "next.csv")}


@pytest.mark.parametrize("as_labels", [True, False])
def test_answers_are_not_written_over(photographs, tmp_path, as_labels):
    """The sheet that people filled in was gone as it was given back, at the name by default."""
    assert call(*COMMAND, "--strategy", "random")[0] == 0
    sheet = tmp_path / "ask.csv"
    filled = sheet.read_text().replace(",,random", ",1,random", 1)
    sheet.write_text(filled)
    code, _, err = call(*COMMAND, *(["--labelled", "ask.csv"] if as_labels else []))
    assert code == 2
    assert "or a sheet without answers, but there is one with 1 answer" in " ".join(err.split())
    assert sheet.read_text() == filled


def test_files_of_another_kind_are_not_written_over(photographs, tmp_path):
    (tmp_path / "ask.csv").write_text("name,price\nsugar,3\n")
    code, _, err = call(*COMMAND)
    assert code == 2
    assert "a file of another kind" in err
    assert (tmp_path / "ask.csv").read_text() == "name,price\nsugar,3\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--out", "ask.txt"], 2, "--out to end in .csv"),
        (["--strategy", "u-herdin"], 2, "did you mean `u-herding`"),
        (["--strategy", "ll4al"], 2, "ll4al needs what is trained along"),
        (["--budget", 25], 5, "between 1 and the 24 unlabelled samples of the pool but got 25"),
        (["--labelled", "none.csv"], 3, "none.csv"),
        (["--labelled", "strange.csv"], 3, "row 2: expected the id of a sample"),
        (["--labelled", "wrong.csv"], 3, "row 2, '03.png': .* between 0 and 2, but got 3"),
        (["--data", "elsewhere"], 3, "no such path: elsewhere"),
        (["--candidates", "some"], 2, "`candidates`"),
    ],
)
def test_what_cannot_be_is_said(photographs, tmp_path, options, code, message):
    (tmp_path / "strange.csv").write_text("id,label\nthree,1\n")
    (tmp_path / "wrong.csv").write_text("id,label\n03.png,3\n")
    exit_code, _, err = call(*COMMAND, *options)
    assert exit_code == code, err

    assert re.search(message, " ".join(err.split())), err


def test_a_checkpoint_alone_does_not_say_what_to_choose_from(photographs):
    code, _, err = call("select", "w.pt", "-s", "model.name=nets_of_select:make")
    assert code == 2
    assert "Expected --data" in err


def test_a_checkpoint_copied_below_a_run_is_one_from_elsewhere(photographs, tmp_path):
    folder = tmp_path / "run" / "exported"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "ledger.sqlite").touch()
    shutil.copy("w.pt", folder)
    code, _, err = call("select", folder / "w.pt", *COMMAND[2:])
    assert code == 0, err


@pytest.mark.filterwarnings("ignore:.*23.png")
def test_a_run_that_leaves_out_what_is_torn_is_asked_again(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:60])
    options = [
        "data=folder", f"data.root={tmp_path / 'photos'}", "data.test_share=0.25",
        "training.epochs=1", "experiment.initial=4", "experiment.budget=2", "experiment.cycles=1",
        "experiment.on_corrupt=skip",
    ]  # fmt: skip
    sets = [part for one in options for part in ("-s", one)]
    code, _, err = call("run", *sets, "--strategy", "random", "--out", tmp_path / "run")
    assert code == 0, err
    folder = next((tmp_path / "run").rglob("*.sqlite")).parent
    code, _, err = call("select", folder, "-k", 2, "--out", tmp_path / "ask.csv")
    assert code == 0, err
