"""The events of a run, and the state that they add up to.

Cycle c goes: `asked` (its new samples: the initial set, or what the strategy chose) -> `labelled`,
perhaps several times -> `trained` -> `evaluated` -> `asked` of cycle c + 1. Beside them, at any
time: `skipped` names samples that could not be read; `passed`, `corrected` and `taken_back` are
what annotators do besides answering, and `asked_instead` asks others for those passed; `pool` says
which samples there are, `extended` what the configuration is from then on, and `sitting` where
the run is gone on with, if that may change bits, or with which network, before the first training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from upslope.ledger.records import Change, CycleRecord

Label = int | list[int] | list[float] | str | None
"""A class, a label set (0 or 1 for each label), numbers, or a mask as text (`tasks.mask_answers`);
None where the data set holds it."""


@dataclass(frozen=True)
class Event:
    """An event: what happened, in which cycle; `body` is JSON.

    kind: its name. cycle: its number.
    """

    kind: str
    cycle: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """Where a run stands.

    cycle: the cycle that the next step belongs to. pending: asked and not yet labelled.
    labels: id -> label, None where the data set holds it, in the order in which they came.
    trained: the body of the `trained` event of this cycle, if it has happened.
    cycles: one record for each cycle evaluated. skipped: samples that could not be read.
    passed: id -> the annotator's reason. owed: those passed in whose place none is asked yet.
    pool: the body of the last `pool` event. changes: what `extended` and `pool` changed since the
    run began. sittings: the environments in which the run was gone on with, where they differ from
    the one before in what may change bits. labels_from: the folder of the run whose labels are the
    initial set; empty where it was drawn or chosen.

    initial: ids of the initial set. masks: id -> digest of a label that the data set holds, when it
    was recorded; older ledgers have none. network: what is trained in place of the network that the
    run began with; empty where that stayed.
    """

    cycle: int = 0
    initial: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    labels: Mapping[str, Label] = field(default_factory=dict)
    trained: Mapping[str, Any] | None = None
    cycles: tuple[CycleRecord, ...] = ()
    skipped: frozenset[str] = frozenset()
    passed: Mapping[str, str] = field(default_factory=dict)
    owed: tuple[str, ...] = ()
    pool: Mapping[str, Any] | None = None
    changes: tuple[Change, ...] = ()
    sittings: tuple[Mapping[str, Any], ...] = ()
    labels_from: str = ""
    masks: Mapping[str, str] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """The initial set has been asked."""
        return bool(self.initial)

    def config(self, first_config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration as it is now, from the one that the run began with.

        first_config: the configuration at the beginning.
        """
        config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in first_config.items()}
        for change in self.changes:
            for key, value in change.after.items():
                section, _, name = key.partition(".")
                config.setdefault(section, {})[name] = value
        return config


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


def _fold_asked(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    _require(not state.pending, f"samples asked in cycle {cycle} before the last got their labels")
    _require(cycle == len(state.cycles), f"samples asked for cycle {cycle} out of turn")
    ids = tuple(body["ids"])
    if cycle == 0:
        return replace(state, initial=ids, pending=ids, labels_from=body.get("labels_from", ""))
    scores = body.get("scores")
    last = replace(
        state.cycles[-1],
        asked=ids,
        scores=None if scores is None else tuple(scores),
        select_seconds=body["seconds"],
        n_candidates=body["candidates"],
        # Older ledgers have none of these.
        guesses=_entries(body, "guesses"),
        confidences=_entries(body, "confidences"),
        histogram=body.get("histogram"),
    )
    return replace(state, cycle=cycle, pending=ids, trained=None, cycles=(*state.cycles[:-1], last))


def _entries(body: Mapping[str, Any], key: str) -> tuple[Any, ...] | None:
    return tuple(body[key]) if body.get(key) is not None else None


def _longer(before: tuple[Any, ...] | None, more: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Entries with those of samples asked later; None where either has none."""
    return None if before is None or more is None else (*before, *more)


def _asked_instead(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    ids = tuple(body["ids"])
    _require(cycle == state.cycle, f"samples asked instead in cycle {cycle} out of turn")
    _require(
        set(body["instead_of"]) == set(state.owed), "samples asked instead of others than passed"
    )
    state = replace(state, pending=(*state.pending, *ids), owed=())
    if cycle == 0:
        return replace(state, initial=(*state.initial, *ids))
    last = state.cycles[-1]
    last = replace(
        last,
        asked=(*last.asked, *ids),
        scores=_longer(last.scores, _entries(body, "scores") if ids else ()),
        select_seconds=last.select_seconds + body["seconds"],
        guesses=_longer(last.guesses, _entries(body, "guesses") if ids else ()),
        confidences=_longer(last.confidences, _entries(body, "confidences") if ids else ()),
    )
    return replace(state, cycles=(*state.cycles[:-1], last))


def _fold_labelled(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = body["labels"]
    other_ids = set(new) - set(state.pending)
    _require(not other_ids, f"labels for samples that were not asked in cycle {cycle}: {other_ids}")
    pending = tuple(i for i in state.pending if i not in new)
    masks = {**state.masks, **body.get("masks", {})}
    return replace(state, pending=pending, labels={**state.labels, **new}, masks=masks)


def _fold_corrected(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = body["labels"]
    other_ids = set(new) - set(state.labels)
    _require(not other_ids, f"corrections in cycle {cycle} of labels that there are none of")
    masks = {**state.masks, **body.get("masks", {})}
    return replace(state, labels={**state.labels, **new}, masks=masks)


def _fold_passed(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = body["ids"]
    other_ids = set(new) - set(state.pending)
    _require(not other_ids, f"samples passed in cycle {cycle} that were not asked: {other_ids}")
    return replace(
        state,
        pending=tuple(i for i in state.pending if i not in new),
        passed={**state.passed, **new},
        owed=(*state.owed, *new),
    )


def _taken_back(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    labels, passes = body["labels"], body["passed"]
    _require(
        set(labels) <= set(state.labels) and set(passes) <= set(state.passed),
        f"answers taken back in cycle {cycle} that there are none of",
    )
    # A sample that was passed and not yet replaced is asked again; one that was replaced is back in
    # the pool, unless its answer has come after all (`asked`, which older ledgers do not have).
    late = body.get("asked", ())
    _require(set(late) <= set(passes), f"samples asked again in cycle {cycle} that were not passed")
    again = (*labels, *(i for i in passes if i in state.owed or i in late))
    return replace(
        state,
        labels={i: label for i, label in state.labels.items() if i not in labels},
        passed={i: reason for i, reason in state.passed.items() if i not in passes},
        owed=tuple(i for i in state.owed if i not in passes),
        pending=(*state.pending, *again),
    )


def _fold_trained(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    ready = state.started and not state.pending and not state.owed and state.trained is None
    _require(cycle == state.cycle and ready, f"a model of cycle {cycle} out of turn")
    return replace(state, trained=dict(body))


def _fold_evaluated(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    training = state.trained
    _require(
        training is not None and cycle == len(state.cycles), f"figures of cycle {cycle} out of turn"
    )
    assert training is not None
    record = CycleRecord(
        cycle=cycle,
        n_labelled=training["n_labelled"],
        metrics=body["test"],
        train_metrics=body["train"],
        train_loss=training["loss"],
        train_seconds=training["seconds"],
        model_file=training["file"],
        model_sha256=training["sha256"],
        reused=training["reused"],
    )
    return replace(state, cycles=(*state.cycles, record))


def _fold_skipped(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    new = tuple(body["ids"])
    cycles = state.cycles
    if cycles and cycle == len(cycles):
        last = cycles[-1]
        cycles = (*cycles[:-1], replace(last, skipped=(*last.skipped, *new)))
    return replace(state, skipped=state.skipped | set(new), cycles=cycles)


def _pool(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    if state.pool is None:
        return replace(state, pool=body)  # the samples that the run began with
    change = Change("pool", cycle, body["before"], body["config"], body["added"], body["removed"])
    return replace(state, pool=body, changes=(*state.changes, change))


def _fold_extended(state: State, cycle: int, body: Mapping[str, Any]) -> State:
    change = Change("extended", cycle, body["before"], body["config"])
    return replace(state, changes=(*state.changes, change))


def _sitting(state: State, _cycle: int, body: Mapping[str, Any]) -> State:
    sittings = (*state.sittings, body["environment"])
    return replace(state, sittings=sittings, network=body.get("network", state.network))


_STEPS = {
    "asked": _fold_asked,
    "asked_instead": _asked_instead,
    "labelled": _fold_labelled,
    "corrected": _fold_corrected,
    "passed": _fold_passed,
    "taken_back": _taken_back,
    "trained": _fold_trained,
    "evaluated": _fold_evaluated,
    "skipped": _fold_skipped,
    "pool": _pool,
    "extended": _fold_extended,
    "sitting": _sitting,
}
