"""The gallery and the map of one data set, as plain data for the page: what was chosen, and where.

One seed is shown, the one that most strategies have. Pictures are held once, however many
strategies chose the sample. So many picks per cycle are shown as the room for pictures allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upslope.errors import UpslopeError
from upslope.ledger import RunResult
from upslope.progress import Observer, no_progress
from upslope.report.choices import Cycle, common_seed, cycles_of
from upslope.report.pool_map import make_map, spread_positions
from upslope.report.samples import PoolSamples, features_of, open_samples
from upslope.report.summary import Summary
from upslope.report.thumbnails import mask_picture
from upslope.tasks.mask_answers import PREFIX, decode_mask

COUNTS_TO_TRY = (24, 16, 12, 8, 6, 4, 3, 2, 1)
"""Picks shown per cycle, from many to few."""
_TRIAL = 32  # pictures by which the size of all is foretold


def gallery(
    summary: Summary, room: int, observer: Observer = no_progress, *, with_samples: bool = True
) -> dict[str, Any] | None:
    """Return what the page needs to show the choices of one data set; None without any record.

    Args:
        summary: of the data set; its runs carry their records.
        room: bytes that pictures may take.
        observer: is told of samples read.
        with_samples: whether the data set may be opened for pictures, texts and the map.
    """
    names = [row.strategy for row in summary.rows]
    seed = common_seed(summary.study, names)
    records: dict[str, RunResult] = {}
    for name in names:
        run = summary.study.complete(name).get(seed) if seed is not None else None
        if run is not None and run.record is not None:
            records[name] = run.record
    cycles = {name: cycles_of(record) for name, record in records.items()}
    if not any(cycles.values()):
        return None
    first = next(iter(records.values()))
    samples, why = _open(first, observer) if with_samples else (None, "")
    per_cycle = _count_shown(cycles, samples, room)
    ids: dict[str, int] = {}
    document: dict[str, Any] = {
        "seed": seed,
        "classes": list(first.info.get("classes", ())),
        "shown": per_cycle,
        "why": why,
        "strategies": {
            name: [_cycle(cycle, ids, per_cycle) for cycle in picks]
            for name, picks in cycles.items()
        },
        "map": _map(first, names, cycles, samples, observer) if samples is not None else None,
    }
    ignore = first.config.get("task", {}).get("ignore_index", 255)
    document["samples"] = [_sample(id_, samples, ignore) for id_ in ids]
    return document


def _open(run: RunResult, observer: Observer) -> tuple[PoolSamples | None, str]:
    """The samples of the run's data set, or why there are none."""
    try:
        return open_samples(run, observer), ""
    except UpslopeError as error:
        return None, str(error)


def _count_shown(
    cycles: Mapping[str, Sequence[Cycle]], samples: PoolSamples | None, room: int
) -> int:
    """The most picks per cycle whose pictures, by the size of a few, fit into the room."""
    if samples is None:
        return COUNTS_TO_TRY[0]
    everything = list(_distinct(cycles, COUNTS_TO_TRY[0]))
    trial = everything[:: max(1, len(everything) // _TRIAL)][:_TRIAL]
    sizes = [len(samples.picture(id_) or "") + 2 * len(samples.mask(id_, None) or "")
             for id_ in trial]  # fmt: skip
    picture_bytes = 1.25 * sum(sizes) / max(1, len(sizes))  # pictures differ in size
    fitting = (n for n in COUNTS_TO_TRY if len(_distinct(cycles, n)) * picture_bytes <= room)
    return next(fitting, COUNTS_TO_TRY[-1])


def _distinct(cycles: Mapping[str, Sequence[Cycle]], per_cycle: int) -> dict[str, None]:
    return dict.fromkeys(
        pick.id for picks in cycles.values() for cycle in picks for pick in cycle.picks[:per_cycle]
    )


def _cycle(cycle: Cycle, ids: dict[str, int], per_cycle: int) -> dict[str, Any]:
    """One selection. `picks`: rows of sample, score, guess, confidence, label."""
    scores = [pick.score for pick in cycle.picks if pick.score is not None]
    return {
        "labels": cycle.labels,
        "count": len(cycle.picks),
        "candidates": cycle.candidates,
        "picks": [
            [
                ids.setdefault(pick.id, len(ids)),
                _round(pick.score),
                _with_picture(pick.guess),
                _round(pick.confidence),
                _with_picture(pick.label),
            ]
            for pick in cycle.picks[:per_cycle]
        ],
        "histogram": cycle.histogram,
        "scores": sorted(_round(score) for score in scores) if scores else None,
    }


def _sample(id_: str, samples: PoolSamples | None, ignore: int) -> dict[str, Any]:
    if samples is None:
        return {"id": id_}
    sample = {
        "id": id_,
        "picture": samples.picture(id_),
        "mask": samples.mask(id_, ignore),
        "text": samples.text(id_),
        "label": _target(samples, id_),
    }
    return {key: value for key, value in sample.items() if value is not None}


def _target(samples: PoolSamples, id_: str) -> Any:
    """The label that the data set holds, where it is a set or numbers; masks are pictures."""
    if samples.has_masks:
        return None
    try:
        target = samples.pool.targets([samples.position[id_]])[0]
    except (UpslopeError, KeyError):
        return None
    return target.tolist() if target.ndim <= 1 else None


def _with_picture(answer: Any) -> Any:
    """Return a guess or a label as it is; of a mask, predicted or drawn by people, its picture."""
    if isinstance(answer, str) and answer.startswith(PREFIX):
        try:
            return {"mask": mask_picture(decode_mask(answer), None)}
        except UpslopeError:
            return None
    return answer


def _map(
    run: RunResult,
    names: Sequence[str],
    cycles: Mapping[str, Sequence[Cycle]],
    samples: PoolSamples,
    observer: Observer,
) -> dict[str, Any] | None:
    """Places of a part of the pool and of all picks; None where there are no features."""
    position = samples.position
    picks = {
        name: [
            [position[p.id] for p in cycle.picks if p.id in position] for cycle in strategy_picks
        ]
        for name, strategy_picks in cycles.items()
    }
    initial = [position[id_] for id_ in run.initial if id_ in position]
    basis = set(spread_positions(len(position)))
    ids_on_map = basis.union(
        initial, *(cycle for strategy_picks in picks.values() for cycle in strategy_picks)
    )
    try:
        features = features_of(run, samples, sorted(ids_on_map), observer)
        places = make_map(features.values, features.positions, basis)
    except UpslopeError:
        return None
    place = {p: i for i, p in enumerate(places.positions)}
    return {
        "x": list(places.x),
        "y": list(places.y),
        "explained": round(places.explained, 4),
        "features": features.name,
        "of": names[0],
        "pool": len(position),
        "initial": [place[p] for p in initial if p in place],
        "picks": {
            name: [[place[p] for p in cycle if p in place] for cycle in strategy_picks]
            for name, strategy_picks in picks.items()
        },
    }


def _round(value: float | None) -> Any:
    """Five digits: for a look, and a third of the letters."""
    return None if value is None else float(f"{value:.5g}")
