"""Scores by shards: those of the whole pool, resumed bit-equal, refused where something changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shards_to_write import SIDE, id_of, pixels, png, write_parquet, write_tars
from torch import nn

from upslope import strategies, tasks
from upslope.datasets.arrays import ArrayDataset
from upslope.errors import ConfigError, DataError, RunError
from upslope.pools import open_pool
from upslope.progress import Interrupted, Progress, Stop
from upslope.scoring import ShardScorer, score_pool, score_to_file
from upslope.scoring.records import record_or_compare
from upslope.scoring.score_files import check_joined
from upslope.scoring.shards import PoolReport, join_scores, shards_of_rank
from upslope.seeds import global_generator

CPU = torch.device("cpu")
TASK = tasks.build("classification", num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = ("margin", "entropy-gradnorm")


def net(seed: int = 1) -> nn.Module:
    with global_generator(seed, device=CPU):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIDE**2, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
        )


def scorer(pool: Path, out: Path, *, names: tuple[str, ...] = NAMES, seed: int = 1) -> ShardScorer:
    built = {name: strategies.build(name) for name in names}
    return ShardScorer(open_pool(str(pool)), out, built, net(seed), TASK, CPU)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_scores_are_those_of_the_pool_in_memory(tmp_path: Path) -> None:
    report = score_pool(scorer(write_tars(tmp_path / "pool"), tmp_path / "out"))
    assert (report.scored, report.skipped, report.new) == (15, 0, 3)
    import numpy as np

    images = np.stack([pixels(n).transpose(2, 0, 1) for n in range(15)])
    ids = [id_of(n) for n in range(15)]
    whole = ArrayDataset("whole", ids, (), images, np.full(15, -1))
    score_to_file(tmp_path / "whole.parquet", {n: strategies.build(n) for n in NAMES},
                  model=net(), task=TASK, dataset=whole, device=CPU)  # fmt: skip
    expected, table = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(report.table)
    assert table.column("id").to_pylist() == ids
    assert table.column("shard").to_pylist() == [f"{n // 5:05d}.tar" for n in range(15)]
    for name in NAMES:
        values = torch.tensor(table.column(name).to_pylist())
        torch.testing.assert_close(values, torch.tensor(expected.column(name).to_pylist()))


def test_a_run_that_was_stopped_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    score_pool(scorer(pool, tmp_path / "once", names=(*NAMES, "bald")))
    stop = Stop()

    def after_one(progress: Progress) -> None:
        if progress.done == 1:
            stop.request()

    with pytest.raises(Interrupted):
        score_pool(scorer(pool, tmp_path / "twice", names=(*NAMES, "bald")), observer=after_one,
                   stop=stop)  # fmt: skip
    report = score_pool(scorer(pool, tmp_path / "twice", names=(*NAMES, "bald")))
    assert report.new == 2
    assert files(tmp_path / "once") == files(tmp_path / "twice")


@pytest.mark.parametrize("world", [1, 2, 5])
def test_scores_do_not_depend_on_who_scores_which_shard(world: int, tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    score_pool(scorer(pool, tmp_path / "one", names=("bald",)))
    several = scorer(pool, tmp_path / "several", names=("bald",))
    several.prepare()
    for rank in reversed(range(world)):
        for shard in shards_of_rank(several.missing(), rank, world) if rank else several.missing():
            several.score(shard)
    score_pool(several)
    assert files(tmp_path / "one") == files(tmp_path / "several")


def test_a_folder_of_another_network_or_score_is_refused(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    score_pool(scorer(pool, tmp_path / "out"))
    with pytest.raises(RunError, match="weights_sha256"):
        score_pool(scorer(pool, tmp_path / "out", seed=2))
    with pytest.raises(RunError, match="scores was"):
        score_pool(scorer(pool, tmp_path / "out", names=("margin",)))


class Squashed(nn.Sequential):
    """A network whose function no weight and no attribute shows."""

    squash = staticmethod(torch.tanh)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.squash(super().forward(x))


@pytest.mark.parametrize("option", ["rate", "forward"])
def test_a_folder_of_another_network_with_the_same_weights_is_refused(
    tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of both were joined in one table."""
    pool = write_parquet(tmp_path / "pool")
    first = replace(scorer(pool, tmp_path / "out"), model=Squashed(*net()))
    first.prepare()
    first.score(first.pool.shards[0])
    score_pool(replace(first, out=tmp_path / "again"))
    other = Squashed(*net())
    if option == "rate":
        other[3].p = 0.1  # of which `bald` and its like are made
    else:
        monkeypatch.setattr(Squashed, "squash", torch.sin)
    with pytest.raises(RunError, match=r"3\.p 0\.5 instead of 0\.1|forward.* computes otherwise"):
        score_pool(replace(first, model=other))
    monkeypatch.undo()
    assert score_pool(first).new == 2


@pytest.mark.parametrize("option", ["views", "class"])
def test_a_folder_of_another_task_is_refused(tmp_path: Path, option: str) -> None:
    class Weighed(tasks.Classification):
        pass

    first = scorer(write_parquet(tmp_path / "pool", 2, 4), tmp_path / "out")
    first.prepare()
    first.score(first.pool.shards[0])
    options = {"num_classes": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    other = Weighed(**options) if option == "class" else replace(TASK, views="flip")  # type: ignore[arg-type,type-var]
    with pytest.raises(RunError, match=rf"task was .*'{option}': .* and is .*'{option}': .* now"):
        score_pool(replace(first, task=other))
    score_pool(first)


@pytest.mark.parametrize("shard", [0, 2])
@pytest.mark.parametrize("type_", [pa.null(), pa.binary()])
def test_a_shard_without_any_image_is_left_out(
    type_: pa.DataType, shard: int, tmp_path: Path
) -> None:
    """It was refused even with --skip-corrupt, though its rows could each be left out."""
    pool = write_parquet(tmp_path / "pool")
    path = pool / f"part-0000{shard}.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("image")
    pq.write_table(table.set_column(column, "image", pa.nulls(len(table), type_)), path)
    report = score_pool(replace(scorer(pool, tmp_path / "out"), on_corrupt="skip"))
    assert (report.scored, report.skipped) == (15 - len(table), len(table))
    with pytest.raises(DataError, match=rf"row 0 \(from 0\) of .*part-0000{shard}"):
        score_pool(scorer(pool, tmp_path / "fail"))


def test_a_call_that_the_store_refuses_leaves_the_folder_to_the_one_that_began_it(
    tmp_path: Path,
) -> None:
    pool = write_parquet(tmp_path / "pool")
    strict = replace(scorer(pool, tmp_path / "out"), keep=strategies.build("badge").needs)
    score_pool(strict)
    lax = replace(strict, on_corrupt="skip", precision="float16")
    with pytest.raises(RunError, match="precision"):
        score_pool(lax)
    assert score_pool(strict).new == 0


def test_what_cannot_be_read_may_be_left_out_of_a_folder_that_was_begun(tmp_path: Path) -> None:
    """Shards that are whole stay; what was left out is not passed over by a stricter call."""
    pool = write_parquet(tmp_path / "pool")
    table = pq.read_table(pool / "part-00002.parquet")
    cells = [b"no image", *table.column("image").to_pylist()[1:]]
    bad = table.set_column(table.column_names.index("image"), "image", pa.array(cells))
    pq.write_table(bad, pool / "part-00002.parquet")

    def score(name: str, on_corrupt: Literal["fail", "skip"]) -> PoolReport:
        return score_pool(replace(scorer(pool, tmp_path / name), on_corrupt=on_corrupt))

    with pytest.raises(DataError, match="part-00002"):
        score("out", "fail")
    assert (score("out", "skip").new, score("out", "skip").skipped) == (1, 1)
    score("once", "skip")
    assert files(tmp_path / "out") == files(tmp_path / "once")
    with pytest.raises(RunError, match="on_corrupt was 'skip' and is 'fail' now"):
        score("out", "fail")


def test_a_pool_that_gains_shards_goes_on_with_signals_that_are_kept(tmp_path: Path) -> None:
    pool, needs = write_parquet(tmp_path / "pool"), strategies.build("core-set").needs

    def score(name: str) -> PoolReport:
        return score_pool(replace(scorer(pool, tmp_path / name), keep=needs))

    (pool / "part-00000.parquet").rename(tmp_path / "later")
    score("out")
    (tmp_path / "later").rename(pool / "part-00000.parquet")  # the first one now
    assert score("out").new == 1
    score("once")
    assert files(tmp_path / "out") == files(tmp_path / "once")
    names = [f"{n:05d}.parquet" for n in range(20)]
    record_or_compare(tmp_path / "r.json", {"shards": names})
    with pytest.raises(RunError) as told:
        record_or_compare(tmp_path / "r.json", {"shards": [*names[5:], "new.parquet"]})
    assert "5 are not there any more, '00000.parquet', '00001.parquet'" in str(told.value)
    assert "1 is new, 'new.parquet'" in str(told.value)
    assert "00003" not in str(told.value)


def test_a_shard_that_changed_is_refused(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    score_pool(scorer(pool, tmp_path / "out"))
    table = pa.table({"id": ["new"], "image": [png(77)]})
    pq.write_table(table, pool / "part-00001.parquet")
    with pytest.raises(DataError, match=r"part-00001\.parquet to be as it was"):
        score_pool(scorer(pool, tmp_path / "out"))


def test_an_id_in_two_shards_is_named_and_what_is_scored_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upslope.scoring import duplicate_ids

    monkeypatch.setattr(duplicate_ids, "BUCKET", 4)  # several files of hashes
    pool = write_parquet(tmp_path / "pool")
    table = pq.read_table(pool / "part-00002.parquet")
    ids = [*table.column("id").to_pylist()[:4], id_of(3)]
    pq.write_table(table.set_column(0, "id", pa.array(ids)), pool / "part-00002.parquet")
    with pytest.raises(DataError, match=f"{id_of(3)!r} is in 'part-00000.parquet' and in 'part-0"):
        score_pool(scorer(pool, tmp_path / "out"))
    assert not (tmp_path / "out" / "scores.parquet").exists()
    report = score_pool(scorer(pool, tmp_path / "out"), ids_by_shard=True)
    assert report.new == 0
    assert len(set(pq.read_table(report.table).column("id").to_pylist())) == 15


def test_distinct_ids_pass_the_comparison_of_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upslope.scoring import duplicate_ids

    monkeypatch.setattr(duplicate_ids, "BUCKET", 4)
    assert score_pool(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out")).scored == 15
    assert not list((tmp_path / "out").glob(".ids-*"))


def test_a_signal_that_is_trained_on_the_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained on the pool first"):
        score_pool(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out", names=("vaal",)))


@pytest.mark.parametrize("fault", ["cut", "a bit of a score", "a bit of an id", "a fact", "a name"])
def test_a_damaged_file_of_scores_is_told_and_made_again(tmp_path: Path, fault: str) -> None:
    pool = write_parquet(tmp_path / "pool")
    report = score_pool(scorer(pool, tmp_path / "out"))
    once = files(tmp_path / "out")
    file = tmp_path / "out" / "shards" / "part-00001.parquet.parquet"
    damage(file, fault)
    ready = scorer(pool, tmp_path / "out")
    with pytest.raises(DataError, match=r"part-00001\.parquet\.parquet but"):
        join_scores(ready)
    with pytest.warns(UserWarning, match=r"part-00001\.parquet\.parquet is damaged"):
        assert score_pool(ready).new == 1
    assert files(tmp_path / "out") == once
    assert report.scored == 15


@pytest.mark.parametrize("fault", ["cut", "a bit of a score", "a bit of an id", "a name"])
def test_damage_of_the_table_of_all_shards_is_told(tmp_path: Path, fault: str) -> None:
    table = score_pool(scorer(write_parquet(tmp_path / "pool"), tmp_path / "out")).table
    check_joined(table)
    damage(table, fault)
    with pytest.raises(DataError, match="Run `upslope score` again"):
        check_joined(table)


def test_tables_of_scores_of_earlier_versions_have_no_digest_and_are_read(tmp_path: Path) -> None:
    pool = write_parquet(tmp_path / "pool")
    table = score_pool(scorer(pool, tmp_path / "out")).table
    shards = sorted((tmp_path / "out" / "shards").iterdir())
    for file in (table, *shards):
        content = pq.read_table(file)
        record = json.loads(metadata_of(file))
        del record["sha256"]
        kept = {b"upslope": json.dumps(record)} if record else None
        pq.write_table(content.replace_schema_metadata(kept), file)
    check_joined(table)
    assert score_pool(scorer(pool, tmp_path / "out")).new == 0


def metadata_of(file: Path) -> bytes:
    return dict(pq.read_metadata(file).metadata)[b"upslope"]


def damage(file: Path, fault: str) -> None:
    """Damage a file of scores so that Parquet's own reader notices nothing, but for what is cut."""
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-20])
        return
    table = pq.read_table(file)
    metadata = {b"upslope": metadata_of(file)}
    if fault == "a bit of a score":
        at = table.column_names.index("margin")
        values = table.column(at).to_numpy().copy()
        values.view("u8")[3] ^= 1
        table = table.set_column(at, "margin", pa.array(values))
    elif fault == "a bit of an id":
        at = table.column_names.index("id")
        ids = table.column(at).to_pylist()
        ids[3] = ids[3].replace("sample", "sampld")
        table = table.set_column(at, "id", pa.array(ids))
    elif fault == "a name":  # of the digest
        metadata[b"upslope"] = metadata[b"upslope"].replace(b"sha256", b"sha257")
    else:
        metadata[b"upslope"] = metadata[b"upslope"].replace(b'"skipped": []', b'"skipped": ["x"]')
    pq.write_table(table.replace_schema_metadata(metadata), file)
