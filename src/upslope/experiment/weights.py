"""The models of a run on disk: one file a cycle, and no model that does not come from its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from upslope.checkpoints import load_tensors, load_weights, save_tensors
from upslope.seeds import global_generator
from upslope.training import Companion, TrainingSettings, place


@dataclass
class Weights:
    """Builds, saves and loads the models of a run.

    A model is used only after it was read back from its file, so that a run that was killed and
    one that was not compute with the same tensors in the same layout.
    """

    folder: Path
    factory: Callable[[], nn.Module]
    seed: int
    training: TrainingSettings
    device: torch.device
    companion: Companion | None
    keep_all: bool
    _loaded: tuple[int, nn.Module] | None = field(default=None, init=False)

    def fresh(self) -> nn.Module:
        """A model with its initial weights: the same for every cycle and strategy of a seed."""
        with global_generator(self.seed, "weights", device=torch.device("cpu")):
            model = self.factory()
        return place(model, self.training, self.device)

    def save(self, cycle: int, model: nn.Module) -> str:
        """Write the model of a cycle, after its companion; returns the SHA-256 of its file."""
        if self.companion:
            save_tensors(self._companion_file(cycle), self.companion.state(), {"cycle": cycle})
        return save_tensors(
            self.file(cycle), model.state_dict(), {"cycle": cycle, "seed": self.seed}
        )

    def load(self, cycle: int) -> nn.Module:
        """The model of a cycle, kept in memory until another is asked for."""
        if self._loaded is None or self._loaded[0] != cycle:
            model = self.fresh()
            load_weights(model, self.file(cycle))
            self._loaded = (cycle, model)
        return self._loaded[1]

    @contextmanager
    def with_companion(self, cycle: int) -> Iterator[Companion | None]:
        """The companion as it was when the model of this cycle was trained, attached to it."""
        if self.companion is None:
            yield None
            return
        tensors, _ = load_tensors(self._companion_file(cycle))
        try:
            self.companion.begin(self.load(cycle), self.device, self.seed)
            self.companion.load(tensors)
            yield self.companion
        finally:
            self.companion.end()

    def file(self, cycle: int) -> Path:
        """Where the model of a cycle is."""
        return self.folder / "models" / f"cycle-{cycle}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where a training in progress is."""
        return self.folder / "training.safetensors"

    def tidy(self, trained: int | None) -> None:
        """Remove what the record has left behind, also where a kill came before the removal.

        trained: the cycle whose model is recorded, None while one is in training.
        """
        for torn in (*self.folder.glob(".*.part"), *self.folder.glob("models/.*.part")):
            torn.unlink(missing_ok=True)
        if trained is None:
            return
        self.checkpoint.unlink(missing_ok=True)
        for old in range(0 if self.keep_all else trained):
            self.file(old).unlink(missing_ok=True)
            self._companion_file(old).unlink(missing_ok=True)

    def _companion_file(self, cycle: int) -> Path:
        return self.file(cycle).with_suffix(".companion")
