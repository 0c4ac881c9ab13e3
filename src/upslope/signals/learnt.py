"""Weights that a signal learns once for a run, kept on the disk so that no later start learns them.

A file of weights has a record beside it with the key of what they were learnt from and the SHA-256
of the file. What was learnt from something else counts as absent, and so does, with a warning, what
is damaged: it is learnt again, and gives the same weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from upslope.checkpoints import load_tensors, read_sound_record, record_of, save_tensors
from upslope.datasets.contents import content_digests
from upslope.datasets.readable import first_readable
from upslope.files import write_digested_json
from upslope.signals.base import FitContext


def key_of(context: FitContext, **about: object) -> str:
    """Return the key of what is learnt from all of the pool: its content in its order, as prepared.

    context: with the pool, the task, the seed and the device. about: whatever else decides.
    """

    def report(_: int) -> None:
        context.progress(0, 1)  # lets a request to stop through

    digest = hashlib.sha256()
    for content in content_digests(context.dataset, report):
        digest.update(content or bytes(32))
    digest.update(prepared_bytes(context))
    settings = {**about, "seed": context.rng.initial_seed(), "device": context.device.type}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def prepared_bytes(context: FitContext) -> bytes:
    """Return the numbers of the first samples as the task prepares them.

    They tell the statistics by which samples are normalised, which not every task has.

    context: with the pool and the task.
    """
    return context.task.prepare(first_readable(context.dataset)).contiguous().numpy().tobytes()


def load_learnt(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return the weights that were learnt under `key`; None where there are none that are sound.

    path: the file of the weights. key: as `key_of` returns it.
    """
    record = read_sound_record(path, key, "its weights are learnt again")
    return None if record is None else load_tensors(path)[0]


def save_learnt(path: Path, key: str, weights: dict[str, Tensor]) -> None:
    """Keep weights under a key, in place of those of another key.

    path: the file of the weights; its record, written last, has the ending .json. key: as `key_of`
    returns it. weights: tensors by name.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    digest = save_tensors(path, weights, {})
    write_digested_json(record_of(path), {"key": key, "sha256": digest})
