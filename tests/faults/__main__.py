"""The campaign: `python -m tests.faults --out DIR`, with `--seed`; the same command goes on.

Without a number of any kind, all kinds are tried in their long form, which takes days; with one,
those alone that are given. `DIR/summary.md` and `summary.json` say how it ended, `DIR/trials.jsonl`
every trial, with what is needed to make it again (`--only KIND/SUBJECT/NUMBER`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # and for the workers of what is started here
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    # Here, so that Ctrl-C while torch is imported ends as it does later.
    from tests.faults.campaign import KINDS, LONG, Campaign
    from tests.faults.summary import write_summary
    from tests.faults.trials import Record

    parser = argparse.ArgumentParser(description=__doc__)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, metavar="N", help=f"long form: {LONG[kind]:,}")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--subjects", help="of kills, errors, power and races; commas between")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then begin no more")
    parser.add_argument("--only", metavar="KIND/SUBJECT/NUMBER", help="one trial; its files stay")
    parser.add_argument("--out", type=Path, help="folder of the record; a new one by default")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="faults-"))
    record = Record(out)
    counts = {kind: getattr(options, kind) for kind in KINDS}
    if all(count is None for count in counts.values()):
        counts = dict(LONG)
    subjects = options.subjects.split(",") if options.subjects else None
    for number in (signal.SIGINT, signal.SIGTERM):  # also where it was started in the background
        signal.signal(number, signal.default_int_handler)
    until = time.monotonic() + 60 * options.minutes
    with Campaign(record, options.seed, until, subjects, keep=bool(options.only)) as campaign:
        if options.only:
            trial = campaign.one(*options.only.split("/"))
            print(dict(trial.outcomes), *trial.finds, sep="\n")
            return int(trial.failed)
        for kind, count in counts.items():
            campaign.run(kind, count or 0)
    table = write_summary(record)
    print(table, f"\n{out}/summary.md")
    return int(any(trial.failed for trial in record))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Stopped; the same command with the same --out goes on.", file=sys.stderr)
        sys.exit(130)
