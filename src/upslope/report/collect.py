"""From run directories on disk to a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from upslope.comparison import FULL_DATA
from upslope.errors import RunError
from upslope.ledger import RunResult, read_run
from upslope.ledger.store import run_folders
from upslope.report.study import Run, Study


def collect(paths: Iterable[Path | str]) -> Study:
    """Return the study of runs that are read, finished or not.

    Args:
        paths: run directories, or directories above them, such as that of a comparison.

    Raises:
        RunError: no run there, a damaged one, or runs that do not belong together.
    """
    return study_of(_read(paths))


def collect_sets(paths: Iterable[Path | str]) -> tuple[Study, ...]:
    """Return a study for each data set and range of labels, in the order of the folders.

    Runs of one comparison's folder belong together, as those of several folders with the same
    samples, initial set and budget do; what differs else between them is refused, as `collect`
    refuses it. Each study has the name of its folder.

    Runs begun in Python may not say what their data are. Where two such folders hold the same
    strategy and seed with other figures, they are taken for two data sets, and a note says so.

    Args:
        paths: run directories, or directories above them.

    Raises:
        RunError: as for `collect`.
    """
    folders: dict[Path, list[RunResult]] = {}
    for result in _read(paths):
        folders.setdefault(_comparison_folder(result), []).append(result)
    groups: list[tuple[Path, list[RunResult], list[str]]] = []
    for folder, results in folders.items():
        alike = [g for g in groups if _samples_and_labels(g[1]) == _samples_and_labels(results)]
        matching_group = next((g for g in alike if not _contradict(g[1], results)), None)
        if matching_group is not None:
            matching_group[1].extend(results)
            continue
        notes = [
            f"{folder.name} and {other[0].name} hold the same strategy and seed with other "
            "figures: they are taken for two data sets, which their ledgers do not name."
            for other in alike
        ]
        groups.append((folder, results, notes))
    if not groups:
        return (study_of(()),)
    if len(groups) == 1:
        return (study_of(groups[0][1]),)
    names = _distinct([folder.name for folder, _, _ in groups])
    return tuple(
        replace(study, name=name, notes=(*study.notes, *notes))
        for name, (_, results, notes) in zip(names, groups, strict=True)
        for study in [study_of(results)]
    )


def study_of(results: Sequence[RunResult]) -> Study:
    """Return a study of runs; those trained on the whole pool give the ceiling of their seed.

    results: of the runs.

    Raises:
        RunError: no run; runs of different figures, pools, test sets or configurations; runs under
            one name whose strategies have other options.
    """
    runs = [r for r in results if not _is_full_data(r)]
    if not runs:
        raise RunError("Expected at least one run of a strategy but got none.")
    first = runs[0]
    for run in runs[1:]:
        _same(first, run, "figure", first.primary, run.primary)
        _same(first, run, "pool", first.info.get("pool"), run.info.get("pool"))
        _same(first, run, "configuration", _shared_config(first), _shared_config(run))
        _same(first, run, "test set", *_test_sets(first, run))
    ceilings, notes = _ceilings(first, [r for r in results if _is_full_data(r) and r.cycles])
    options = _options_by_name(runs)
    return Study(
        runs=tuple(_as_run(run, ceilings.get(run.seed)) for run in runs),
        metric=first.primary,
        pool_size=first.info.get("pool"),
        config={**_shared_config(first), **({"strategies": options} if options else {})},
        environment=first.environment,
        name=str(first.info.get("data", "")),
        notes=notes,
    )


def _read(paths: Iterable[Path | str]) -> list[RunResult]:
    folders = [folder for path in paths for folder in run_folders(Path(path))]
    return [read_run(folder) for folder in dict.fromkeys(folders)]


def _comparison_folder(result: RunResult) -> Path:
    """The folder above `<strategy>/seed-<s>`; the run's own where it lies otherwise."""
    folder = result.path.absolute()
    return folder.parents[1] if folder.name == f"seed-{result.seed}" else folder


def _samples_and_labels(results: Sequence[RunResult]) -> object:
    """What tells one data set, at one range of labels, from another."""
    # A run on all labels begins with all of them, whatever the others beside it begin with.
    result = min(results, key=_is_full_data)
    experiment = result.config.get("experiment", {})
    samples = result.config.get("samples", {})
    return (
        result.info.get("data"),
        samples.get("pool_ids_sha256", result.info.get("pool")),
        experiment.get("initial"),
        experiment.get("budget"),
    )


def _contradict(some: Sequence[RunResult], others: Sequence[RunResult]) -> bool:
    """Tell whether a strategy and seed has other first figures in both, on data without a name.

    Where ledgers name one data set in one place, figures that differ are those of two runs on it,
    which `Study.complete` refuses by name, as it does copies.
    """
    data_sets = [_named_data(run) for run in (some[0], others[0])]
    if data_sets[0] is not None and data_sets[0] == data_sets[1]:
        return False
    first = {(_label(run), run.seed): run.cycles[0].metrics for run in some if run.cycles}
    return any(
        first.get((_label(run), run.seed), run.cycles[0].metrics) != run.cycles[0].metrics
        for run in others
        if run.cycles
    )


def _named_data(result: RunResult) -> object:
    """Return the data set with its options, and where it lay; None where a ledger does not say."""
    data = result.config.get("data")
    return None if data is None else (data, result.info.get("root"))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that came before."""
    counts: Counter[str] = Counter()
    distinct = []
    for name in names:
        counts[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return distinct


def _as_run(result: RunResult, ceiling: float | None) -> Run:
    budgets, scores = result.curve()
    run = Run(_label(result), result.seed, budgets, scores, int(result.info["cycles"]))
    return replace(
        run,
        training_seconds=sum(cycle.train_seconds for cycle in result.cycles),
        selecting_seconds=sum(cycle.select_seconds for cycle in result.cycles),
        ceiling=ceiling,
        unfitted=tuple(cycle.n_labelled for cycle in result.unfitted),
        changes=tuple(str(change) for change in result.changes),
        record=result,
    )


def _label(result: RunResult) -> str:
    """The name of the folder above `seed-<s>`, which tells variants of one strategy apart."""
    folder = result.path
    return folder.parent.name if folder.name == f"seed-{result.seed}" else result.strategy


def _is_full_data(result: RunResult) -> bool:
    return result.path.parent.name == FULL_DATA


def _shared_config(result: RunResult) -> Mapping[str, Any]:
    """What the runs of one study have in common: all but the strategy and the seed."""
    config = {key: value for key, value in result.config.items() if key != "strategy"}
    return {
        key: {k: v for k, v in value.items() if k != "seed"}
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
        if key != "seed"
    }


def _ceilings(
    first: RunResult, full_data: Sequence[RunResult]
) -> tuple[dict[int, float], tuple[str, ...]]:
    """Return seed -> the figure of the model trained on all labels, and notes on those left out.

    first: a run of a strategy. full_data: runs on the whole pool; those of another protocol are no
    ceiling of its curve.
    """
    ceilings: dict[int, float] = {}
    notes = []
    for run in full_data:
        tests = _test_sets(first, run)
        ours, theirs = map(_protocol, (first, run), tests)
        if ours == theirs:
            ceilings[run.seed] = run.curve()[1][-1]
        else:
            notes.append(
                f"Not counted: {FULL_DATA} seed {run.seed}, which differs from the others"
                f"{_difference(ours, theirs)}."
            )
    return ceilings, tuple(notes)


def _protocol(result: RunResult, test_set: Any) -> dict[str, Any]:
    """Return what a run on all labels must share with others. test_set: as of `_test_sets`."""
    config = _shared_config(result)
    return {"test set": test_set, **{key: config[key] for key in config if key != "experiment"}}


def _test_sets(*results: RunResult) -> tuple[Any, ...]:
    """What tells each run's test samples; nothing where one of them is older than that record."""
    digests = [result.info.get("test_ids_sha256") for result in results]
    return tuple(digests if all(digests) else [None] * len(digests))


def _options_by_name(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return label -> the strategy and its options, where runs record them.

    Raises:
        RunError: runs under one name, which would be averaged, chose by other options.
    """
    first: dict[str, RunResult] = {}
    for run in runs:
        one = first.setdefault(_label(run), run)
        options = (one.config.get("strategy"), run.config.get("strategy"))
        _same(one, run, "strategy", *options, "strategy", "; variants take a `label` each")
    options_by_name = {name: run.config.get("strategy") for name, run in first.items()}
    return {name: options for name, options in options_by_name.items() if options}


def _same(
    one: RunResult, other: RunResult, what: str, a: Any, b: Any, path: str = "", or_else: str = ""
) -> None:
    if a != b:
        where = _difference(a, b, path)
        raise RunError(
            f"Expected runs of one {what} but {one.path} and {other.path} differ{where}. Report "
            f"them apart{or_else}."
        )


def _difference(a: Any, b: Any, path: str = "") -> str:
    """` in training.epochs: 20 and 30`: the first place where two nested mappings differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            if a.get(key) != b.get(key):
                return _difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    return f" in {path}: {a!r} and {b!r}" if path else f": {a!r} and {b!r}"
