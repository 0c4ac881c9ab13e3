"""Figures taken from finished runs: computed once, kept beside the runs, gone on with after a kill.

`<study>/measured/<measure>/<strategy>/seed-<s>.json` holds one; it is computed again where the
models or the options are not those that it was computed from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.experiment.checks import digest
from upslope.files import write_atomically
from upslope.progress import Observer, Stop
from upslope.reproduction.study import Opened
from upslope.reproduction.subject import Subject

Figures = dict[str, Any]
"""Plain data, as JSON holds it."""


@dataclass(frozen=True)
class Measure:
    """A function of a finished run, at the top of a module so that it travels to workers.

    options: what it is called with beside the run.
    """

    name: str
    take: Callable[..., Figures]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """One measure on some strategies of a study: the jobs of `each`."""

    opened: Opened
    measure: Measure
    strategies: tuple[str, ...]

    def names(self, seed: int) -> list[str]:  # noqa: ARG002
        """The strategies, under every seed."""
        return list(self.strategies)

    def run(self, name: str, seed: int, observer: Observer, stop: Stop) -> None:
        """Take it, where it has not been taken."""
        subject = Subject(self.opened, name, seed, observer, stop)
        key = self._key(subject)
        if self._read(name, seed).get("key") == key:
            return
        figures = self.measure.take(subject, **self.measure.options)
        text = json.dumps({"key": key, "figures": figures}, indent=1)
        file = self._file(name, seed)
        write_atomically(file, lambda path: _write(path, text))

    def figures(self, name: str, seed: int) -> Figures:
        """What was found."""
        found: Figures = self._read(name, seed)["figures"]
        return found

    def _key(self, subject: Subject) -> str:
        models = [cycle.model_sha256 for cycle in subject.run.cycles]
        return digest([self.measure.name, dict(self.measure.options), models])

    def _file(self, name: str, seed: int) -> Path:
        return self.opened.folder / "measured" / self.measure.name / name / f"seed-{seed}.json"

    def _read(self, name: str, seed: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file(name, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
