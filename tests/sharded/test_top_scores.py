"""The highest scores in one pass: those of `pool.top`, ties by id."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from upslope.errors import ConfigError, SelectionError
from upslope.pool import PoolView, top
from upslope.scoring import top as top_module
from upslope.scoring.top import top_scores


@pytest.mark.parametrize("budget", [1, 7, 50, 200])
def test_they_are_those_of_the_whole_pool_in_memory(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_module, "_ROWS", 13)
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (200,), generator=rng).double()
    ids = [f"ä{i}" if i % 7 == 0 else f"s{i}" for i in torch.randperm(200, generator=rng).tolist()]
    pq.write_table(pa.table({"id": ids, "margin": scores.numpy()}), tmp_path / "s.parquet")
    expected = top(PoolView(ids), scores, budget).ids
    chosen = top_scores(tmp_path / "s.parquet", "margin", budget)
    assert tuple(id_ for id_, _ in chosen) == expected
    assert [score for _, score in chosen] == sorted(scores.tolist(), reverse=True)[:budget]
    if budget < 200:
        without = top_scores(tmp_path / "s.parquet", "margin", 1, without=expected)
        assert without[0][0] == top(PoolView(ids), scores, budget + 1).ids[-1]


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "margin": [1.0, float("nan")]})
    pq.write_table(table, tmp_path / "nan.parquet")
    with pytest.raises(SelectionError, match=r"\['b'\] has none"):
        top_scores(tmp_path / "nan.parquet", "margin", 1)
    with pytest.raises(ConfigError, match="Expected the score 'egl'"):
        top_scores(tmp_path / "nan.parquet", "egl", 1)
    pq.write_table(table.slice(0, 1), tmp_path / "one.parquet")
    with pytest.raises(SelectionError, match="between 1 and the 1 candidates"):
        top_scores(tmp_path / "one.parquet", "margin", 2)
