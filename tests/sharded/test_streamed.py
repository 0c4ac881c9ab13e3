"""A streamed Hugging Face data set as a pool: the scores of its files, shard by shard, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shards_to_write import SIDE, id_of, pixels, png
from torch import nn

from upslope import strategies, tasks
from upslope.errors import ConfigError
from upslope.pools import ReadOptions, ShardedPool, StorageError, open_pool, stream_pool
from upslope.progress import Interrupted, Progress, Stop
from upslope.scoring import ShardScorer, score_pool
from upslope.seeds import global_generator

# A module of it, as the folder `datasets` of these tests can be imported too.
pytest.importorskip("datasets.load", reason="Hugging Face's datasets is not installed")
import datasets as hf

CPU = torch.device("cpu")
TASK = tasks.build("classification", num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)


def write(folder: Path, shards: int, *, encoded: bool, ids: bool = True) -> list[str]:
    """Write Parquet shards of five images each, and return their paths."""
    folder.mkdir()
    paths = []
    for shard in range(shards):
        numbers = range(5 * shard, 5 * shard + 5)
        if encoded:
            struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            cells = pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in numbers], struct)
        else:
            cells = pa.array([pixels(n).transpose(2, 0, 1).tolist() for n in numbers],
                             pa.list_(pa.list_(pa.list_(pa.uint8()))))  # fmt: skip
        columns = {"image": cells} | ({"id": [id_of(n) for n in numbers]} if ids else {})
        paths.append(str(folder / f"{shard:02d}.parquet"))
        pq.write_table(pa.table(columns), paths[-1])
    return paths


def streamed(paths: list[str], tmp_path: Path, *, images: bool = False) -> Any:
    stream = hf.load_dataset(
        "parquet", data_files=paths, split="train", streaming=True, cache_dir=str(tmp_path / "hf")
    )
    return stream.cast_column("image", hf.Image()) if images else stream


def scorer(pool: ShardedPool, out: Path) -> ShardScorer:
    with global_generator(1, device=CPU):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4))
    return ShardScorer(pool, out, {"margin": strategies.build("margin")}, net, TASK, CPU)


def table_of(pool: ShardedPool, out: Path) -> dict[str, list[Any]]:
    table = pq.read_table(score_pool(scorer(pool, out)).table)
    return {name: table.column(name).to_pylist() for name in ("id", "margin")}


@pytest.mark.parametrize("encoded", [False, True])
def test_scores_are_those_of_the_files(encoded: bool, tmp_path: Path) -> None:
    paths = write(tmp_path / "pool", 3, encoded=encoded)
    pool = stream_pool(streamed(paths, tmp_path, images=encoded), "photos")
    assert len(pool) == 3
    expected = table_of(open_pool(str(tmp_path / "pool")), tmp_path / "files")
    assert expected["id"] == [id_of(n) for n in range(15)]
    assert table_of(pool, tmp_path / "streamed") == expected


def test_a_stream_that_is_mapped_is_scored_as_mapped(tmp_path: Path) -> None:
    paths = write(tmp_path / "pool", 2, encoded=False)
    stream = streamed(paths, tmp_path)

    def invert(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": (255 - np.asarray(row["image"], np.uint8)).tolist()}

    inverted = stream.map(invert, features=stream.features)
    pool = stream_pool(inverted, "photos")
    with pool.open(pool.shards[1]) as rows:
        expected = 255 - np.stack([pixels(n).transpose(2, 0, 1) for n in range(5, 10)])
        assert np.array_equal(rows.inputs(range(5)).numpy(), expected)


def test_ids_without_a_column_are_of_the_shard(tmp_path: Path) -> None:
    paths = write(tmp_path / "pool", 2, encoded=False, ids=False)
    pool = stream_pool(streamed(paths, tmp_path), "photos")
    with pool.open(pool.shards[1]) as rows:
        assert list(rows.ids) == [f"photos-00001-of-00002#{i}" for i in range(5)]


def test_a_stopped_stream_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    paths = write(tmp_path / "pool", 3, encoded=False)
    once = score_pool(scorer(stream_pool(streamed(paths, tmp_path), "photos"), tmp_path / "once"))
    stop = Stop()

    def observer(progress: Progress) -> None:
        if progress.done >= 1:
            stop.request()

    with pytest.raises(Interrupted):
        score_pool(
            scorer(stream_pool(streamed(paths, tmp_path), "photos"), tmp_path / "out"),
            observer=observer, stop=stop,
        )  # fmt: skip
    report = score_pool(scorer(stream_pool(streamed(paths, tmp_path), "photos"), tmp_path / "out"))
    assert 0 < report.new < 3
    assert report.table.read_bytes() == once.table.read_bytes()


def test_a_shard_is_read_when_it_is_opened_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = write(tmp_path / "pool", 3, encoded=False)
    pool = stream_pool(streamed(paths, tmp_path), "photos")
    Path(paths[2]).unlink()
    with pool.open(pool.shards[1]) as rows:
        assert len(rows) == 5
        assert len(list((tmp_path / "cache").rglob("*.part"))) == 1
    assert not list((tmp_path / "cache").rglob("*.part"))
    with (
        pytest.raises(StorageError, match="photos-00002-of-00003"),
        pool.open(pool.shards[2]),
    ):
        pass


class _Failing:
    """A stream whose rows end in an error."""

    num_shards = 1

    def __init__(self, error: Exception) -> None:
        self.error = error

    def shard(self, *_: Any, **__: Any) -> _Failing:
        return self

    with_format = shard

    def iter(self, batch_size: int) -> Any:
        yield pa.table({"image": [png(n) for n in range(min(3, batch_size))]})
        raise self.error


def test_errors_of_the_network_are_those_of_the_storage() -> None:
    """Those of the packages that streams are read by are no OSErrors, and ended in a traceback."""
    timeout = type("ReadTimeout", (Exception,), {"__module__": "httpx2"})
    for error in (timeout("timed out"), ConnectionError("refused")):
        with pytest.raises(
            StorageError, match=r"the stream failed: .*(timed out|refused)\. The same"
        ):
            stream_pool(_Failing(error), "photos")
    with pytest.raises(KeyError):  # of a function that the user maps over the rows
        stream_pool(_Failing(KeyError("x")), "photos")


def test_what_is_no_stream_or_has_addresses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="list"):
        stream_pool([1, 2], "photos")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "url": ["a.png"]}), path)
    with pytest.raises(ConfigError, match="images_at"):
        stream_pool(streamed([str(path)], tmp_path), "photos")


def test_shapes_of_flat_arrays_come_from_the_options(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    flat = pa.FixedSizeListArray.from_arrays(pa.array(range(48), pa.uint8()), 24)
    pq.write_table(pa.table({"id": ["a", "b"], "image": flat}), path)
    pool = stream_pool(
        streamed([str(path)], tmp_path), "photos", options=ReadOptions(shape=(2, 3, 4))
    )
    with pool.open(pool.shards[0]) as rows:
        assert rows.inputs([1]).flatten().tolist() == list(range(24, 48))
