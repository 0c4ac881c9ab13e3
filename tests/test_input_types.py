"""A network meets numbers of the kind that it was trained on: uint8 is standardised, floats not."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from upslope import Splits, datasets, models, query, strategies, tasks
from upslope.cli import app
from upslope.config import find_source, load_trained_model
from upslope.errors import ConfigError, DataError, RunError
from upslope.experiment import Experiment, ExperimentSettings
from upslope.pools import ReadOptions, open_pool
from upslope.scoring import ShardScorer, score_pool, score_to_file
from upslope.training import TrainingSettings

MLP = ("-s", "model.name=mlp")


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return f"{result.exit_code} {' '.join(result.output.split())}"


def images() -> np.ndarray:
    pool = datasets.load("digits").pool
    return pool.inputs(range(60)).numpy()


def write_npz(folder: Path, inputs: np.ndarray) -> Path:
    folder.mkdir()
    labels = datasets.load("digits").pool.targets(range(60)).numpy()
    parts = {"x_train": inputs[:40], "y_train": labels[:40]}
    np.savez(folder / "d.npz", **parts, x_test=inputs[40:], y_test=labels[40:])
    return folder


def write_shard(folder: Path, inputs: np.ndarray) -> Path:
    folder.mkdir()
    flat = inputs.reshape(len(inputs), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    ids = [f"i{n}" for n in range(len(inputs))]
    pq.write_table(pa.table({"id": ids, "image": column}), folder / "0.parquet")
    return folder


def train(root: Path, out: Path) -> Path:
    told = call(
        *("run", "--strategy", "margin", "--seeds", "1", "--out", out, "--device", "cpu", *MLP),
        *("-s", "data.name=npz", "-s", f"data.root={root}", "-s", "training.epochs=1"),
        *("-s", "experiment.cycles=1", "-s", "experiment.initial=20"),
    )
    assert told.startswith("0 "), told
    return out / "margin" / "seed-0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as uint8, as floats of 0..1 and of 0..255; and a run on the first two."""
    place, bytes_ = tmp_path_factory.mktemp("types"), images()
    kinds = {"u8": bytes_, "f1": bytes_ / np.float32(255), "f255": bytes_.astype(np.float32)}
    for name, inputs in kinds.items():
        write_npz(place / name, inputs)
        write_shard(place / f"shards-{name}", inputs)
    for name in ("u8", "f1"):
        train(place / name, place / f"run-{name}")
    return place


@pytest.mark.parametrize(("trained", "other"), [("u8", "f1"), ("u8", "f255"), ("f1", "u8")])
def test_a_run_refuses_numbers_of_another_kind(
    place: Path, tmp_path: Path, trained: str, other: str
) -> None:
    run = place / f"run-{trained}"
    elsewhere = ("-s", f"data.root={place / other}")
    shards = ("--data", place / f"shards-{other}", "--shape", "1x8x8")
    for told in (
        call("score", run, *elsewhere, "--scores", "margin", "-o", tmp_path / "s.csv"),
        call("predict", run, *elsewhere, "-o", tmp_path / "p.csv"),
        call("score", run, *shards, "--scores", "margin", "-o", tmp_path / "s"),
        call("select", run, "--data", place / other, "-k", "2", "-o", tmp_path / "a.csv"),
    ):
        assert told.startswith("3 "), told
        assert "as the run was trained on, but those of" in told
        assert ("Give them as uint8" if trained == "u8" else "Give floats") in told
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["u8", "f1"])
def test_a_run_takes_numbers_of_its_own_kind(place: Path, tmp_path: Path, kind: str) -> None:
    told = call(
        *("score", place / f"run-{kind}", "--data", place / f"shards-{kind}", "--shape", "1x8x8"),
        *("--scores", "margin", "-o", tmp_path / "s"),
    )
    assert "60 samples scored" in told


def test_an_older_run_is_known_by_its_statistics_or_warned_of(place: Path) -> None:
    def older(trained: str, other: str) -> object:
        source = find_source(
            place / f"run-{trained}", sets=[f"data.root={place / other}", "device=cpu"]
        )
        assert source.run is not None
        info = {k: v for k, v in source.run.info.items() if k != "input_type"}
        return load_trained_model(replace(source, run=replace(source.run, info=info)))

    with pytest.raises(DataError, match="Give them as uint8"):
        older("u8", "f1")
    with pytest.warns(UserWarning, match="of an earlier version"):
        older("f1", "u8")
    older("u8", "u8")
    older("f1", "f1")


def test_a_run_is_not_gone_on_with_on_numbers_of_another_kind(tmp_path: Path) -> None:
    def open_run(inputs: np.ndarray) -> Experiment:
        ids = [f"i{len(inputs)}-{n}" for n in range(len(inputs))]  # a pool of other samples
        labels = np.arange(len(inputs)) % 2
        splits = Splits.from_arrays(
            inputs, labels, inputs[:4], [0, 1, 0, 1],
            ids=ids, classes=["a", "b"],
        )  # fmt: skip
        return Experiment(
            tmp_path / "run", splits=splits, task=tasks.build("classification", num_classes=2),
            model=lambda: models.build("mlp", num_classes=2, input_shape=(1, 8, 8)),
            strategy=strategies.build("margin"), training=TrainingSettings(epochs=1),
            settings=ExperimentSettings(initial=4, budget=2, cycles=2), progress=False,
            device="cpu",
        )  # fmt: skip

    with open_run(images() / np.float32(255)):
        pass
    with pytest.raises(RunError, match="input_type"):
        open_run(images()[:59])


def test_statistics_beside_float_images_are_refused(tmp_path: Path) -> None:
    """In Python, a task with statistics is that of a network trained on uint8."""
    floats = torch.from_numpy(images() / np.float32(255))
    task = tasks.build("classification", num_classes=10, mean=(0.3,), std=(0.4,))
    model = models.build("mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
    splits = Splits.from_arrays(floats, np.arange(60) % 10)
    with pytest.raises(ConfigError, match=r"0\.\.255 \(uint8\), as `mean` and `std` of the task"):
        score_to_file(
            tmp_path / "s.csv", {"margin": strategies.build("margin")}, model=model, task=task,
            dataset=splits.pool, device=torch.device("cpu"),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="leave `mean` and `std` out"):
        query(model, floats, 3, "margin", mean=(0.3,), std=(0.4,))
    shards = open_pool(str(write_shard(tmp_path / "pool", floats.numpy())),
                       options=ReadOptions(shape=(1, 8, 8)))  # fmt: skip
    with pytest.raises(ConfigError, match="leave `mean` and `std` out"):
        score_pool(
            ShardScorer(
                shards, tmp_path / "s", {"margin": strategies.build("margin")}, model, task,
                torch.device("cpu"),
            )
        )  # fmt: skip


def test_stated_statistics_normalise_shards(place: Path, tmp_path: Path) -> None:
    """Against the network called by hand; those of the first shard were taken in their place."""
    torch.manual_seed(0)
    model = models.build("mlp", num_classes=3, input_shape=(1, 8, 8))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    stated = ("-s", "data.mean=[0.7]", "-s", "data.std=[0.2]")
    given = ("--shape", "1x8x8", "--scores", "margin", "-o", tmp_path / "s", "-s", "device=cpu")
    told = call("score", tmp_path / "w.safetensors", "--data", place / "shards-u8", *MLP, *stated,
                *given)  # fmt: skip
    assert "60 samples scored" in told
    with torch.no_grad():
        inputs = (torch.from_numpy(images()).double() / 255 - 0.7) / 0.2
        top = model.double().eval()(inputs).softmax(1).topk(2).values
    scores = torch.tensor(pq.read_table(tmp_path / "s" / "scores.parquet")["margin"].to_pylist())
    torch.testing.assert_close(scores.double(), 1 - (top[:, 0] - top[:, 1]), atol=1e-5, rtol=0)
    other = ("-s", "data.mean=[0.6]", "-s", "data.std=[0.2]")
    told = call("score", tmp_path / "w.safetensors", "--data", place / "shards-u8", *MLP, *other,
                *given)  # fmt: skip
    assert "mean was [0.7] and is [0.6] now" in told
    told = call("score", tmp_path / "w.safetensors", "--data", place / "shards-f1", *MLP, *stated,
                *given)  # fmt: skip
    assert "data.mean: expected images of whole numbers" in told


def test_a_run_with_stated_statistics_scores_shards_by_them(tmp_path: Path) -> None:
    from PIL import Image

    for n, image in enumerate(images()):
        (tmp_path / "photos" / str(n % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "photos" / str(n % 2) / f"{n}.png")
    told = call(
        *("run", "--strategy", "margin", "--seeds", "1", "--out", tmp_path / "run", *MLP),
        *("-s", f"data={{name: folder, root: {tmp_path / 'photos'}, mode: L, mean: [0.7],"
          " std: [0.2]}", "--device", "cpu"),
        *("-s", "training.epochs=1", "-s", "experiment.cycles=1", "-s", "experiment.initial=20"),
    )  # fmt: skip
    assert told.startswith("0 "), told
    one, many = tmp_path / "one.csv", tmp_path / "many"
    given = ("--scores", "margin", "-s", "device=cpu")
    assert call("score", tmp_path / "run", "-s", f"data.root={tmp_path / 'photos'}", *given,
                "-o", one).startswith("0 ")  # fmt: skip
    write_shard(tmp_path / "half", images()[:30])  # whose statistics are others than those stated
    assert call("score", tmp_path / "run", "--data", tmp_path / "half", "--shape", "1x8x8", *given,
                "-o", many).startswith("0 ")  # fmt: skip
    with one.open() as file:
        whole = {row["id"]: float(row["margin"]) for row in csv.DictReader(file)}
    parts = pq.read_table(many / "scores.parquet").to_pylist()
    for row in parts:
        number = int(row["id"][1:])
        assert row["margin"] == pytest.approx(whole[f"{number % 2}/{number}.png"], abs=1e-5)


class Own:
    """A data set of the user's own."""

    name, resident = "own", True

    def __init__(self, inputs: np.ndarray, classes: tuple[str, ...] = ("a", "b")) -> None:
        self.values, self.classes = torch.from_numpy(inputs), classes
        self.ids = tuple(f"s{i}" for i in range(len(inputs)))
        self.input_shape = tuple(inputs.shape[1:])

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Sequence[int]) -> torch.Tensor:
        return self.values[list(indices)]

    def targets(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.tensor([i % 2 for i in indices])


def begin(folder: Path, splits: Splits) -> None:
    Experiment(
        folder, splits=splits, strategy=strategies.build("random"),
        task=tasks.build("classification", num_classes=2, mean=(0.5,), std=(0.3,)),
        model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)),
        settings=ExperimentSettings(initial=4, budget=4, cycles=1),
    ).close()  # fmt: skip


def test_parts_of_other_numbers_or_classes_than_the_pool_are_refused(tmp_path: Path) -> None:
    whole, floats = images(), images() / np.float32(255)
    begin(tmp_path / "alike", Splits(Own(whole), Own(whole[:9]), Own(whole[:8])))
    for parts in (
        (Own(whole), Own(floats)),
        (Own(floats), Own(whole)),
        (Own(whole), Own(whole), Own(floats)),
    ):
        with pytest.raises(DataError, match="uint8 is standardised, and floats are taken as they"):
            begin(tmp_path / "run", Splits(*parts))
    with pytest.raises(
        DataError, match=r"test set to have the classes .* \['a', 'b'\].*\['b', 'a'"
    ):
        begin(tmp_path / "run", Splits(Own(whole), Own(whole, ("b", "a"))))
    assert not (tmp_path / "run").exists()


def test_labelled_samples_of_other_numbers_than_the_pool_are_refused() -> None:
    whole, labels = images(), np.arange(60) % 2
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    for pool, other, statistics in (
        (whole, whole / 255, {"mean": [0.5], "std": [0.3]}),
        (whole / 255, whole, {}),
    ):
        for labelled in (
            (other, labels),
            TensorDataset(torch.from_numpy(other), torch.from_numpy(labels)),
        ):
            with pytest.raises(DataError, match="uint8 is standardised by `mean` and `std`"):
                query(network, pool, 3, "core-set", labelled=labelled, progress=False, **statistics)
