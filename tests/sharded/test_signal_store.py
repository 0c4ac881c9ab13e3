"""The store of signals: what it holds is what is computed, and a kill leaves whole blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from shards_to_write import id_of, write_parquet
from test_score_shards import CPU, TASK, files, net

from upslope import signal_store, strategies
from upslope.errors import DataError, RunError
from upslope.files import read_digested_json, write_digested_json
from upslope.gradnorm import sketch
from upslope.pool import Need
from upslope.pools import open_pool
from upslope.scoring import ShardScorer, compute_signals, score_pool, stored
from upslope.signal_store import SignalStore, StoreWriter

NEEDS = (
    Need.of("probabilities"),
    Need.of("features"),
    Need.of("gradient-sketch", dim=6),
    Need.of("mc-posteriors", passes=3),
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "BLOCK", 4)


def scorer(
    pool: Path, out: Path, *, precision: signal_store.Precision = "float32", seed: int = 1
) -> ShardScorer:
    return ShardScorer(
        open_pool(str(pool)),
        out,
        {"margin": strategies.build("margin")},
        net(seed),
        TASK,
        CPU,
        keep=NEEDS,
        precision=precision,
    )


def test_rows_and_blocks_are_the_signals_in_the_order_of_the_shards(tmp_path: Path) -> None:
    ready = scorer(write_parquet(tmp_path / "pool", 3, 10), tmp_path / "out")
    score_pool(ready)
    store = SignalStore(tmp_path / "out" / "signals")
    assert len(store) == 30
    assert store.needs == NEEDS
    assert store.ids(range(30)) == [id_of(n) for n in range(30)]
    assert store.ids([25, 3, 3]) == [id_of(25), id_of(3), id_of(3)]
    for need in NEEDS[:3]:
        expected = []
        for shard in ready.pool.shards:
            with ready.pool.open(shard) as rows:
                table = compute_signals([need], ready.model, TASK, rows, range(10), device=CPU,
                                        seed=0)  # fmt: skip
                expected.append(table.signals[need])
        whole = torch.cat(expected)
        torch.testing.assert_close(store.rows(need, range(30)), whole)
        torch.testing.assert_close(store.rows(need, [29, 0, 11, 11]), whole[[29, 0, 11, 11]])
        parts = list(store.blocks(need))
        assert [start for start, _ in parts] == [0, 4, 8, 10, 14, 18, 20, 24, 28]
        torch.testing.assert_close(torch.cat([part for _, part in parts]), whole)
    assert store.rows(NEEDS[3], [0, 1]).shape == (2, 3, 4)


def test_half_precision_is_the_nearest_half(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool", 1, 10)
    for precision in ("float16", "float32"):
        score_pool(scorer(pool, tmp_path / precision, precision=precision))
    half, single = (SignalStore(tmp_path / p / "signals") for p in ("float16", "float32"))
    for need in NEEDS:
        whole = single.rows(need, range(10))
        assert torch.equal(half.rows(need, range(10)), whole.half())


def test_blocks_that_are_missing_or_damaged_are_computed_again_bit_equal(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool", 2, 10)
    score_pool(scorer(pool, tmp_path / "out"))
    once = files(tmp_path / "out")
    # As after a kill in the second shard: no ids and no scores, one block missing, one torn.
    signals = tmp_path / "out" / "signals"
    (signals / "ids" / "part-00001.parquet.arrow").unlink()
    (tmp_path / "out" / "shards" / "part-00001.parquet.parquet").unlink()
    (tmp_path / "out" / "scores.parquet").unlink()
    block = signals / "features" / "part-00001.parquet-000004.npy"
    block.write_bytes(block.read_bytes()[:-9])
    (signals / "probabilities" / "part-00001.parquet-000008.npy").unlink()
    kept = signals / "features" / "part-00001.parquet-000000.npy"
    before = kept.stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"part-00001\.parquet-000004\.npy is damaged"):
        score_pool(scorer(pool, tmp_path / "out"))
    assert files(tmp_path / "out") == once
    assert kept.stat().st_mtime_ns == before


def test_ids_with_a_flipped_bit_are_told_and_written_again(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool", 2, 10)
    score_pool(scorer(pool, tmp_path / "out"))
    once = files(tmp_path / "out")
    ids = tmp_path / "out" / "signals" / "ids" / "part-00001.parquet.arrow"
    content = ids.read_bytes()
    assert content.count(b"sample-00013") == 1
    ids.write_bytes(content.replace(b"sample-00013", b"sample-00003"))
    with pytest.raises(RunError, match=r"part-00001\.parquet\.arrow but the file is damaged"):
        SignalStore(tmp_path / "out" / "signals")
    with pytest.warns(UserWarning, match=r"part-00001\.parquet\.arrow is damaged"):
        score_pool(scorer(pool, tmp_path / "out"))
    assert files(tmp_path / "out") == once


def test_ids_of_earlier_versions_have_no_digest_and_are_read(tmp_path: Path) -> None:
    score_pool(scorer(write_parquet(tmp_path / "pool", 1, 10), tmp_path / "out"))
    file = tmp_path / "out" / "signals" / "ids" / "part-00000.parquet.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    record = json.loads(table.schema.metadata[b"upslope"])
    del record["sha256"]
    table = table.replace_schema_metadata({b"upslope": json.dumps(record)})
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    assert SignalStore(tmp_path / "out" / "signals").ids([3]) == [id_of(3)]


def test_a_damaged_block_is_named_when_it_is_read(tmp_path: Path) -> None:
    score_pool(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out"))
    block = tmp_path / "out" / "signals" / "features" / "part-00000.parquet-000000.npy"
    content = bytearray(block.read_bytes())
    content[-50] ^= 1
    block.write_bytes(content)
    store = SignalStore(tmp_path / "out" / "signals")
    store.rows(NEEDS[0], [0])
    with pytest.raises(DataError, match=r"part-00000\.parquet-000000\.npy.*damaged"):
        store.rows(NEEDS[1], [0])


def test_a_store_that_is_not_whole_or_of_another_network_is_refused(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    score_pool(scorer(pool, tmp_path / "out"))
    with pytest.raises(RunError, match="weights_sha256"):
        score_pool(scorer(pool, tmp_path / "out", seed=2))
    (tmp_path / "out" / "signals" / "ids" / "part-00001.parquet.arrow").unlink()
    with pytest.raises(RunError, match=r"'part-00001\.parquet' has none"):
        SignalStore(tmp_path / "out" / "signals")
    shutil.rmtree(tmp_path / "out" / "signals")
    with pytest.raises(RunError, match="there is none"):
        SignalStore(tmp_path / "out" / "signals")


def other_projection(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name) + 1)


def test_sketches_of_two_projections_are_not_put_into_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that a pool gains are sketched as those that are there, or not at all."""
    pool, out = write_parquet(tmp_path / "pool", 3, 10), tmp_path / "out"
    last = pool / "part-00002.parquet"
    last.rename(tmp_path / last.name)
    score_pool(scorer(pool, out))
    (tmp_path / last.name).rename(last)
    sketch._draw_rows.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sketch, "_generator", other_projection)
        with pytest.raises(RunError, match=r"gradient-sketch\(dim=6\) of the projection"):
            score_pool(scorer(pool, out))
    sketch._draw_rows.cache_clear()
    score_pool(scorer(pool, out))
    assert len(SignalStore(out / "signals")) == 30


def test_sketches_of_a_version_without_the_projection_on_record_are_not_gone_on_with(
    tmp_path: Path,
) -> None:
    pool, out = write_parquet(tmp_path / "pool", 1, 10), tmp_path / "out"
    score_pool(scorer(pool, out))
    path = out / "signals" / signal_store.RECORD
    record = read_digested_json(path)
    assert record is not None
    del record["projections"]
    write_digested_json(path, record)
    assert len(SignalStore(out / "signals")) == 10
    with pytest.raises(RunError, match="begun with an earlier one"):
        score_pool(scorer(pool, out))


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, "float16")
    with pytest.raises(DataError, match="'b' are not, in float16: the largest is 70000"):
        writer.write(NEEDS[1], "shard", 0, ["a", "b"], torch.tensor([[1.0], [7e4]]))
    assert not list(tmp_path.rglob("*.npy"))


def test_a_signal_that_is_not_there_is_named(tmp_path: Path) -> None:
    score_pool(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out"))
    with pytest.raises(DataError, match="Expected the signal committee"):
        SignalStore(tmp_path / "out" / "signals").rows(Need.of("committee"), [0])
    np.testing.assert_array_equal(SignalStore(tmp_path / "out" / "signals").ids([]), [])


@pytest.mark.parametrize(
    ("values", "precision", "advice"),
    [
        (torch.tensor([1.0, 70_000.0]), "float16", "the largest is 70000. Keep float32."),
        (torch.tensor([1.0, 1e39], dtype=torch.float64), "float16", r"1e\+39. No precision"),
        (torch.tensor([1.0, 1e39], dtype=torch.float64), "float32", r"1e\+39. No precision"),
        (torch.tensor([1.0, torch.inf]), "float16", "inf. Look at the network's training"),
        (torch.tensor([1.0, torch.nan]), "float32", "nan. Look at the network's training"),
    ],
)
def test_the_advice_on_numbers_that_are_too_large_helps(
    tmp_path: Path, values: torch.Tensor, precision: signal_store.Precision, advice: str
) -> None:
    writer = StoreWriter(tmp_path, precision)
    with pytest.raises(DataError, match=rf"those of 'a' are not, in {precision}: .*{advice}"):
        writer.write(NEEDS[0], "shard", 0, ["a"], values[None])
