"""The first model of runs that share a seed: same labels, weights and order, so trained once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.checkpoints import read_sound_record, record_of
from upslope.files import write_atomically, write_digested_json
from upslope.leftovers import sweep

_AGAIN = "the first model of this seed is trained again"


@dataclass(frozen=True)
class FirstModelCache:
    """A folder where the first run to train leaves its model, its figures and its seconds."""

    folder: Path

    def publish(self, key: str, model: Path, record: Mapping[str, Any]) -> None:
        """Leave a model for others. The record is written last: what it names is whole."""
        write_atomically(self._model, lambda temporary: _copy(model, temporary))
        write_digested_json(record_of(self._model), {"key": key, **record})

    def fetch(self, key: str, model: Path) -> dict[str, Any] | None:
        """Copy a model of this key to `model` and return its record, None where there is none that
        is sound; a damaged one is told in a warning."""
        record = read_sound_record(self._model, key, _AGAIN)
        if record is not None:
            write_atomically(model, lambda temporary: _copy(self._model, temporary))
        return record

    def tidy(self) -> None:
        """Remove temporary files that killed processes left."""
        sweep(self.folder)

    @property
    def _model(self) -> Path:
        return self.folder / "first.safetensors"


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
