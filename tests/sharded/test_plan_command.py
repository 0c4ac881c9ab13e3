"""The plan of a pool: arithmetic on what a short run measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shards_to_write import write_parquet
from test_score_command import STATISTICS, checkpoint
from test_score_shards import CPU, TASK, net
from typer.testing import CliRunner

from upslope import strategies
from upslope.cli import app
from upslope.config import PoolPlan, plan_pool
from upslope.config.scoring import TrainedModel
from upslope.errors import ConfigError
from upslope.pools import open_pool

__all__ = ["checkpoint"]


def planned(folder: Path, name: str, **options: object) -> PoolPlan:
    pool = open_pool(str(folder))
    with pool.open(pool.shards[0]) as rows:
        ready = TrainedModel(rows, TASK, net(), CPU)
    return plan_pool(pool, ready, strategies.build(name), budget=4, **options)  # type: ignore[arg-type]


def test_rows_are_told_by_bytes_and_all_scales_with_them(tmp_path: Path) -> None:
    write_parquet(tmp_path, 4, 50)
    assert planned(tmp_path, "margin").rows == pytest.approx(200, rel=0.02)
    plan = planned(tmp_path, "margin", rows=10**8, workers=4, price=2.0)
    assert plan.rows == 10**8
    assert plan.score_total_s == pytest.approx(
        10**8 * ((plan.open_s + plan.score_s) / 4 + plan.join_s)
    )
    low, high = plan.score_bounds_s
    assert low <= plan.score_total_s <= high
    assert plan.money == pytest.approx((4 * plan.score_total_s + plan.select_s) / 3600 * 2)
    assert plan.disk == 10**8 * 2 * (len("sample-00000") + 8)


def test_signals_that_are_kept_count_on_the_disk(tmp_path: Path) -> None:
    write_parquet(tmp_path, 2, 50)
    plan = planned(tmp_path, "badge", rows=1000)
    # Posteriors of 4 classes and 16 features, each with a digest of 32 bytes per row.
    assert plan.disk == 1000 * (2 * len("sample-00000") + (32 + 16) + (32 + 64))


def test_a_strategy_without_two_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="but got batch-bald"):
        planned(write_parquet(tmp_path), "batch-bald")


def test_the_command_prints_the_formula(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    command = ["plan", str(checkpoint), "--data", str(write_parquet(tmp_path / "pool")), "-s",
               "model.name=mlp", *STATISTICS, "--rows", "100000000", "--price", "2.5",
               "--strategy", "core-set", "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    told = " ".join(result.output.split())
    assert result.exit_code == 0, told
    for words in (
        "100,000,000 x ((",
        "by the fastest and the slowest short run",
        "ms to score) / 1 worker",
        "x 2.5 per hour",
        "measured 5 of 5",
    ):
        assert words in told


@pytest.mark.parametrize(
    "numbers",
    [("--price", "inf"), ("--rows", "10", "--budget", "20"), ("--rows", "9" * 20),
     ("--workers", "1000000000")],
)  # fmt: skip
def test_numbers_that_no_pool_has_are_refused(
    numbers: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    command = ["plan", str(checkpoint), "--data", str(write_parquet(tmp_path / "pool")), "-s",
               "model.name=mlp", *STATISTICS, *numbers]  # fmt: skip
    assert CliRunner().invoke(app, command).exit_code == 2
