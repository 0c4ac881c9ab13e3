"""The events of a run, and the state that they add up to.

Cycle c goes: `asked` (its new samples: the initial set, or what the strategy chose) -> `labelled`,
perhaps several times -> `trained` -> `evaluated` -> `asked` of cycle c + 1. `skipped` names samples
that could not be read, whenever that is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from upslope.ledger.records import CycleRecord


@dataclass(frozen=True)
class Event:
    """What happened, in which cycle; `body` is JSON."""

    kind: str
    cycle: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """Where a run stands.

    cycle: the cycle that the next step belongs to. pending: asked and not yet labelled.
    labels: id -> label, None where the data set holds it, in the order in which they came.
    trained: the body of the `trained` event of this cycle, if it has happened.
    cycles: one record for each cycle evaluated.
    """

    cycle: int = 0
    initial: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    labels: Mapping[str, int | None] = field(default_factory=dict)
    trained: Mapping[str, Any] | None = None
    cycles: tuple[CycleRecord, ...] = ()
    skipped: frozenset[str] = frozenset()

    @property
    def started(self) -> bool:
        """The initial set has been asked."""
        return bool(self.initial)


def fold(events: Iterable[Event], state: State | None = None) -> State:
    """The state after `events`.

    Raises:
        ValueError: an event that cannot follow those before it.
    """
    state = state or State()
    for event in events:
        step = _STEPS.get(event.kind)
        if step is None:
            raise ValueError(f"an event of unknown kind {event.kind!r}")
        state = step(state, event.cycle, event.body)
    return state


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _asked(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    _require(not state.pending, f"samples asked in cycle {cycle} before the last got their labels")
    _require(cycle == len(state.cycles), f"samples asked for cycle {cycle} out of turn")
    ids = tuple(body["ids"])
    if cycle == 0:
        return replace(state, initial=ids, pending=ids)
    scores = body.get("scores")
    last = replace(
        state.cycles[-1],
        asked=ids,
        scores=None if scores is None else tuple(scores),
        select_seconds=body["seconds"],
        n_candidates=body["candidates"],
    )
    return replace(state, cycle=cycle, pending=ids, trained=None, cycles=(*state.cycles[:-1], last))


def _labelled(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = body["labels"]
    unknown = set(new) - set(state.pending)
    _require(not unknown, f"labels for samples that were not asked in cycle {cycle}: {unknown}")
    pending = tuple(i for i in state.pending if i not in new)
    return replace(state, pending=pending, labels={**state.labels, **new})


def _trained(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    ready = state.started and not state.pending and state.trained is None
    _require(cycle == state.cycle and ready, f"a model of cycle {cycle} out of turn")
    return replace(state, trained=dict(body))


def _evaluated(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    trained = state.trained
    _require(
        trained is not None and cycle == len(state.cycles), f"figures of cycle {cycle} out of turn"
    )
    assert trained is not None
    record = CycleRecord(
        cycle=cycle,
        n_labelled=trained["n_labelled"],
        metrics=body["test"],
        train_metrics=body["train"],
        train_loss=trained["loss"],
        train_seconds=trained["seconds"],
        model_file=trained["file"],
        model_sha256=trained["sha256"],
        reused=trained["reused"],
    )
    return replace(state, cycles=(*state.cycles, record))


def _skipped(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = tuple(body["ids"])
    cycles = state.cycles
    if cycles and cycle == len(cycles):
        last = cycles[-1]
        cycles = (*cycles[:-1], replace(last, skipped=(*last.skipped, *new)))
    return replace(state, skipped=state.skipped | set(new), cycles=cycles)


_STEPS = {
    "asked": _asked,
    "labelled": _labelled,
    "trained": _trained,
    "evaluated": _evaluated,
    "skipped": _skipped,
}
