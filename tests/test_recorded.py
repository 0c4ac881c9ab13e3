"""Scores and predictions from a run: its data, network, classes and statistics, from the ledger."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from upslope import datasets, models
from upslope.checkpoints import load_weights
from upslope.cli import app
from upslope.config import find_source, load_trained_model
from upslope.errors import ConfigError
from upslope.ledger import read_run

QUICK = [
    *("-s", "training.epochs=2", "-s", "experiment.cycles=2", "-s", "experiment.initial=20"),
    *("-s", "experiment.budget=10", "--device", "cpu"),
]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def photographs(folder: Path, levels: dict[str, int], count: int) -> None:
    """Grey images, noise around a level by class."""
    generator = torch.Generator().manual_seed(len(levels))
    for name, level in levels.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = torch.randint(-20, 20, (8, 8), generator=generator)
            pixels = (level + noise).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of two classes, with a network of the user's own from the current folder."""
    place = tmp_path_factory.mktemp("place")
    photographs(place / "photos", {"dark": 50, "light": 200}, 40)
    (place / "recorded_nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, input_shape, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(),\n"
        "                         nn.LazyLinear(num_classes))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code, _, err = call(
            *("run", "--strategy", "margin", "--out", "runs", *QUICK),
            *("-s", "data={name: folder, mode: L, root: photos}"),
            *("-s", "model={name: 'recorded_nets:make', width: 6}"),
            *("-s", "training.epochs=40"),
        )
        assert code == 0, err
    return place / "runs" / "margin" / "seed-0"


def network(run: Path) -> torch.nn.Module:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.Flatten(),
        torch.nn.Linear(216, 2),
    )
    load_weights(model, run / "models" / "cycle-1.safetensors")
    return model.eval()


def posterior(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    """With the statistics of the run's own pool."""
    pool = datasets.load("folder", run.parents[2] / "photos", mode="L").pool
    (mean,), (std,) = datasets.statistics(pool)
    with torch.no_grad():
        return network(run)((pixels.float() / 255 - mean) / std).double().softmax(1)


def read(files: list[Path]) -> torch.Tensor:
    return torch.stack([datasets_pixels(file) for file in files])


def datasets_pixels(file: Path) -> torch.Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image))[None]


@pytest.mark.parametrize("given", ["run", "comparison", "checkpoint"])
def test_a_run_knows_its_own(run: Path, tmp_path: Path, monkeypatch, given: str) -> None:
    monkeypatch.chdir(run.parents[2])
    what = {"run": run, "comparison": run.parents[1]}.get(
        given, run / "models" / "cycle-1.safetensors"
    )
    code, out, err = call("predict", what, "-o", tmp_path / "p.csv", "--device", "cpu")
    assert code == 0, err
    assert "80 samples predicted" in out
    assert "recorded_nets:make from the current folder" in out
    table = rows(tmp_path / "p.csv")
    assert list(table[0]) == ["id", "class", "probability", "p_dark", "p_light"]
    p = posterior(run, read([run.parents[2] / "photos" / row["id"] for row in table]))
    got = torch.tensor([[float(row["p_dark"]), float(row["p_light"])] for row in table])
    torch.testing.assert_close(got.double(), p, rtol=1e-4, atol=1e-5)
    right = [row["class"] == row["id"].split("/")[0] for row in table]
    assert sum(right) / len(right) > 0.95  # names, not numbers in another order


def test_other_images_get_the_statistics_of_training(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them dark: by statistics of their own they would look like both classes."""
    monkeypatch.chdir(run.parents[2])
    photographs(tmp_path / "new", {"unsorted": 60}, 12)
    target = tmp_path / "p.parquet"
    code, _, err = call(
        *("predict", run, "-s", f"data.root={tmp_path / 'new'}", "-o", target, "--device", "cpu")
    )
    assert code == 0, err
    table = pq.read_table(target).to_pylist()
    assert {row["class"] for row in table} == {"dark"}
    p = posterior(run, read([tmp_path / "new" / row["id"] for row in table]))
    assert [row["p_dark"] for row in table] == pytest.approx(p[:, 0].tolist(), rel=1e-4)
    code, _, err = call(
        *("score", run, "-s", f"data.root={tmp_path / 'new'}", "-o", tmp_path / "s.csv"),
        *("--scores", "entropy", "--device", "cpu"),
    )
    assert code == 0, err
    expected = -(p * p.log()).sum(1)
    got = [float(row["entropy"]) for row in rows(tmp_path / "s.csv")]
    assert got == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("spelling", ["~/photos", "{place}/../{name}/photos", "{link}", "{parent}"])
def test_the_run_s_own_folder_is_its_own_however_it_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """As another place, its labels and limits would count for nothing, without a word."""
    own = Path(read_run(run).info["root"])
    monkeypatch.setenv("HOME", str(own.parent))
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "folder").symlink_to(own)  # as the data set is called
    root = spelling.format(
        place=own.parent, name=own.parent.name, link=tmp_path / "link", parent=tmp_path
    )
    assert not find_source(run, sets=[f"data.root={root}"]).elsewhere
    assert find_source(run, sets=[f"data.root={own.parent}"]).elsewhere


def test_images_of_another_size_are_refused(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(run.parents[2])
    (tmp_path / "large").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "large" / "a.png")
    code, _, err = call("predict", run, "-s", f"data.root={tmp_path / 'large'}", "-o", "p.csv")
    assert code == 3
    assert "(1, 8, 8)" in err
    assert "data.size" in err


def test_what_is_no_run_or_not_one_is_told(run: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ([tmp_path], 6, "neither"),
        ([tmp_path / "none"], 4, "no such file"),
        ([run, "digits"], 2, "expected no configuration beside"),
        ([run, "-o", "p.xlsx"], 2, "ends in .parquet or .csv"),
    ):
        for command in ("predict", "score"):
            got, out, err = call(command, *arguments)
            assert got == code, err
            assert message in err.lower()
            assert out == ""  # nothing is told of a network before it is known to be there


def test_a_network_that_was_removed_is_told(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "models" / "cycle-1.safetensors").unlink()
    code, out, err = call("predict", copy, "-o", tmp_path / "p.csv")
    assert (code, out) == (4, "")
    assert "cycle-1.safetensors" in err


def test_a_checkpoint_that_was_exchanged_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "models" / "cycle-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, _, err = call("predict", copy, "-o", tmp_path / "p.csv")
    assert code == 4
    assert "content has changed" in err


def test_several_runs_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    command = ["compare", "--strategies", "random,margin", "--out", folder, *QUICK]
    code, _, err = call(*command, "-s", "model={name: mlp, hidden: 8}", "-s", "data.limit=200")
    assert code == 0, err
    with pytest.raises(ConfigError, match=r"holds 2: .*margin/seed-0, .*random/seed-0"):
        find_source(folder)
    ready = load_trained_model(
        find_source(folder / "margin" / "seed-0", overrides={"device": "cpu"})
    )
    assert len(ready.pool) == 200  # as much as the run took
    assert ready.classes == tuple("0123456789")
    assert read_run(folder / "margin" / "seed-0").info["root"] is None


def test_rows_of_another_table_are_refused_and_numbers_are_in_their_units(tmp_path: Path) -> None:
    lines = [f"r{i},{i % 7},{3 * (i % 7) + 100}" for i in range(70)]
    (tmp_path / "a.csv").write_text("\n".join(["id,x,y", *lines]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join(["id,x,y", *lines[:-5]]) + "\n")
    code, _, err = call(
        *("run", "--strategy", "random", "--out", tmp_path / "runs", *QUICK),
        *("-s", f"data={{name: table, root: '{tmp_path / 'a.csv'}', target: y, kind: numbers}}"),
        *("-s", "model={name: mlp, hidden: 16}", "-s", "training.epochs=200"),
        *("-s", "task={name: regression, centre: [109], scale: [6]}"),
    )
    assert code == 0, err
    run = tmp_path / "runs" / "random" / "seed-0"
    code, _, err = call("predict", run, "-o", tmp_path / "p.csv", "--device", "cpu")
    assert code == 0, err
    for row in rows(tmp_path / "p.csv"):
        assert float(row["y"]) == pytest.approx(3 * (int(row["id"][1:]) % 7) + 100, abs=1.5)
    code, _, err = call(
        "predict", run, "-s", f"data.root={tmp_path / 'b.csv'}", "-o", tmp_path / "q.csv"
    )
    assert code == 3
    assert "scaled and encoded by all rows" in err


def test_label_sets_and_what_has_no_single_answer(tmp_path: Path) -> None:
    from small_tasks import Points
    from upslope.scoring import predict_to_file
    from upslope.tasks import MultiLabel, Segmentation

    model, cpu = torch.nn.Linear(2, 3), torch.device("cpu")
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    common = {"model": model, "dataset": Points(9), "device": cpu}
    file = tmp_path / "p.csv"
    predict_to_file(file, task=MultiLabel(3), classes=("a", "b", "c"), **common)
    z = model(Points(9).inputs(range(9))).detach().double()
    for row, logits in zip(rows(file), z, strict=True):
        present = [name for name, value in zip("abc", logits, strict=True) if value > 0]
        assert row["labels"] == ";".join(present)
        assert float(row["p_b"]) == pytest.approx(float(torch.sigmoid(logits[1])), rel=1e-5)
    dense = torch.nn.Unflatten(1, (2, 1, 1))
    with pytest.raises(ConfigError, match="which no table can hold"):
        predict_to_file(file, task=Segmentation(2), **{**common, "model": dense})


def test_a_run_without_a_record_asks_for_names(tmp_path: Path) -> None:
    from functools import partial

    from upslope import Experiment, ExperimentSettings, TrainingSettings, strategies, tasks

    splits = datasets.load("digits")
    mean, std = datasets.statistics(splits.pool)
    with Experiment(
        tmp_path / "run",
        splits=splits,
        task=tasks.build("classification", num_classes=10, mean=mean, std=std),
        model=partial(models.build, "mlp", num_classes=10, input_shape=(1, 8, 8), hidden=8),
        strategy=strategies.build("margin"),
        settings=ExperimentSettings(initial=20, budget=10, cycles=1),
        training=TrainingSettings(epochs=1),
        device="cpu",
    ) as experiment:
        experiment.run()
    code, _, err = call("predict", tmp_path / "run", "-o", tmp_path / "p.csv")
    assert code == 2
    assert "begun in Python without them" in err
    names = ["-s", "data.name=digits", "-s", "model={name: mlp, hidden: 8}"]
    code, out, err = call("predict", tmp_path / "run", "-o", tmp_path / "p.csv", *names)
    assert code == 0, err
    assert "1,400 samples predicted" in out


def test_a_run_without_a_network_is_told_where_it_stands_and_not_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said "run the same command again", which for `predict` and `status` is another command."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", {"dark": 50, "light": 200}, 20)
    for folder in (tmp_path / "photos").iterdir():  # no folder of a class: nothing is labelled
        for file in list(folder.iterdir()):
            file.rename(tmp_path / "photos" / f"{folder.name}-{file.name}")
        folder.rmdir()
    data = ("-s", "data.name=folder", "-s", "data.root=photos", "-s", "data.classes=[dark,light]")
    assert call("run", *data, "--strategy", "random", *QUICK[:-2], "--out", "r")[0] == 7
    code, _, err = call("predict", "r")
    assert (code, "same command" in err) == (6, False)
    assert "`upslope status r` says what comes next" in " ".join(err.split())
    assert "run again the command that began the run" in " ".join(call("status", "r")[1].split())
