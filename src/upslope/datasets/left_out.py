"""Counts, by kind, of files in a folder that are not read, and the sentences that tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from upslope.counts import format_count, list_some

_MOST_NAMES = 3


@dataclass
class LeftOut:
    """What lies in a folder and is not read: (noun, detail) -> paths relative to the root."""

    paths: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, noun: str, path: str, detail: str = "") -> None:
        """Count a path. noun: what it is, in the singular. detail: a clause after the noun, which
        reads well after one and after several."""
        self.paths.setdefault((noun, detail), []).append(path)

    def count(self, noun: str) -> int:
        """Return how many paths were counted under a noun."""
        return sum(len(paths) for (of, _), paths in self.paths.items() if of == noun)

    def counts(self) -> list[str]:
        """Return what was counted, as "3 hidden images: 'a', 'b', 'c'"."""
        return [
            f"{format_count(len(paths), noun)}{detail}: {name_some(paths)}"
            for (noun, detail), paths in sorted(self.paths.items())
        ]

    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each kind of what was left out."""
        return tuple(f"Left out {count_words}." for count_words in self.counts())


def name_some(names: Sequence[str]) -> str:
    """Return the first few of the names, quoted, as a list in a sentence."""
    return list_some([*map(repr, names)], _MOST_NAMES)
