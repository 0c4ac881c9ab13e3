"""Changes between two openings of a run: more cycles, a larger budget, another pool.

Both are recorded as events. What was done stays as it was; the ledger says from which cycle on
something is otherwise. Whatever else differs is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.datasets.base import Dataset
from upslope.datasets.readable import input_type
from upslope.datasets.splits import Splits
from upslope.errors import RunError, SelectionError
from upslope.experiment.sample_probe import other_samples
from upslope.experiment.settings import ExperimentSettings, amount
from upslope.experiment.task_record import task_differences
from upslope.files import json_digest
from upslope.frozen import FeatureDataset, same_summary
from upslope.ledger import Change, Differences, Event, State, fold, refuse
from upslope.ledger.store import MISSING
from upslope.tasks.base import Task

_GROWING = ("experiment.cycles", "experiment.budget")
_POOL = ("samples.pool", "samples.pool_ids_sha256")
_HASH = 8  # bytes of an id's SHA-256 that are kept: two of a million samples collide once in 4e7
_MOST_NAMES = 5

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Opening:
    """A run as it is opened now, to be reconciled with what its ledger says.

    splits: the data sets as they are now. task, settings: as given now. given: settings of other
    objects, as of `RunRecord`.
    """

    folder: Path
    splits: Splits
    task: Task
    settings: ExperimentSettings
    given: Mapping[str, Mapping[str, Any]]
    changes: list[Change] = field(default_factory=list, init=False)
    """What `reconcile` found changed."""

    def reconcile(
        self, differences: Differences, state: State, info: Mapping[str, Any]
    ) -> list[Event]:
        """Return the events that record what changed; on the first opening, the pool's samples.

        Raises:
            RunError: a change that a run cannot take.
            SelectionError: more labels than the pool has.
        """
        self._check_data(info)
        self._check_test(info)
        self._check_backbone(info, differences)
        refuse({k: v for k, v in differences.items() if k not in (*_GROWING, *_POOL)}, self.folder)
        refuse(task_differences(info, self.task, self.pool), self.folder)
        refuse(self._given_differences(info), self.folder)
        self._check_validation(info)
        self._check_samples(info)  # last: other features are told by the network that made them
        before = differences.get("samples.pool", (len(self.pool), None))[0]
        size = first_size(state.changes, before)
        cycle = state.cycle + 1 if state.started else 0
        events = []
        if any(key in differences for key in _POOL) or state.pool is None:
            events.append(self._pool(differences, state, cycle))
        if growing := {k: v for k, v in differences.items() if k in _GROWING}:
            events.append(self._extension_event(growing, size, cycle))
            self._check_total(state, size)
        self.changes.extend(fold(events, state).changes[len(state.changes) :])
        return events

    @property
    def pool(self) -> Dataset:
        """Return the pool as it is now."""
        return self.splits.pool

    def _extension_event(self, growing: Differences, size: int, cycle: int) -> Event:
        shrinking = {}
        for key, (before, now) in growing.items():
            name = key.partition(".")[2]
            if name == "budget" and amount(now, size, name) <= amount(before, size, name):
                shrinking[key] = (before, now)
            if name == "cycles" and now < before:
                shrinking[key] = (before, now)
        refuse(shrinking, self.folder)
        return Event("extended", cycle, _values_before_and_now(growing))

    def _pool(self, differences: Differences, state: State, cycle: int) -> Event:
        ids = self.pool.ids
        now = _hashes(ids)
        changes = {k: v for k, v in differences.items() if k in _POOL}
        if state.pool is None and changes:
            # An earlier version did not record the ids, so that new ones cannot be told.
            refuse(changes, self.folder)
        before = now if state.pool is None else _decode(state.pool["ids"])
        self._check_removed(state)
        return Event(
            "pool",
            cycle,
            {
                **_values_before_and_now(changes),
                "added": len(np.setdiff1d(now, before)),
                "removed": len(np.setdiff1d(before, now)),
                "ids_sha256": json_digest(list(ids)),
                "ids": _encode(now),
            },
        )

    def _check_removed(self, state: State) -> None:
        """Samples that were asked or labelled must be there; others may go."""
        there = set(self.pool.ids)
        absent = [id_ for id_ in (*state.labels, *state.pending) if id_ not in there]
        if absent:
            names = ", ".join(repr(id_) for id_ in absent[:_MOST_NAMES])
            raise RunError(
                f"Expected every sample that was asked or labelled to be in the pool still but "
                f"{len(absent)} are not, first {names}. Bring them back, or take back their "
                "answers "
                "(`Experiment.take_back`) and pass them while they are there."
            )

    def _check_data(self, info: Mapping[str, Any]) -> None:
        """Classes and the shape and type of inputs stay: labels are positions among the classes,
        and uint8 is standardised where floats are taken as they are."""
        data_options = {
            "classes": list(self.pool.classes),
            "input_shape": list(self.pool.input_shape),
            **source_shape_of(self.pool),
            **input_type_of(self.pool),
        }
        refuse(
            {
                key: (info[key], value)
                for key, value in data_options.items()
                if key in info and info[key] != value
            },
            self.folder,
        )

    def _given_differences(self, info: Mapping[str, Any]) -> Differences:
        """Settings that objects held when the run began, and hold otherwise now.

        An argument that a training loop has alone now, or had alone then, is otherwise too;
        attributes of strategies may be others in another version of their code.
        """
        differences: dict[str, tuple[Any, Any]] = {}
        for part, now in self.given.items():
            then = info.get("given", {}).get(part, now)
            keys = then.keys() | now.keys() if part == "trainer" else then.keys() & now.keys()
            pairs = {key: (then.get(key, MISSING), now.get(key, MISSING)) for key in sorted(keys)}
            differences |= {f"{part}.{k}": (a, b) for k, (a, b) in pairs.items() if a != b}
        return differences

    def _check_test(self, info: Mapping[str, Any]) -> None:
        """The test set stays, also where another one has as many samples."""
        before, test = info.get("test_ids_sha256"), self.splits.test
        if before is not None and before != json_digest(list(test.ids)):
            raise RunError(
                f"Expected the {info['test']:,} test samples with which the run in {self.folder} "
                f"began but the {len(test):,} there are now are others. A test set that is "
                "drawn, as by `data.test_share`, is drawn from all samples, so that new ones "
                "change it. Take those out again, or begin a run whose test samples are set apart: "
                "in a folder, or by a column `split`."
            )

    def _check_validation(self, info: Mapping[str, Any]) -> None:
        """The validation set stays, which chooses the weights of each cycle."""
        before = info.get("validation_ids_sha256")
        if before is not None and before != ids_digest(self.splits.validation):
            raise RunError(
                f"Expected the validation samples with which the run in {self.folder} began but "
                "those there are now are others, which may choose other weights. A validation set "
                "that is drawn, as by `data.validation`, is drawn from all samples, so that new "
                "ones change it. Give the same again, or begin a run in another folder."
            )

    def _check_samples(self, info: Mapping[str, Any]) -> None:
        """A few samples looked at are what they were: counted ids fit any data.

        Where the pool has changed, its inputs may have: tables are standardised by all rows.
        """
        probe = info.get("probe")
        if probe is None or probe["pool_ids_sha256"] != json_digest(list(self.pool.ids)):
            return
        other_ids = {
            "the pool": other_samples(probe["pool"], self.pool),
            "the test set": other_samples(probe["test"], self.splits.test, with_targets=True),
            "the validation set": other_samples(
                probe.get("validation", {}), self.splits.validation, with_targets=True
            ),
        }
        for part, ids in other_ids.items():
            if ids:
                raise RunError(
                    f"Expected the samples with which the run in {self.folder} began but {part} "
                    f"now has others under the same ids, as under {ids[0]!r} ({len(ids)} of those "
                    "looked at). Give the data of the run in its order, or begin a run in another "
                    "folder."
                )

    def _check_backbone(self, info: Mapping[str, Any], differences: Differences) -> None:
        """Features come from a network that computes what it computed when the run began."""
        before, now = info.get("backbone_probe"), probe_of(self.pool).get("backbone_probe")
        other = bool(before and now) and not same_summary(before or (), now or ())
        key = "samples.backbone_sha256"
        if other and key not in differences:  # which is refused by itself
            refuse({"the network below the head": ("its code", "code that differs")}, self.folder)

    def _check_total(self, state: State, size: int) -> None:
        """All cycles of an extended run fit what is left of the pool."""
        settings = self.settings
        budget = amount(settings.budget, size, "budget") if settings.cycles > 1 else 0
        first_count = len(state.labels) + len(state.pending)
        to_come = settings.cycles - 1 - state.cycle
        if not state.started or to_come * budget <= 0:
            return
        left = len(self.pool) - first_count - len(state.passed)
        if to_come * budget > left:
            raise SelectionError(
                f"Expected {to_come} cycles of {budget} more labels to fit the {left} samples of "
                f"the pool that are left but they are {to_come * budget}. Lower "
                "`experiment.cycles` or `experiment.budget`, or add samples to the pool."
            )


def source_shape_of(pool: Dataset) -> dict[str, Any]:
    """Return the shape of what the features of a pool were made of; nothing for other pools."""
    return {"source_shape": list(pool.source_shape)} if isinstance(pool, FeatureDataset) else {}


def input_type_of(pool: Dataset) -> dict[str, Any]:
    """Return what numbers a pool holds, of features those that they were made of."""
    name = input_type(pool.dataset if isinstance(pool, FeatureDataset) else pool)
    return {} if name is None else {"input_type": name}


def probe_of(pool: Dataset) -> dict[str, Any]:
    """Return numbers that tell what the network of features computes; nothing for other pools."""
    if not isinstance(pool, FeatureDataset) or not pool.probe:
        return {}
    return {"backbone_probe": list(pool.probe)}


def backbone_of(pool: Dataset) -> dict[str, str]:
    """Return the digest of the network that made the features of a pool; nothing for others.

    A run that is gone on with under another network is refused: its figures would mix both.
    """
    return {"backbone_sha256": pool.backbone} if isinstance(pool, FeatureDataset) else {}


def ids_digest(dataset: Dataset | None) -> str:
    """Return the digest of the ids of a data set, of none where there is no data set."""
    return json_digest(list(dataset.ids) if dataset is not None else [])


def first_size(changes: Sequence[Change], now: int) -> int:
    """The samples of the pool when a run began: what shares of the pool are shares of.

    changes: of the run, since then. now: the samples of the pool as it is.
    """
    sizes = [c.before["samples.pool"] for c in changes if "samples.pool" in c.before]
    return int(sizes[0]) if sizes else now


def with_statistics(task: Task, info: Mapping[str, Any], state: State) -> Task:
    """The task with the mean and deviation that the run began with, once its pool has changed.

    They may be measured on the pool: with other ones, the same network would see other inputs.
    """
    has_new_pool = any(change.kind == "pool" for change in state.changes)
    if not has_new_pool or not info.get("mean"):
        return task
    changeable: Any = task
    same: Task = replace(changeable, mean=tuple(info["mean"]), std=tuple(info["std"]))
    return same


def _values_before_and_now(differences: Differences) -> dict[str, Any]:
    return {
        "config": {key: now for key, (_, now) in differences.items()},
        "before": {key: before for key, (before, _) in differences.items()},
    }


def _hashes(ids: Sequence[str]) -> Hashes:
    """The first 8 bytes of each id's SHA-256, in ascending order."""
    data = b"".join(sha256(id_.encode()).digest()[:_HASH] for id_ in ids)
    return np.sort(np.frombuffer(data, dtype=">u8").astype(np.uint64))


def _encode(hashes: Hashes) -> str:
    return base64.b64encode(hashes.astype(">u8").tobytes()).decode()


def _decode(text: str) -> Hashes:
    return np.frombuffer(base64.b64decode(text), dtype=">u8").astype(np.uint64)
