"""`ask` and `reproduce`: check a request, run what is missing, measure it, write it.

The command line calls them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope import registry
from upslope.errors import ConfigError, DataError, UpslopeError
from upslope.reproduction.artefacts import ARTEFACTS
from upslope.reproduction.output.results import Result
from upslope.reproduction.scales import read_scale
from upslope.reproduction.studies.runner import StudyRunner, Watch, watch_nothing
from upslope.reproduction.write import write_artefact, write_index

ALL = "all"


@dataclass(frozen=True)
class Report:
    """What became of each artefact of a request.

    folders, results: artefact -> where it lies, and what it consists of.
    missing: artefact -> which data cannot be opened. failed: artefact -> its other error.
    page: the index of all artefacts.
    """

    folders: Mapping[str, Path]
    results: Mapping[str, Result]
    missing: Mapping[str, str]
    failed: Mapping[str, UpslopeError]
    page: Path


@dataclass(frozen=True)
class Request:
    """What is to be reproduced, checked, with nothing opened yet.

    artefact: a key of `ARTEFACTS`, or "all". runner: runs the studies. names: of the artefacts.

    Raises:
        ConfigError: an unknown artefact, scale or variant; settings that are not allowed, or fewer
            cycles than an artefact shows.
    """

    artefact: str
    runner: StudyRunner
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(ARTEFACTS)
        if self.artefact != ALL and self.artefact not in ARTEFACTS:
            close = registry.did_you_mean(self.artefact, (*names, ALL))
            raise ConfigError(
                f"Expected an artefact among {', '.join(names)}, or {ALL}, but got "
                f"{self.artefact!r}{close}."
            )
        object.__setattr__(self, "names", names if self.artefact == ALL else (self.artefact,))
        for study in self.studies:
            self.runner.config(study)
        self._check_cycles()

    def _check_cycles(self) -> None:
        scale = self.runner.scale
        for name in self.names:
            least = ARTEFACTS[name].cycles
            for study in ARTEFACTS[name].studies(scale):
                if (cycles := self.runner.config(study).experiment.cycles) < least:
                    raise ConfigError(
                        f"Expected `experiment.cycles` of at least {least} for {name}, which shows "
                        f"how numbers change from cycle to cycle, but got {cycles}."
                    )

    @property
    def studies(self) -> tuple[str, ...]:
        """Return the studies that the artefacts need, each once."""
        scale = self.runner.scale
        return tuple(dict.fromkeys(s for n in self.names for s in ARTEFACTS[n].studies(scale)))


def ask(
    artefact: str,
    *,
    scale: str,
    variant: str = "code",
    out: Path | str | None = None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    watch: Watch = watch_nothing,
) -> Request:
    """Return a request that has been checked.

    artefact: a key of `ARTEFACTS`, or "all". scale, variant: keys of `SCALES` and `VARIANTS`.
    sets, overrides: on top of the configuration of every study, as `config.load` takes them.
    out: `runs/reproduce-<scale>-<variant>` where not given.

    watch: is told of progress.

    Raises:
        ConfigError: an unknown artefact, scale or variant; settings that are not allowed.
    """
    scale_read = read_scale(scale, variant)
    folder = Path(out) if out is not None else Path("runs") / f"reproduce-{scale}-{variant}"
    return Request(artefact, StudyRunner(scale_read, folder, sets, overrides or {}, watch))


def reproduce(
    request: Request, command: str = "", report: Callable[[str, Result], None] | None = None
) -> Report:
    """Make each artefact; of `all`, one that cannot be made does not stop the others.

    command: what to type to get the same, recorded with each artefact.
    report: called with the name and the result of each artefact when it is written.

    Returns: where everything lies, and what could not be made.

    request: what to make, as `ask` checked it.

    Raises:
        UpslopeError: the one artefact asked for cannot be made.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    runner = request.runner
    folders: dict[str, Path] = {}
    results: dict[str, Result] = {}
    missing: dict[str, str] = {}
    errors: dict[str, UpslopeError] = {}
    for name in request.names:
        start_time = time.monotonic()
        is_open = False
        try:
            for study in ARTEFACTS[name].studies(runner.scale):
                runner.open(study)
            is_open = True
            result = ARTEFACTS[name].make(runner)
            seconds = time.monotonic() - start_time
            folders[name] = write_artefact(name, result, runner, command, seconds)
        except UpslopeError as error:
            if request.artefact != ALL:
                raise
            # Later, data is at hand, and what is wrong is a figure that is NaN, for instance.
            if isinstance(error, DataError) and not is_open:
                missing[name] = str(error)
            else:
                errors[name] = error
            continue
        results[name] = result
        if report is not None:
            report(name, result)
    problems = {**missing, **{name: str(error) for name, error in errors.items()}}
    return Report(folders, results, missing, errors, write_index(runner.out, problems))
