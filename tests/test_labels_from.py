"""A new run that begins with the labels of an old one: what matches, and what is told."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from upslope import datasets, models, strategies, tasks
from upslope.cli import app
from upslope.cli.sitting import WAITING
from upslope.errors import DataError
from upslope.experiment import Experiment, ExperimentSettings, match_labels
from upslope.ledger import RunResult, read_run
from upslope.tasks.mask_answers import decode_mask
from upslope.training import TrainingSettings

QUICK = ["-s", "training.epochs=20", "-s", "training.batch_size=8", "--device", "cpu"]
TRAINING = TrainingSettings(epochs=1, batch_size=8)


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def photographs(folder: Path, count: int = 30) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 90, (12, 12, 3)) + 150 * (i % 3 == 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def kind(id_: str) -> str:
    """The class of a photograph; one more than the pixels tell."""
    number = int(Path(id_).stem)
    return "odd" if number == 7 else "bright" if number % 3 == 0 else "dark"


def fill(sheet: Path, odd: str = "odd") -> list[str]:
    """Answer all rows. odd: the class of the photograph that is of a class of its own."""
    with sheet.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        answer = kind(row["id"])
        row["label"] = "skip" if row["id"] == "1.png" else odd if answer == "odd" else answer
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [row["id"] for row in rows]


def command(root: Path, out: Path, classes: str, initial: int, *more: str | Path) -> list[Any]:
    return [
        *("run", "-s", f"data={{name: folder, classes: {classes}}}", "-s", f"data.root={root}"),
        *("-s", "model={name: mlp, hidden: 16}", *QUICK, "--out", out),
        *("-s", f"experiment={{initial: {initial}, budget: 4, cycles: 2}}", *more),
    ]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 20 labels of 30 photographs, in which one is skipped."""
    folder = tmp_path_factory.mktemp("old")
    photographs(folder / "photos")
    first = command(folder / "photos", folder / "run", "[dark, bright, odd]", 24)
    call(*first)
    asked = fill(folder / "run" / "to-label.csv")
    assert {"1.png", "7.png"} <= set(asked)
    call(*first)
    return folder


def test_labels_are_matched_by_ids_and_by_names_of_classes(old: Path, tmp_path: Path) -> None:
    before = read_run(old / "run")
    # Other classes, in another order, and a photograph less.
    gone = next(i for i in before.labels if i != "7.png")
    photographs(tmp_path / "photos")
    (tmp_path / "photos" / gone).unlink()
    again = command(
        *(tmp_path / "photos", tmp_path / "run", "[bright, new, dark]", 3),
        *("--labels-from", old / "run"),
    )
    code, out, err = call(*again, "--dry-run")
    assert code == 0, err
    taken = len(before.labels) - 2
    words = " ".join(out.split())
    assert f"{taken} of {len(before.labels)} labels of {old / 'run'} taken, matched by id" in words
    assert (
        f"1 label left out, whose ids are not in {tmp_path / 'photos'} (train): '{gone}'" in words
    )
    assert "of classes that there are not here: 'odd' (1)" in words
    assert "1 sample that was skipped there may be asked again" in words
    assert f"labels {taken} {taken + 4}" in words
    assert not (tmp_path / "run").exists()

    code, out, err = call(*again)
    assert code == WAITING, err
    run = read_run(tmp_path / "run")
    names = run.info["classes"]
    assert names == ["bright", "new", "dark"]
    assert {i: names[label] for i, label in run.labels.items()} == {
        i: kind(i) for i in before.labels if i not in (gone, "7.png")
    }
    assert [c.n_labelled for c in run.cycles] == [taken]
    assert run.cycles[0].train_metrics["accuracy"] == 1.0
    assert len(run.pending) == 4
    assert not set(run.pending) & set(before.labels) - {"7.png"}
    assert run.labels_from == str(old / "run")
    assert f"the labels of {old / 'run'}" in " ".join(call("status", tmp_path / "run")[1].split())
    (standing,) = json.loads(call("status", tmp_path / "run", "--json")[1])
    assert standing["labels_from"] == str(old / "run")

    # The same command again goes on, and takes nothing twice.
    fill(tmp_path / "run" / "to-label.csv", odd="new")
    code, out, err = call(*again)
    assert "taken, matched by id" not in out
    assert "recorded: " in out
    assert read_run(old / "run").labels == before.labels


def test_what_cannot_begin_with_labels_is_refused(old: Path, tmp_path: Path) -> None:
    def tried(*more: str | Path, root: Path = old / "photos", classes: str = "[dark, bright, odd]",
              out: Path = tmp_path / "run") -> tuple[int, str]:  # fmt: skip
        given = command(root, out, classes, 3, "--labels-from", old / "run", *more)
        code, _, err = call(*given)
        return code, " ".join(err.split())

    (tmp_path / "other").mkdir()
    photographs(tmp_path / "other" / "photos")
    code, err = tried(root=tmp_path / "other")
    assert code == 3
    assert "none of its 23 labels matches: it has '" in err
    assert "the pool 'photos/0.png'" in err
    code, err = tried(classes="[a, b]")
    assert code == 3
    assert "they are of " in err
    code, err = tried("-s", "experiment.start=typiclust")
    assert code == 2
    assert "one way to the first labels" in err
    code, err = tried("-s", "experiment.cycles=9", out=tmp_path / "large")
    assert code == 5
    assert "the 30 labels of the pool but 23 and 8 times 4 are 55" in err
    begun = command(old / "photos", tmp_path / "begun", "[dark, bright, odd]", 3)
    assert call(*begun)[0] == WAITING
    code, _, err = call(*begun, "--labels-from", old / "run")
    assert code == 6
    assert "it began with an initial set" in " ".join(err.split())
    assert call(*begun, "--labels-from", tmp_path / "nowhere")[0] == 6


def test_labels_of_samples_set_apart_to_test_are_left_out(old: Path, tmp_path: Path) -> None:
    before = read_run(old / "run")
    for id_ in (f"{i}.png" for i in range(30)):
        part = "test" if int(Path(id_).stem) >= 20 else "train"
        target = tmp_path / "sorted" / part / kind(id_) / id_
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((old / "photos" / id_).read_bytes())
    lines = [f"{p.relative_to(tmp_path / 'sorted')},{p.parent.name},{p.parts[-3]}"
             for p in sorted((tmp_path / "sorted").glob("*/*/*.png"))]  # fmt: skip
    for path in list((tmp_path / "sorted").glob("*/*/*.png")):
        path.rename(tmp_path / "sorted" / path.name)
    (tmp_path / "sorted" / "m.csv").write_text(
        "path,label,split\n" + "\n".join(line.rpartition("/")[2] for line in lines) + "\n"
    )
    splits = datasets.load("folder", tmp_path / "sorted", manifest="m.csv")
    task = tasks.build("classification", num_classes=3)
    earlier = match_labels(before, splits, task)
    assert set(earlier.labels) == {i for i in before.labels if int(Path(i).stem) < 20}
    assert any("set apart to test or validate here" in note for note in earlier.notes)
    assert not any("has otherwise" in note for note in earlier.notes)


def run_of(folder: Path, splits: Any, task: Any, size: int, answers: Any) -> RunResult:
    with Experiment(
        folder,
        splits=splits,
        task=task,
        model=partial(models.build, "mlp", num_classes=size, input_shape=(1,)),
        strategy=strategies.build("random"),
        settings=ExperimentSettings(initial=6, cycles=1),
        training=TRAINING,
        device="cpu",
    ) as run:
        run.tell({i: answers(n) for n, i in enumerate(run.ask())})
        return run.result()


def test_label_sets_and_numbers_are_matched_by_their_names(tmp_path: Path) -> None:
    rows = [f"s{i},{i},," for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["id,x,red,wet", *rows]))
    common = {"root": tmp_path / "t.csv", "id": "id"}
    for what, name, answers in (
        ("labels", "multi-label", ([1, 0], [0, 1])),
        ("numbers", "regression", ([1.5, 2.0], [0.0, 1.0])),
    ):
        first = datasets.load("table", target="red,wet", kind=what, **common)
        task = tasks.build(name, num_classes=2, classes=first.pool.classes)
        run = run_of(tmp_path / what, first, task, 2, lambda n, a=answers: a[n % 2])
        second = datasets.load("table", target=["wet", "red"], kind=what, **common)
        task = tasks.build(name, num_classes=2, classes=second.pool.classes)
        earlier = match_labels(run, second, task)
        for id_, label in run.labels.items():
            assert earlier.labels[id_] == list(reversed(label))
    run = read_run(tmp_path / "numbers")
    second = datasets.load("table", target=["wet", "red"], kind="numbers", **common)
    fewer = datasets.load("table", target="wet", kind="numbers", columns="x", **common)
    task = tasks.build("regression", num_classes=1, classes=fewer.pool.classes)
    assert match_labels(run, fewer, task).labels == {
        i: [run.labels[i][1]] for i in fewer.pool.ids if i in run.labels
    }
    alone = tasks.build("regression", num_classes=1, classes=("wet",))
    lone = run_of(tmp_path / "wet", fewer, alone, 1, lambda n: [2.0])
    with pytest.raises(DataError, match="asked nothing about 'red'"):
        match_labels(lone, second, tasks.build("regression", num_classes=2, classes=("wet", "red")))


def test_ids_that_count_rows_are_not_matched_between_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("x,label\n" + "\n".join(f"{i}," for i in range(20)))
    splits = datasets.load("table", tmp_path / "a.csv", classes=["u", "v"])
    task = tasks.build("classification", num_classes=2)
    run = run_of(tmp_path / "run", splits, task, 2, lambda n: "uv"[n % 2])
    other = datasets.load("table", tmp_path / "b.csv", classes=["u", "v"])
    with pytest.raises(DataError, match="'row-00000' and so on, count its rows"):
        match_labels(run, other, task, str(tmp_path / "b.csv"))
    assert match_labels(run, splits, task).labels == dict(sorted(run.labels.items()))


def of_masks(folder: Path, classes: tuple[str, ...], masks: np.ndarray[Any, Any]) -> Experiment:
    images = np.random.default_rng(1).normal(size=(12, 3, 5, 4)).astype(np.float32)
    splits = datasets.Splits.from_arrays(
        images[:8], masks[:8], images[8:], masks[8:], kind="masks", classes=classes
    )
    return Experiment(
        folder, splits=splits, task=tasks.build("segmentation", num_classes=3, classes=classes),
        model=lambda: nn.Conv2d(3, 3, 1), strategy=strategies.build("random"), device="cpu",
        settings=ExperimentSettings(initial=4, budget=2, cycles=2),
        training=TRAINING, progress=False,
    )  # fmt: skip


def test_masks_that_people_drew_are_taken_by_the_names_of_their_classes(tmp_path: Path) -> None:
    masks = np.random.default_rng(2).integers(0, 2, (12, 5, 4))
    masks[:, 0, 0] = 255
    with of_masks(tmp_path / "old", ("sky", "sea", "sand"), masks) as run:
        told = {id_: masks[int(id_[-5:])].copy() for id_ in run.ask()}
        odd = next(iter(told))
        told[odd][1, 1] = 2
        run.tell(told)
    earlier = read_run(tmp_path / "old")
    here = np.array([2, 0, *[255] * 254])  # sky and sea there, sea, land and sky here
    with of_masks(tmp_path / "new", ("sea", "land", "sky"), here[masks]) as run:
        matched = match_labels(earlier, run.splits, run.task)
        assert any("'sand' (1)" in note for note in matched.notes)
        run.begin_with(matched)
        labels = run.state.labels
    assert labels.keys() == told.keys() - {odd}
    for id_, text in labels.items():
        assert isinstance(text, str)
        assert (decode_mask(text) == here[told[id_]]).all()
