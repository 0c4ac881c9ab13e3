"""The study behind docs/verdict.md: strategies x seeds, cell by cell.

    python benchmarks/verdict.py run --features features --runs runs/verdict --seeds 10
    python benchmarks/verdict.py summarise --runs runs/verdict --out results/verdict
    python benchmarks/verdict_tables.py --results results/verdict

A cell is a data set, a range of labels and a way of learning (`verdict_cells.py`); networks that
are trained whole read their data from `$UPSLOPE_DATA`. `run` goes seed by seed, in each seed cell
by cell, in each cell strategy by strategy. What was done before is not done again, so that the same
command goes on after a stop, and grows with `--seeds`, `--cells` and `--strategies`. One process
and thread; run it under `nice`.
`summarise` writes a JSON file per cell with every curve; `verdict_tables.py` makes the tables.
Curves in the files of `--out` count as done, so that the study goes on where its runs are not at
hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from upslope import strategies  # noqa: E402
from upslope.comparison import compare, read_comparison  # noqa: E402
from upslope.experiment import ExperimentSettings  # noqa: E402
from upslope.pool import Strategy  # noqa: E402
from verdict_cells import CELLS, Problem, problem, training_of  # noqa: E402

STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "margin": {"name": "margin"},
    "badge": {"name": "badge"},
    "typiclust": {"name": "typiclust"},
    "max-herding": {"name": "max-herding"},
    "u-herding": {"name": "u-herding"},
    "binary-bait": {"name": "binary-bait"},
    "binary-bait-fitted": {"name": "binary-bait", "temperature": "fitted"},
    "entropy-gradnorm": {"name": "entropy-gradnorm"},
    "egl": {"name": "egl"},
    "gradnorm-diverse": {"name": "gradnorm-diverse"},
    "dropquery": {"name": "dropquery"},
    "dcom": {"name": "dcom"},
    "power-entropy": {"name": "power"},
    "refine": {"name": "refine"},
    "oracle": {"name": "oracle"},
}


def run(options: argparse.Namespace) -> None:
    """Run what is not finished, seed by seed, until `--seconds` are over."""
    end = time.monotonic() + options.seconds
    torch.set_num_threads(1)
    for seed in range(options.first_seed, options.seeds):
        for name in options.cells:
            for label in options.strategies:
                if time.monotonic() > end:
                    return
                if str(seed) in _known(name, options.out).get(label, {}).get("curves", {}):
                    continue
                posed = problem(CELLS[name], options.features)
                if isinstance(posed, str):
                    print(f"{name}: {posed}", flush=True)
                else:
                    _run(name, posed, label, seed, options.runs)


def _run(name: str, posed: Problem, label: str, seed: int, runs: Path) -> None:
    cell, started = CELLS[name], time.monotonic()
    chosen: dict[str, Strategy] = {label: strategies.build(**STRATEGIES[label])}
    compare(
        runs / name,
        strategies=chosen,
        seeds=[seed],
        splits=posed.splits,
        task=posed.task,
        model=posed.model,
        settings=ExperimentSettings(
            initial=cell.initial,
            budget=cell.budget,
            cycles=cell.cycles,
            candidates=cell.candidates,
            score_batch=2500,
        ),
        training=posed.training,
        device="cpu",
        progress=False,
    )
    print(f"{name} {label} seed {seed}: {time.monotonic() - started:.1f} s", flush=True)


def summarise(options: argparse.Namespace) -> None:
    """Bring <out>/<cell>.json up to date: every finished run's curve, and seconds of selection."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, cell in CELLS.items():
        folder = options.runs / name
        if not any(folder.glob("*/seed-*/ledger.sqlite")):
            continue
        rows = _known(name, options.out)
        budgets: list[int] = []
        for label, results in read_comparison(folder).runs.items():
            finished = [run for run in results if run.finished]
            if finished:
                budgets = list(finished[0].curve()[0])
                rows[label] = _add(rows.get(label, {"curves": {}}), finished, label)
        if not budgets:
            continue
        _check_pairs(name, rows)
        record = {
            **_settings(name),
            "network": cell.whole or "linear head on frozen features",
            "commit": _commit(),
            "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
            "budgets": budgets,
            "strategies": rows,
        }
        text = json.dumps(record, indent=1, sort_keys=True)
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _check_pairs(name: str, rows: Mapping[str, Any]) -> None:
    """All strategies share the first model under a seed; other features or data would show there.

    Another processor may round a prediction otherwise: half a point is allowed.
    """
    for seed in {seed for row in rows.values() for seed in row["curves"]}:
        first = [row["curves"][seed][0] for row in rows.values() if seed in row["curves"]]
        if max(first) - min(first) > 0.005:
            raise SystemExit(
                f"{name}: the runs of seed {seed} begin with accuracies from {min(first)} to "
                f"{max(first)}, so they are not of the same data. Nothing was written of the cell."
            )


def _settings(name: str) -> dict[str, Any]:
    """What the runs of a cell have to share, as JSON gives it back."""
    settings = {"cell": asdict(CELLS[name]), "training": training_of(CELLS[name])}
    return dict(json.loads(json.dumps(settings)))


def _known(name: str, out: Path) -> dict[str, Any]:
    """The strategies of a cell's file in `out`; none without one."""
    file = out / f"{name}.json"
    if not file.is_file():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    if any(record[key] != value for key, value in _settings(name).items()):
        raise SystemExit(f"{file} holds runs of other settings. Move it away first.")
    rows: dict[str, Any] = record["strategies"]
    return rows


def _add(row: Mapping[str, Any], finished: list[Any], label: str) -> dict[str, Any]:
    """A strategy's row with the curves of its finished runs; of a seed that has one, the run's."""
    curves = {str(run.seed): [round(a, 5) for a in run.curve()[1]] for run in finished}
    kept = {seed: curve for seed, curve in row["curves"].items() if seed not in curves}
    seconds = _seconds(finished)
    if kept:
        seconds = len(curves) * seconds + len(kept) * row["selecting_seconds_per_cycle"]
        seconds /= len(curves) + len(kept)
    return {
        "options": STRATEGIES.get(label, {}),
        "curves": dict(sorted({**kept, **curves}.items(), key=lambda item: int(item[0]))),
        "selecting_seconds_per_cycle": round(seconds, 4),
    }


def _seconds(runs: list[Any]) -> float:
    cycles = [cycle.select_seconds for run in runs for cycle in run.cycles if cycle.asked]
    return sum(cycles) / len(cycles)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _names(table: Mapping[str, Any]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in table]:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(table)}, got {wrong}")
        return names

    return parse


def main() -> None:
    """Read the command and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run what is not finished")
    running.add_argument("--features", type=Path, default=Path("features"))
    running.add_argument("--cells", type=_names(CELLS), default=list(CELLS))
    running.add_argument("--strategies", type=_names(STRATEGIES), default=list(STRATEGIES))
    running.add_argument("--seeds", type=int, default=10, help="seeds 0 to this, less one")
    running.add_argument("--first-seed", type=int, default=0)
    running.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    summary = commands.add_parser("summarise", help="write a JSON file per cell")
    for command in (running, summary):
        command.add_argument("--runs", type=Path, default=Path("runs/verdict"))
        command.add_argument("--out", type=Path, default=Path("results/verdict"))
    options = parser.parse_args()
    {"run": run, "summarise": summarise}[options.command](options)


if __name__ == "__main__":
    main()
