"""The table of a campaign, as Markdown and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from tests.faults.trials import BAD, GOOD, Record


def write_summary(record: Record) -> str:
    """Write `summary.md` and `summary.json` beside the record; returns the Markdown table."""
    rows = count_outcomes(record)
    table = to_markdown(rows)
    commits = sorted({trial.commit for trial in record})
    seeds = sorted({trial.seed for trial in record})
    finds = [
        {"trial": f"{t.kind}/{t.subject}/{t.number}", "seed": t.seed, "finds": t.finds}
        for t in record
        if t.failed
    ]
    lines = [table, "", f"Commits {', '.join(commits)}; seeds {', '.join(map(str, seeds))}.", ""]
    for find in finds:
        lines += [f"- {find['trial']}, seed {find['seed']}"]
        lines += [f"  - {' '.join(text.split())[:600]}" for text in find["finds"]]
    (record.folder / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {
        "commits": commits,
        "seeds": seeds,
        "rows": [
            {"kind": kind, "subject": subject, **dict(row)} for (kind, subject), row in rows.items()
        ],
        "finds": finds,
    }
    (record.folder / "summary.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return table


def count_outcomes(record: Record) -> dict[tuple[str, str], Counter[str]]:
    """Return (kind, subject) -> how many trials, faults and outcomes of each name."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for trial in record:
        row = rows.setdefault((trial.kind, trial.subject), Counter())
        row["trials"] += 1
        row["faults"] += trial.faults
        row.update(trial.outcomes)
    return dict(sorted(rows.items()))


def to_markdown(rows: Mapping[tuple[str, str], Counter[str]]) -> str:
    """Return a table with a row per kind and subject, and one for all of a kind."""
    columns = ["trials", "faults", *GOOD, *BAD]
    lines = [
        f"| kind | of | {' | '.join(columns)} |",
        f"| --- | --- | {' | '.join('--:' for _ in columns)} |",
    ]
    for kind in dict.fromkeys(kind for kind, _ in rows):
        parts = {subject: row for (k, subject), row in rows.items() if k == kind}
        for subject, row in parts.items():
            lines.append(_line(kind, subject, row, columns))
        if len(parts) > 1:
            lines.append(_line(kind, "all", sum(parts.values(), Counter()), columns))
    return "\n".join(lines)


def _line(kind: str, subject: str, row: Counter[str], columns: list[str]) -> str:
    return f"| {kind} | {subject} | {' | '.join(f'{row[c]:,}' for c in columns)} |"
