"""A process that scores a pool, killed at random moments: what follows ends bit-equal."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shards_to_write import write_parquet
from test_score_shards import files, scorer

from upslope.scoring import score_pool

SCRIPT = Path(__file__).parent / "scores_to_kill.py"


def started(pool: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(pool), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.long
@pytest.mark.parametrize("kills", [1, 3])
def test_killed_at_random_moments_it_goes_on_and_ends_bit_equal(tmp_path: Path, kills: int) -> None:
    pool, out, rng = write_parquet(tmp_path / "pool", 40, 20), tmp_path / "killed", random.Random(3)
    for _ in range(kills):
        process = started(pool, out)
        assert process.stdout is not None
        seen = [line.split()[0] for line, _ in zip(process.stdout, range(3), strict=False)]
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        assert len(seen) == 3
        assert len(list((out / "shards").glob("*.parquet"))) >= int(seen[-1])
    before = len(list((out / "shards").glob("*.parquet")))
    report = score_pool(scorer(pool, out, names=("margin", "bald")))
    assert report.new == 40 - before
    score_pool(scorer(pool, tmp_path / "once", names=("margin", "bald")))
    assert files(out) == files(tmp_path / "once")
