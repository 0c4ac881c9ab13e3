"""Workers of Ray on this machine: the numbers of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import ray_functions
from forked import until
from small_tasks import TASK, Points, perceptron
from upslope import strategies
from upslope.cli.engines import fingerprint_of
from upslope.comparison import read_comparison
from upslope.distributed.engine import using
from upslope.distributed.fingerprint import Fingerprint
from upslope.distributed.ray_engine import RayEngine
from upslope.errors import ConfigError, DataError, ModelError, RunError
from upslope.pool import PoolView
from upslope.pools import ReadOptions, open_pool
from upslope.scoring import ShardScorer, compute_signals, score_pool
from upslope.seeds import generator, global_generator
from upslope.tasks import Classification

pytest.importorskip("ray", reason="needs ray: pip install 'upslope[ray]'")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes of Ray on Linux"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with RayEngine.started(2, threads=1) as started:
            yield started


def points_network() -> nn.Module:
    with global_generator(1, device=CPU):
        return perceptron(norm=True, dropout=0.5).eval()


def signals(model: nn.Module, pool: Points, name: str = "margin", **options: Any) -> Any:
    return compute_signals(
        strategies.build(name).needs, model, TASK, pool, range(len(pool)),
        device=CPU, seed=2, batch_size=8, **options,
    )  # fmt: skip


def network_by_process(leader: int, seen: str) -> nn.Module:
    """A network whose code is another in the workers, as on a machine with another checkout."""
    if os.getpid() == leader or seen == "alike":
        return points_network()
    return perceptron(norm=True, dropout=0.25).eval()


@pytest.mark.parametrize("seen", ["alike", "otherwise"])
def test_a_worker_that_builds_another_network_is_refused(engine: RayEngine, seen: str) -> None:
    pool, make_model = Points(60), partial(network_by_process, os.getpid(), seen)
    with engine.together({"pool": pool}, CPU, make_model, fingerprint_of):
        if seen == "alike":
            assert len(signals(points_network(), pool).candidates) == 60
            return
        words = r"all workers of Ray to build the same network but the one on .* other layers"
        with pytest.raises(ModelError, match=words):
            signals(points_network(), pool)


def test_a_worker_that_opens_other_samples_is_refused(engine: RayEngine) -> None:
    def count_samples(datasets: Any, _: Any) -> Fingerprint:
        return Fingerprint(os.getpid() == leader)

    leader = os.getpid()
    with (
        engine.together({"pool": Points(60)}, CPU, points_network, count_samples),
        pytest.raises(DataError, match="all workers of Ray to open the same data but the one on"),
    ):
        signals(points_network(), Points(60))


def test_scores_are_those_of_one_process_bit_for_bit(engine: RayEngine) -> None:
    pool, model = Points(150, corrupt=frozenset({40})), points_network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # other weights than those that each worker makes by itself
    with engine.together({"pool": pool}, CPU, points_network):
        for name in ("entropy-gradnorm", "badge", "bald"):
            got = signals(model, pool, name, on_corrupt="skip")
            with using(None):
                expected = signals(model, pool, name, on_corrupt="skip")
            assert (got.candidates, got.skipped) == (expected.candidates, (40,))
            for need, values in expected.signals.items():
                assert torch.equal(got.signals[need], values)
        with pytest.raises(DataError, match="Expected to read p0040 but it is torn"):
            signals(model, pool)
        addresses = listening()
    assert len(addresses) > 3
    assert set(addresses) <= {"127.0.0.1", "::1"}  # no other machine can connect


def listening() -> list[str]:
    """The addresses at which this process and its children listen."""
    here = psutil.Process()
    return [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [here, *here.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_an_actor_is_killed_and_every_sample_is_scored_once(
    engine: RayEngine, tmp_path: Path
) -> None:
    pool, make = ray_functions.pool(), ray_functions.slow(tmp_path, 0.05)
    quick = ray_functions.slow(tmp_path, 0.0)()
    expected = signals(quick, pool)
    me = {str(os.getpid())}
    seen: list[int] = []

    def kill_one(progress: Any) -> None:
        there = {p.name for p in tmp_path.iterdir()} - me
        if not seen and progress.done > 100 and len(there) == 2:
            seen.append(int(there.pop()))
            os.kill(seen[0], signal.SIGKILL)

    with engine.together({"pool": pool}, CPU, make):
        got = signals(make(), pool, observer=kill_one)
    assert seen, "nobody was killed"
    assert len({p.name for p in tmp_path.iterdir()} - me) == 3  # two, and the one that came after
    assert got.candidates == expected.candidates == tuple(range(400))

    def select(table: Any) -> tuple[str, ...]:
        view = PoolView([pool.ids[i] for i in table.candidates], table.signals)
        return strategies.build("margin").select(view, 50, generator(0)).ids

    for need, values in expected.signals.items():
        assert torch.equal(got.signals[need], values)
    assert select(got) == select(expected)


def test_what_kills_every_actor_is_one_error(engine: RayEngine) -> None:
    pool = Points(40)
    model = ray_functions.Deadly().eval()
    with engine.together({"pool": pool}, CPU, None), pytest.raises(RunError, match="died 4 times"):
        signals(model, pool)


def fingerprints(out: Path) -> dict[tuple[str, int], list[Any]]:
    return {
        (name, run.seed): [(cycle.model_sha256, cycle.asked) for cycle in run.cycles]
        for name, runs in read_comparison(out).runs.items()
        for run in runs
    }


def test_a_comparison_by_tasks_is_that_of_one_process(engine: RayEngine, tmp_path: Path) -> None:
    ray_functions.comparison(tmp_path / "one")
    with using(engine):
        result = ray_functions.comparison(tmp_path / "ray")
        assert result.finished
        again = time.monotonic()
        ray_functions.comparison(tmp_path / "ray")  # nothing is left to do
    assert time.monotonic() - again < 60
    assert fingerprints(tmp_path / "ray") == fingerprints(tmp_path / "one")
    assert not list((tmp_path / "ray").glob(".seen-*"))


def test_a_folder_that_a_task_does_not_see_is_named(engine: RayEngine, tmp_path: Path) -> None:
    from upslope.comparison.ray_tasks import _run

    task = engine.submit(_run, b"", "margin", 0, 1, str(tmp_path / "runs" / ".seen-none"))
    with pytest.raises(RunError, match="Expected every machine of the Ray cluster to see"):
        engine.result(task)


def test_shards_are_scored_by_workers(engine: RayEngine, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    rng = generator(0)
    for name in ("a", "b", "c"):
        rows = torch.randint(0, 256, (30, 192), generator=rng).to(torch.uint8).tolist()
        images = pa.array(rows, pa.list_(pa.uint8(), 192))
        table = pa.table({"id": [f"{name}{i}" for i in range(30)], "image": images})
        pq.write_table(table, folder / f"{name}.parquet")
    pool = open_pool(str(folder), options=ReadOptions(shape=(3, 8, 8)))
    with global_generator(1, device=CPU):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    task = Classification(5, mean=(0.5,) * 3, std=(0.2,) * 3)
    reports = []
    for out, by in ((tmp_path / "one", None), (tmp_path / "ray", engine)):
        scorer = ShardScorer(pool, out, {"egl": strategies.build("egl")}, model, task, CPU)
        if by is None:
            reports.append(score_pool(scorer))
        else:
            with by.together({}, CPU):
                reports.append(score_pool(scorer))
    assert [report.new for report in reports] == [3, 3]
    assert pq.read_table(reports[1].table).equals(pq.read_table(reports[0].table))


def test_more_workers_than_the_cluster_has_gpus_for_are_refused(engine: RayEngine) -> None:
    import ray

    with pytest.raises(ConfigError, match="Expected a Ray cluster with 3 GPUs for 2 workers"):
        RayEngine(2, gpus=1.5)._check_resources(ray)


def test_ctrl_c_ends_ray_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "upslope", "compare", "--strategies", "margin,egl", "--seeds", "2",
        "--engine", "ray", "--workers", "2", "--device", "cpu", "--out", str(tmp_path / "runs"),
        "-s", "experiment.initial=30", "-s", "experiment.budget=10", "-s", "experiment.cycles=3",
        "-s", "training.epochs=2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    started = psutil.Process(process.pid)
    until(lambda: list(tmp_path.glob("runs/*/seed-*/ledger.sqlite")) or process.poll() is not None)
    children = started.children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130, (tmp_path / "log").read_text()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert "the same command" in (tmp_path / "log").read_text()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "authentication" not in done.stderr  # lines of Ray's own
    assert read_comparison(tmp_path / "runs").finished


def test_without_ray_the_engine_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install '\.\[ray\]'"),
        RayEngine.started(1),
    ):
        pass
