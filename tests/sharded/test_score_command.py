"""`upslope score --data URL`: from a checkpoint and shards to a folder of scores."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from shards_to_write import SIDE, id_of, png, write_images, write_parquet
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


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "plain", "übung", "a,b")


def select(out: Path, ask: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["select", str(out), "-o", str(ask), *arguments])
    return f"{result.exit_code} {' '.join(result.output.split())}"


@pytest.fixture
def scored(checkpoint: Path, tmp_path: Path) -> Path:
    """A scored pool, whose ids are formulas to a spreadsheet, with its signals."""
    folder, out = tmp_path / "pool", tmp_path / "scores"
    folder.mkdir()
    table = pa.table({"id": list(FORMULAS), "image": [png(n) for n in range(len(FORMULAS))]})
    pq.write_table(table, folder / "one.parquet")
    given = ("--data", str(folder), "--out", str(out), "--scores", "margin", *STATISTICS)
    assert "7 samples scored" in score(checkpoint, *given, "--keep", "core-set")
    return out


@pytest.mark.filterwarnings("ignore:.*is not in UTF-8")
@pytest.mark.parametrize("strategy", ["margin", "core-set"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_what_was_labelled_is_not_asked_again_whatever_its_id(
    strategy: str, encoding: str, scored: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    sheet = tmp_path / "ask.csv"
    for count in (3, 4):
        labels = ("--labelled", str(tmp_path / "labels.csv")) if asked else ()
        told = select(scored, sheet, "-k", str(count), "--strategy", strategy, *labels)
        assert told.startswith("0 ")
        assert f"{len(asked)} labelled before" in told
        head, *rows = csv.reader(io.StringIO(sheet.read_text("utf-8-sig")))
        column = head.index("label")
        asked += [row[0].removeprefix("'") for row in rows]
        lines = [head, *([*row[:column], "cat", *row[column + 1 :]] for row in rows)]
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        (tmp_path / "labels.csv").write_text(text.getvalue(), encoding)
    assert sorted(asked) == sorted(FORMULAS)


def test_answers_to_a_scored_folder_are_checked(scored: Path, tmp_path: Path) -> None:
    sheet, labels = tmp_path / "ask.csv", tmp_path / "labels.csv"
    given = ("-k", "2", "--strategy", "margin", "--labelled", str(labels))
    told = select(scored, sheet, *given)
    assert told.startswith("3 ")
    assert "labels.csv" in told
    labels.write_text("id,label\nnope,cat\n")
    told = select(scored, sheet, *given)
    assert told.startswith("3 ")
    assert "'nope'" in told
    labels.write_text("id,label\nplain,\n+1,skip: blurred\n-1,cat\n")  # nothing, passed, labelled
    every = ("-k", "5", "--strategy", "margin", "--labelled", str(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command tells them
        told = select(scored, sheet, *given)
        assert "1 labelled before" in told
        assert "1 of 3 lines of" in told
        assert select(scored, sheet, *every).startswith("0 ")
    ids = {row["id"].removeprefix("'") for row in csv.DictReader(
        io.StringIO(sheet.read_text("utf-8-sig")))}  # fmt: skip
    assert ids == set(FORMULAS) - {"+1", "-1"}


@pytest.mark.parametrize(
    "useless",
    [("--candidates", "all"), ("--data", "pool"), ("--device", "cpu"), ("-s", "data.root=x")],
)
def test_options_for_a_network_are_refused_beside_a_scored_folder(
    useless: tuple[str, ...], scored: Path, tmp_path: Path
) -> None:
    told = select(scored, tmp_path / "ask.csv", "-k", "2", *useless)
    assert told.startswith("2 ")
    assert "chosen without a network" in told


def test_a_table_of_scores_that_is_damaged_is_written_again(
    scored: Path, checkpoint: Path, tmp_path: Path
) -> None:
    table = scored / "scores.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    told = select(scored, tmp_path / "ask.csv", "-k", "2", "--strategy", "margin")
    assert told.startswith("3 ")
    assert "Run `upslope score` again" in told
    given = ("--data", str(tmp_path / "pool"), "--out", str(scored), "--scores", "margin")
    assert "0 of 1 shard" in score(checkpoint, *given, *STATISTICS, "--keep", "core-set")
    assert table.read_bytes() == whole


def test_a_block_that_is_gone_or_damaged_is_computed_again(
    scored: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (block,) = (scored / "signals").glob("*/*.npy")
    whole = block.read_bytes()
    block.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    told = select(scored, tmp_path / "ask.csv", "-k", "2", "--strategy", "core-set")
    assert told.startswith("3 ")
    assert "Remove it, and run the command that made it again" in told
    block.unlink()
    given = ("--data", str(tmp_path / "pool"), "--out", str(scored), "--scores", "margin")
    assert "1 of 1 shard" in score(checkpoint, *given, *STATISTICS, "--keep", "core-set")
    assert block.read_bytes() == whole
    assert select(scored, tmp_path / "ask.csv", "-k", "2", "--strategy", "core-set").startswith("0")


def test_shards_that_are_gone_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = write_parquet(tmp_path / "pool"), tmp_path / "scores"
    given = ("--data", str(folder), "--out", str(out), "--scores", "margin", *STATISTICS)
    assert "15 samples scored" in score(checkpoint, *given)
    (folder / "part-00001.parquet").rename(tmp_path / "away.parquet")
    told = score(checkpoint, *given)
    assert told.startswith("3 ")
    assert "'part-00001.parquet'" in told
    (tmp_path / "away.parquet").rename(folder / "part-00001.parquet")
    assert "15 samples scored" in score(checkpoint, *given)


def test_a_pool_that_was_empty_spoils_no_folder(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pool", tmp_path / "scores"
    folder.mkdir()
    given = ("--data", str(folder), "--out", str(out), "--scores", "margin", *STATISTICS)
    assert score(checkpoint, *given).startswith("3 ")
    write_parquet(folder)
    assert "15 samples scored" in score(checkpoint, *given)


def test_workers_need_an_engine(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "pool")
    told = score(checkpoint, "--data", str(folder), "--workers", "2", *STATISTICS)
    assert told.startswith("2 ")
    assert "--engine ray" in told


@pytest.mark.parametrize("count", [3 * SIDE * SIDE, 40])
@pytest.mark.parametrize("kind", [pa.float32(), pa.uint8()])
def test_flat_arrays_ask_for_their_shape(tmp_path: Path, count: int, kind: pa.DataType) -> None:
    torch.manual_seed(0)
    model = models.build("cnn-small", num_classes=4, input_shape=(3, SIDE, SIDE))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "pool").mkdir()
    rows = pa.array([[1] * count] * 6, pa.list_(kind, count))
    pq.write_table(pa.table({"pixels": rows}), tmp_path / "pool" / "a.parquet")
    told = score(
        tmp_path / "w.safetensors", "-s", "model.name=cnn-small", "--data", str(tmp_path / "pool"),
        "--out", str(tmp_path / "out"), "--scores", "margin",
        *(STATISTICS if kind == pa.uint8() else ()),
    )  # fmt: skip
    assert told.startswith(("3 ", "4 ")), told
    assert f"flat lists of {count} numbers" in told
    assert "--shape 3x" in told
