"""The chain of events: each holds a SHA-256 of itself and of the one before.

A flipped bit anywhere in what the run began with, or in an event, breaks it. Events recorded by
versions before it have none; the chain that follows them begins from a digest of them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.files import from_json, json_digest

CHAIN = "chain"
"""Key in the table `meta`: {"start": digest, "after": number of the last event without a chain}."""
COLUMNS = "number, time, cycle, kind, body"


@dataclass(frozen=True)
class End:
    """The last event: its number, and the digest that the next one goes on from.

    chained: the event itself holds that digest; False before the first that does.
    """

    number: int
    chain: str
    chained: bool = False

    def after(self, row: Sequence[Any]) -> End:
        """Return the end once `row`, as `COLUMNS`, is recorded."""
        return End(row[0], json_digest([self.chain, *row]), chained=True)


def start_of(meta: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> str:
    """Return the digest that a chain begins from: of `meta` and of the events before it."""
    content = {key: value for key, value in meta.items() if key != CHAIN}
    return json_digest([content, *(list(row[:5]) for row in rows)])


def check_chain(
    meta: Mapping[str, str], rows: Sequence[Sequence[Any]], *, what_is_wanted: bool
) -> End:
    """Return the end of the chain of `rows`, as `COLUMNS` and their digests.

    what_is_wanted: there must be one; otherwise the ledger is of a version that had none.

    Raises:
        ValueError: it is broken; says at which event.
    """
    if not what_is_wanted:
        return End(rows[-1][0] if rows else 0, "")
    chain = from_json(meta[CHAIN])
    after = chain["after"]
    before = [row for row in rows if row[0] <= after]
    if start_of(meta, before) != chain["start"]:
        raise ValueError(
            "what the run began with is not what was recorded"
            + (f", or an event up to number {after} is not" if after else "")
        )
    end = End(after, chain["start"])
    for row in rows[len(before) :]:
        if row[0] != end.number + 1:
            raise ValueError(f"event {end.number + 1} is missing")
        end = end.after(row[:5])
        if end.chain != row[5]:
            raise ValueError(f"event {row[0]} is not what was recorded")
    return end


def chain_begins(meta: Mapping[str, str]) -> int | None:
    """Return the number of the first event with a chain, None for a ledger without one."""
    return from_json(meta[CHAIN])["after"] + 1 if CHAIN in meta else None
