"""Whether gradient norms are exact or refused: a campaign over architectures, and random
networks.

    python benchmarks/exactness.py campaign --seeds 3 --out results/exactness/campaign
    python benchmarks/exactness.py fuzz --models 10000 --seed 0 --out results/exactness/fuzz

Every answer is held against ordinary autograd in float64, one sample at a time and in the batch;
how is told in `tests/gradnorm/campaign/judge.py`. The work goes in chunks, each in a process of
its own, whose verdicts are written as it ends: a run that is cut off goes on where it was.
`--out` holds the chunks, `summary.json` and `summary.md`. A random network that fails is made
smaller and printed as a script. The campaign includes MONAI and `transformers` where they are
installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "gradnorm"), str(ROOT / "src")]

Record = dict[str, Any]
CHUNK_SECONDS = 3600
"""A chunk that takes longer is counted as crashed."""


def main() -> None:
    """Run the chunks that are missing, then sum up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("campaign", "fuzz"))
    parser.add_argument("--models", type=int, default=10_000, help="random networks (fuzz)")
    parser.add_argument("--seed", type=int, default=0, help="of the first random network (fuzz)")
    parser.add_argument("--seeds", type=int, default=1, help="of weights and batches (campaign)")
    parser.add_argument("--chunk", type=int, default=250, help="networks per process")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        first, last = map(int, options.only.split(":"))
        run_chunk(options, first, last)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    count = options.models if options.what == "fuzz" else len(campaign_jobs(options.seeds))
    for first in range(0, count, options.chunk):
        last = min(first + options.chunk, count)
        if not chunk_path(options.out, first, last).exists():
            run_in_a_process(options, first, last)
            print(f"{last} of {count}", flush=True)
    write_summary(options.out, options.what)


def campaign_jobs(seeds: int) -> list[tuple[int, int]]:
    """(index of the case, seed), for all."""
    from campaign.registry import every_case

    return [(index, seed) for index in range(len(every_case())) for seed in range(seeds)]


def chunk_path(out: Path, first: int, last: int) -> Path:
    """Where a chunk's verdicts are."""
    return out / f"chunk-{first:06d}-{last:06d}.json"


def run_in_a_process(options: argparse.Namespace, first: int, last: int) -> None:
    """Run a chunk; one that dies is written as crashed."""
    command = [sys.executable, __file__, options.what, "--out", str(options.out)]
    command += ["--seed", str(options.seed), "--seeds", str(options.seeds)]
    command += ["--only", f"{first}:{last}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        code = subprocess.run(command, env=environment, timeout=CHUNK_SECONDS).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code != 0:
        died = {"title": f"{first} to {last}", "family": "a process", "mixes": False}
        record = died | {"outcome": "crashed", "detail": f"the process ended with {code}"}
        write(chunk_path(options.out, first, last), [record])


def run_chunk(options: argparse.Namespace, first: int, last: int) -> None:
    """Try the networks of a chunk and write the verdicts."""
    import torch
    from campaign.judge import try_case
    from campaign.registry import every_case
    from fuzz.generate import plan, smaller

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records: list[Record] = []
    if options.what == "campaign":
        cases = every_case()
        for index, seed in campaign_jobs(options.seeds)[first:last]:
            case = cases[index]
            records += as_records(try_case(case, seed), case.family, f"{case.name}, seed {seed}")
    else:
        for seed in range(options.seed + first, options.seed + last):
            drawn = plan(seed)
            verdicts = try_case(drawn.case(), seed)
            records += as_records(verdicts, "random", str(seed))
            if not all(v.good for v in verdicts):
                small = smaller(
                    drawn, lambda p: not all(v.good for v in try_case(p.case(), p.seed))
                )
                records[-1]["script"] = small.script()
                print(small.script(), flush=True)
    write(chunk_path(options.out, first, last), records)


def as_records(verdicts: list[Any], family: str, title: str) -> list[Record]:
    """The verdicts as they are written."""
    return [
        {"family": family, "title": title, **dataclasses.asdict(verdict)} for verdict in verdicts
    ]


def write(path: Path, records: list[Record]) -> None:
    """Write whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(records, indent=0) + "\n")
    partial.replace(path)


def read_records(out: Path) -> Iterator[Record]:
    """The verdicts of all chunks."""
    for path in sorted(out.glob("chunk-*.json")):
        yield from json.loads(path.read_text())


def write_summary(out: Path, what: str) -> None:
    """Write `summary.json` and `summary.md`, and print the table."""
    from campaign.judge import OUTCOMES

    records = list(read_records(out))
    families = list(dict.fromkeys(r["family"] for r in records))
    counts = {f: Counter(r["outcome"] for r in records if r["family"] == f) for f in families}
    networks = {
        f: len(
            {r["title"].rpartition(", seed")[0] or r["title"] for r in records if r["family"] == f}
        )
        for f in families
    }
    refusals = Counter(first_words(r["detail"]) for r in records if r["outcome"] == "refused")
    slow = Counter(reason(r["detail"]) for r in records if r["outcome"] == "slow and said so")
    bad = [r for r in records if r["outcome"] in OUTCOMES[3:] or "script" in r]
    not_mixed = sum(r["outcome"] == "refused" and not r["mixes"] for r in records)
    header = ["family", "networks", "answers", *OUTCOMES, "not tried"]
    lines = [f"# Exactness: {what}", "", row(header), row(["---", *["---:"] * (len(header) - 1)])]
    for family in [*families, "all"]:
        total = counts[family] if family != "all" else sum(counts.values(), Counter())
        models = networks[family] if family != "all" else sum(networks.values())
        tried = sum(total[o] for o in OUTCOMES)
        lines.append(
            row([family, models, tried, *(total[o] for o in OUTCOMES), total["not tried"]])
        )
    lines += ["", f"Refused though no sample felt another in that batch: {not_mixed}.", ""]
    lines += ["## Refusals", "", *(f"- {n}: {words}" for words, n in refusals.most_common()), ""]
    lines += ["## Slow and said so", "", *(f"- {n}: {why}" for why, n in slow.most_common(20)), ""]
    lines += [
        "## Faults",
        "",
        *(f"- {r['family']} {r['title']}: {r['outcome']}: {r['detail']}" for r in bad),
    ]
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    summary = {
        "counts": counts,
        "networks": networks,
        "refusals": refusals,
        "slow": slow,
        "faults": bad,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join(lines[2 : 5 + len(families)]))


def first_words(detail: str) -> str:
    """The class of a refusal and the words before what it says of this model."""
    return " ".join(re.sub(r"`[^`]*`|\d+", "...", detail).split()[:10])


def reason(detail: str) -> str:
    """Why it was slow."""
    return re.sub(r"`[^`]*`|\d+", "...", detail.partition("because ")[2] or detail)[:80]


def row(cells: list[Any]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
