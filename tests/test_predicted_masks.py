"""Masks that a run without a test set predicts: written to a folder, read back as a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from upslope import datasets, models, scoring, tasks
from upslope.checkpoints import load_weights
from upslope.cli import app
from upslope.errors import ConfigError, DataError


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 images whose masks hold the values 0 and 7, and a finished run of them."""
    place = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (place / "data" / kind / "unlabelled" / "trip").mkdir(parents=True)
    for i in range(12):
        pixels, mask = rng.integers(0, 80, (16, 24, 3)), np.zeros((16, 24), np.uint8)
        x = int(rng.integers(1, 9))
        pixels[x : x + 6, x : x + 8] += 150
        mask[x : x + 6, x : x + 8] = 7
        name = f"unlabelled/{'trip/' if i % 3 == 0 else ''}{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(place / "data" / "images" / name)
        Image.fromarray(mask).save(place / "data" / "masks" / name)
    (place / "data" / "classes.csv").write_text('name,id\n=ground,0\n"box, red",7\n')
    code, out, err = call(
        *("run", "-s", f"data={{name: mask-folder, root: {place / 'data'}}}"),
        *("-s", "model=dilated-small", "-s", "task.name=segmentation", "--strategy", "margin"),
        *("-s", "experiment={initial: 6, budget: 2, cycles: 2}", "-s", "training.epochs=6"),
        *("--device", "cpu", "--out", place / "run"),
    )
    assert code == 0, err  # finished: no test set is no failure
    assert "2 of 2 finished" in out
    assert "there is no test set" in out
    assert "upslope predict" in out
    return place


def test_masks_are_those_of_the_network_and_read_back_as_a_data_set(
    place: Path, tmp_path: Path
) -> None:
    target = tmp_path / "predicted"
    code, out, err = call("predict", place / "run", "--out", target, "--device", "cpu")
    assert code == 0, err
    assert f"12 samples predicted: {target}" in out

    pool = datasets.load("mask-folder", place / "data").pool
    network = models.build("dilated-small", num_classes=2, input_shape=(3, 16, 24))
    load_weights(network, place / "run" / "margin" / "seed-0" / "models" / "cycle-1.safetensors")
    mean, std = datasets.statistics(pool)
    pixels = pool.inputs(list(range(12))).float() / 255
    x = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = network.eval()(x).argmax(dim=1)
    assert expected.unique().tolist() == [0, 1]
    for id_, mask in zip(pool.ids, expected, strict=True):
        with Image.open(target / "masks" / f"{id_}.png") as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), mask.numpy())

    shutil.copytree(place / "data" / "images", target / "images")
    again = datasets.load("mask-folder", target).pool
    assert again.classes == ("'=ground", "box, red")  # an apostrophe before what a sheet would run
    assert torch.equal(again.targets(list(range(12))).long(), expected)


def test_a_folder_with_content_and_a_table_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "note.txt").write_text("mine")
    for target, words in (("there", "has content"), ("masks.csv", "no table can hold")):
        code, _, err = call("predict", place / "run", "--out", tmp_path / target)
        assert code == 2
        assert words in err
    assert [file.name for file in tmp_path.rglob("*")] == ["there", "note.txt"]


def test_report_says_what_to_do_without_a_test_set(place: Path) -> None:
    code, _, err = call("report", place / "run")
    assert code == 6
    assert all(words in err for words in ("upslope status", "upslope predict", "docs/data.md"))


class Named:
    """Two dark images of any ids."""

    name, classes, resident, input_shape = "named", ("a", "b"), True, (3, 4, 4)

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: list[int]) -> torch.Tensor:
        return torch.zeros(len(indices), 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize("id_", ["../out", "/out", "a//b", "a/../../b", "", "C:out", "a\\b", "."])
def test_ids_that_leave_the_folder_are_refused(tmp_path: Path, id_: str) -> None:
    with pytest.raises(DataError, match="can name files"):
        scoring.predict_masks(
            tmp_path / "out",
            model=torch.nn.Conv2d(3, 2, 1),
            task=tasks.build("segmentation", num_classes=2),
            dataset=Named("fine", id_),  # type: ignore[arg-type]
            device=torch.device("cpu"),
        )
    assert not list(tmp_path.iterdir())


def test_more_classes_than_a_byte_holds_are_refused(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(3, 300, 1)
    with torch.no_grad():
        network.bias[280] = 9  # type: ignore[index]
    with pytest.raises(ConfigError, match="class 280"):
        scoring.predict_masks(
            tmp_path / "out",
            model=network,
            task=tasks.build("segmentation", num_classes=300, ignore_index=-1),
            dataset=Named("one", "two"),  # type: ignore[arg-type]
            device=torch.device("cpu"),
        )
    assert not list(tmp_path.iterdir())
