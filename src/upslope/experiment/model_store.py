"""The models of a run on disk: one file per cycle; each model in use was read from its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from upslope.checkpoints import file_sha256, load_tensors, load_weights, save_tensors
from upslope.files import disk_errors
from upslope.leftovers import sweep
from upslope.memory import memory_errors
from upslope.network_record import (
    NetworkRecord,
    check_network_record,
    describe_network,
    outputs_record,
    tells_outputs,
)
from upslope.seeds import global_generator
from upslope.training import AuxiliaryModule, TrainingSettings, place
from upslope.training.state import set_aside


@dataclass
class ModelStore:
    """Builds, saves and loads the models of a run.

    A model is used only after it was read back from its file, so that a run that was killed and
    one that was not compute with the same tensors in the same layout.

    sample: gives a prepared batch of the pool, by which outputs are told from others; None: they
    are not looked at.
    """

    folder: Path
    factory: Callable[[], nn.Module]
    seed: int
    training: TrainingSettings
    device: torch.device
    companion: AuxiliaryModule | None
    keep_all: bool
    sample: Callable[[], Tensor] | None = None
    network: NetworkRecord = field(default_factory=dict, init=False)
    """As recorded when the run began; empty before that, and in ledgers of earlier versions."""
    is_compared: bool = field(default=False, init=False)
    """The outputs of the network given are known to be those of the recorded one."""
    _last_model: tuple[int, nn.Module] | None = field(default=None, init=False)

    def build(self) -> nn.Module:
        """A model with its initial weights, where its function leaves it."""
        with memory_errors(), global_generator(self.seed, "weights", device=torch.device("cpu")):
            return self.factory()

    def fresh(self) -> nn.Module:
        """A model with its initial weights: the same for every cycle and strategy of a seed.

        Raises:
            ModelError: it is another network than the one that the run began with.
        """
        model = self.build()
        if self.network:
            now = describe_network(model)
            if self.sample and not self.is_compared and tells_outputs(self.network):
                now = {**now, **outputs_record(self.build, self.sample)}
            check_network_record(self.network, now, self.folder)
            self.is_compared = True
        return place(model, self.training, self.device)

    def save(self, cycle: int, model: nn.Module) -> dict[str, str]:
        """Write the model of a cycle, after its companion; returns the SHA-256 of each file, as
        the ledger holds them: `sha256`, and `companion_sha256` where there is a companion."""
        digests = {}
        if self.companion:
            digests["companion_sha256"] = save_tensors(
                self._companion_file(cycle), self.companion.state(), {"cycle": cycle}
            )
        digests["sha256"] = save_tensors(
            self.file(cycle), model.state_dict(), {"cycle": cycle, "seed": self.seed}
        )
        return digests

    def fault(self, cycle: int, digests: Mapping[str, str]) -> str:
        """Say which file of a cycle is not what was recorded, and how; empty if all are.

        digests: as `save` returned them. Those of a companion are missing from old records.
        """
        files = {}
        if self._last_model is None or self._last_model[0] != cycle:
            files["sha256"] = self.file(cycle)  # else in memory, as it was read from a sound file
        if self.companion:
            files["companion_sha256"] = self._companion_file(cycle)
        for key, path in files.items():
            if not path.is_file():
                return f"{path} is missing"
            if key in digests and file_sha256(path) != digests[key]:
                return f"{path} is damaged"
        return ""

    def load(self, cycle: int) -> nn.Module:
        """The model of a cycle, kept in memory until another is asked for."""
        if self._last_model is None or self._last_model[0] != cycle:
            model = self.fresh()
            load_weights(model, self.file(cycle))
            self._last_model = (cycle, model)
        return self._last_model[1]

    @contextmanager
    def with_companion(self, cycle: int) -> Iterator[AuxiliaryModule | None]:
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

    def tidy(self, last_cycle: int | None) -> None:
        """Remove what the record has left behind, also where a kill came before the removal.

        last_cycle: the cycle whose model is recorded, None while one is in training.

        Raises:
            RunError: a file cannot be removed.
        """
        with disk_errors(self.folder):
            for folder in (self.folder, self.folder / "models"):
                sweep(folder, is_only_writer=True)
                sweep(
                    folder, ".tmp*", is_only_writer=True
                )  # of safetensors, as earlier versions called it
            if last_cycle is None:
                return
            self.checkpoint.unlink(missing_ok=True)
            set_aside(self.checkpoint).unlink(missing_ok=True)
            for old in range(0 if self.keep_all else last_cycle):
                self.file(old).unlink(missing_ok=True)
                self._companion_file(old).unlink(missing_ok=True)

    def _companion_file(self, cycle: int) -> Path:
        return self.file(cycle).with_suffix(".companion")
