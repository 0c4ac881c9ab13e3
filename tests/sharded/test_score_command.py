"""`upslope score --data URL`: from a checkpoint and shards to a folder of scores."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from shards_to_write import SIDE, id_of, write_images, write_parquet
from typer.testing import CliRunner

from upslope import models
from upslope.cli import app

STATISTICS = ("-s", "data.mean=[0.5,0.5,0.5]", "-s", "data.std=[0.25,0.25,0.25]")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = models.build("mlp", num_classes=4, input_shape=(3, SIDE, SIDE))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def score(checkpoint: Path, *arguments: str) -> str:
    result = CliRunner().invoke(
        app, ["score", str(checkpoint), "-s", "model.name=mlp", "-s", "device=cpu", *arguments]
    )
    return f"{result.exit_code} {' '.join(result.output.split())}"


@pytest.mark.parametrize("write", [write_parquet, write_images])
def test_a_pool_at_a_url_is_scored_into_a_folder(
    write: object, checkpoint: Path, tmp_path: Path
) -> None:
    folder, out = write(tmp_path / "pool"), tmp_path / "scores"  # type: ignore[operator]
    given = ("--data", f"file://{folder}", "--out", str(out), "--scores", "margin", *STATISTICS)
    assert "15 samples scored" in score(checkpoint, *given)
    table = pq.read_table(out / "scores.parquet")
    assert table.column_names == ["shard", "id", "margin"]
    stems = [Path(id_).stem for id_ in table.column("id").to_pylist()]
    assert stems == [id_of(n) for n in range(15)]
    assert "by this call" in score(checkpoint, *given)
    assert "0 of" in score(checkpoint, *given)


def test_images_without_statistics_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "pool")
    told = score(checkpoint, "--data", str(folder), "--out", str(tmp_path / "out"))
    assert told.startswith("2 ")
    assert "Expected the statistics by which images" in told


def test_options_of_shards_need_the_url(checkpoint: Path) -> None:
    told = score(checkpoint, "--shape", "3x8x8")
    assert told.startswith("2 ")
    assert "Expected --data beside" in told


def test_a_file_is_no_folder_for_shards(checkpoint: Path, tmp_path: Path) -> None:
    told = score(checkpoint, "--data", str(write_parquet(tmp_path)), "--out", "x.csv", *STATISTICS)
    assert told.startswith("2 ")
    assert "Expected --out to be a folder" in told


def test_signals_that_are_kept_serve_a_selection(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = write_parquet(tmp_path / "pool"), tmp_path / "scores"
    given = ("--data", str(folder), "--out", str(out), "--scores", "margin", *STATISTICS)
    assert "15 samples scored" in score(checkpoint, *given, "--keep", "badge,core-set")

    def select(*arguments: str) -> list[str]:
        ask = tmp_path / "ask.csv"
        result = CliRunner().invoke(
            app, ["select", str(out), "-k", "4", "-o", str(ask), *arguments]
        )
        assert result.exit_code == 0, result.output
        return [line.split(",")[0] for line in ask.read_text().splitlines()[1:]]

    table = pq.read_table(out / "scores.parquet").to_pydict()
    best = sorted(zip(table["margin"], table["id"], strict=True), reverse=True)[:4]
    assert select("--strategy", "margin") == [id_ for _, id_ in best]
    first = select("--strategy", "core-set")
    assert len(set(first)) == 4
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"{id_},cat\n" for id_ in first))
    for strategy in ("margin", "core-set", "badge"):
        more = select("--strategy", strategy, "--labelled", str(labels))
        assert len(set(more) | set(first)) == 8
    told = CliRunner().invoke(app, ["select", str(out), "--strategy", "lcmd", "-k", "4"]).output
    assert "Expected the signal gradient-sketch" in " ".join(told.split())
