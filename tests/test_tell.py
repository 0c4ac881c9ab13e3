"""Answers of every kind told to a run, in Python and from a file."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from small_tasks import MODEL, TASK, Points
from upslope import Experiment, ExperimentSettings, Splits, TrainingSettings, read_run, strategies
from upslope.cli import app
from upslope.errors import DataError
from upslope.tasks import Segmentation

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
MASKS = RNG.integers(0, 3, (12, 5, 4)).astype(np.uint8)
SETTINGS = ExperimentSettings(initial=4, budget=2, cycles=2, candidates="all")


def pixelwise():
    return nn.Conv2d(3, 3, 1)


def masks_run(folder):
    splits = Splits.from_arrays(IMAGES, MASKS, IMAGES, MASKS, kind="masks", classes=["a", "b", "c"])
    return Experiment(
        folder,
        splits=splits,
        task=Segmentation(3, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3),
        model=pixelwise,
        strategy=strategies.build("entropy"),
        settings=SETTINGS,
        training=TrainingSettings(epochs=2, batch_size=2),
        device="cpu",
    )


def test_masks_are_told_as_arrays_and_files(tmp_path):
    with masks_run(tmp_path / "run") as run:
        first, second, third, fourth = run.ask()
        drawn = MASKS.copy()
        drawn[:, 0] = 255
        place = {i: run.splits.pool.ids.index(i) for i in (first, second, third, fourth)}
        Image.fromarray(drawn[place[second]]).save(tmp_path / "mask.png")
        run.tell({first: drawn[place[first]], second: tmp_path / "mask.png"})
        run.tell({third: torch.tensor(drawn[place[third]]), fourth: None})
        before = run.state
        run.tell({first: drawn[place[first]], second: str(tmp_path / "mask.png")})
        assert run.state == before  # the same answers again are none
        run.ask()
    with masks_run(tmp_path / "run") as run:
        labelled = run._steps.run.labelled()
        from upslope.experiment.labels import LabelledPool

        targets = LabelledPool(run.splits.pool, run.state.labels).targets(labelled)
        expected = drawn.copy()
        expected[place[fourth]] = MASKS[place[fourth]]
        assert torch.equal(targets, torch.tensor(expected[labelled]))
        corrected = np.zeros((5, 4), dtype=np.int64)
        run.tell({first: corrected})
        assert torch.equal(
            LabelledPool(run.splits.pool, run.state.labels).targets([place[first]])[0],
            torch.tensor(corrected).byte(),
        )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((4, 5), int), r"\(5, 4\), but got \(4, 5\)"),
        (np.full((5, 4), 3), r"classes 0 to 2, and 255 .* got \[3\]"),
        (np.zeros((5, 4)), "whole numbers"),
        ("no-such-file.png", "array .* or the path of a file"),
        (Image.new("RGB", (4, 5)), "mode RGB"),
    ],
)
def test_masks_that_are_none_are_refused(answer, message, tmp_path):
    with masks_run(tmp_path) as run:
        asked = run.ask()
        with pytest.raises(DataError, match=message):
            run.tell({asked[0]: answer})
        assert not run.state.labels


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def waiting(tmp_path):
    """A run that waits for labels: (its folder, the ids asked)."""
    rows = "".join(f"{i},{i % 7},{'' if i < 30 else 'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("id,x,label\n" + rows)
    options = ["experiment.initial=4", "experiment.budget=2", "experiment.cycles=2"]
    given = ["data.name=table", f"data.root={tmp_path / 't.csv'}", "data.classes=[a,b]", *options]
    assignments = [part for one in (*given, "training.epochs=1") for part in ("-s", one)]
    command = ["run", *assignments, "-s", "model.name=mlp", "--out", tmp_path / "run"]
    assert call(*command, "--strategy", "margin")[0] == 7
    return tmp_path / "run", read_run(tmp_path / "run").pending


def test_a_file_is_told_and_told_again(waiting, tmp_path):
    run, asked = waiting
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n{asked[0]},a\n{asked[1]},1\n{asked[2]},skip: torn\n")
    code, out, err = call("tell", run, file)
    assert code == 0, err
    assert "recorded: 2 labels, 1 skipped" in out
    assert "1 sample waits" in out
    told = read_run(run)
    assert dict(told.labels) == {asked[0]: 0, asked[1]: 1}
    assert told.passed == {asked[2]: "torn"}
    code, out, _ = call("tell", run, file)
    assert code == 0
    assert "nothing new" in out
    assert read_run(run).labels == told.labels
    file.write_text(f"id,label\n{asked[0]},b\n")
    assert "recorded: 1 correction" in call("tell", run, file)[1]
    assert read_run(run).labels[asked[0]] == 1


def test_what_is_taken_back_and_what_is_not(waiting, tmp_path):
    run, asked = waiting
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n{asked[0]},a\n{asked[1]},skip\n")
    assert call("tell", run, file)[0] == 0
    file.write_text(f"id,label\n{asked[0]},\n{asked[1]},\n{asked[2]},\n")
    code, out, err = call("tell", run, file)
    assert code == 0, err
    words = " ".join(out.split())
    assert f"2 rows of labels.csv had no answer, first '{asked[0]}'" in words
    assert "the recorded one stands. To withdraw it, write `take back`" in words
    assert dict(read_run(run).labels) == {asked[0]: 0}
    file.write_text(f"id,label\n{asked[0]},take back\n{asked[1]},take back\n")
    assert "recorded: 2 taken back" in call("tell", run, file)[1]
    code, out, err = call("tell", run, file)  # the same file may be given again
    assert code == 0, err
    assert "nothing new" in out
    file.write_text(f"id,label\n{asked[2]},take back\n")
    code, _, err = call("tell", run, file)
    assert code == 3
    assert "to have an answer to take back but it has none" in err
    for text in ("", "id,label,label\n", f"id,label\n{asked[0]},a,b\n", 'id,label\n"x\n'):
        file.write_text(text)
        code, _, err = call("tell", run, file)
        assert code == 3
        assert "writes it anew" not in err


def test_what_was_never_asked_is_refused_and_nothing_recorded(waiting, tmp_path):
    run, asked = waiting
    never = next(i for i in map(str, range(30)) if i not in asked)
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n{asked[0]},a\n{never},a\n{asked[1]},c\n")
    code, _, err = call("tell", run, file)
    assert code == 3
    assert f"row 3: expected the id of a sample that was asked but got '{never}'" in err
    assert "row 4" in err
    assert not read_run(run).labels
    assert call("tell", tmp_path / "nowhere", file)[0] == 6


def test_a_run_of_python_says_so(tmp_path):
    points = Splits(Points(20), Points(8, seed=1))
    with Experiment(
        tmp_path / "run", splits=points, task=TASK, model=partial(MODEL), device="cpu",
        strategy=strategies.build("margin"), settings=SETTINGS,
    ) as run:  # fmt: skip
        run.ask()
    (tmp_path / "labels.csv").write_text("id,label\np0001,left\n")
    code, _, err = call("tell", tmp_path / "run", tmp_path / "labels.csv")
    assert code == 2
    assert "begun in Python without" in err
