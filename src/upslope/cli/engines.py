"""Commands on several processes: those that torchrun has started, or workers of Ray.

Under torchrun rank 0 does what the command does, and the other processes work for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upslope.display import err
from upslope.distributed.launch import count_processes
from upslope.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from upslope.config import Config, Setup
    from upslope.distributed.fingerprint import Fingerprint
    from upslope.distributed.ranks import Ranks
    from upslope.distributed.ray_engine import RayEngine

EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ray",
        help="ray: scoring, or whole runs, by workers of Ray on this machine or a cluster.",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="With --engine ray: of each worker; 0.5 shares a GPU."),
]
EngineWorkers = Annotated[
    int | None, typer.Option("--workers", help="With --engine ray: how many; default one per CPU.")
]
_COMMANDS = ("run", "compare", "score", "predict")
"""The commands that several processes do together; all others would do everything several times."""


def check_command(name: str) -> None:
    """Raise ConfigError for a command that torchrun is of no use to."""
    if (size := count_processes()) > 1 and name not in _COMMANDS:
        raise ConfigError(
            f"Expected a command that several processes can do together, {', '.join(_COMMANDS)}, "
            f"but torchrun started {size} processes for `upslope {name}`. Run it without torchrun."
        )


@dataclass(frozen=True)
class EngineArguments:
    """What the command line says of an engine; None for what it does not say.

    name: "ray", or None. workers: how many. gpus: of each worker.
    """

    name: str | None = None
    workers: int | None = None
    gpus: float | None = None

    def check(self, *, scores: bool = False) -> None:
        """Raise ConfigError for an engine that does not exist, or options without one.

        scores: whether the command has no workers but those of an engine.
        """
        if self.name not in (None, "ray"):
            raise ConfigError(f"Expected --engine to be ray but got {self.name!r}.")
        if self.gpus is not None and (self.name is None or self.gpus < 0):
            raise ConfigError(
                "Expected --gpus-per-worker to be a number of at least 0, beside --engine ray, but "
                f"got {self.gpus:g}."
            )
        if scores and self.workers is not None and self.name is None:
            raise ConfigError(
                f"Expected --workers beside --engine ray but got {self.workers} without it. Add "
                "--engine ray, or leave it out."
            )
        if self.name and count_processes() > 1:
            raise ConfigError(
                "Expected one way to several processes but got torchrun and --engine ray. Leave "
                "one of them out."
            )


@contextmanager
def starting_engine(arguments: EngineArguments, device: str) -> Iterator[Ranks | RayEngine | None]:
    """Join the processes of torchrun, or start workers of Ray, while the block runs; else None.

    device: "cpu" where none uses a GPU.
    """
    arguments.check()
    if arguments.name == "ray":
        from upslope.batches import resolve_device
        from upslope.distributed.ray_engine import RayEngine

        on_gpu = resolve_device(device).type == "cuda"
        gpus = arguments.gpus if arguments.gpus is not None else float(on_gpu)
        with RayEngine.started(arguments.workers, gpus=gpus) as engine:
            yield engine
        return
    if count_processes() == 1:
        yield None
        return
    from upslope.distributed.ranks import joined

    with joined(device) as ranks:
        try:
            yield ranks
        except RunError as error:
            if ranks and ranks.broken and str(error):
                err.quiet = False  # rank 0 is dead: the first of the others tells it
            raise


@contextmanager
def sharing(
    engine: Ranks | RayEngine | None,
    objects: Mapping[str, Any],
    device: torch.device,
    make_model: Callable[[], nn.Module] | None,
) -> Iterator[bool]:
    """Yield True where the command is to go on, with the other processes at work for it.

    Ranks of torchrun other than 0 work here until it is over, and find False.

    objects: name -> data set that every process holds. make_model: as of the network in use; None
    where it travels with the work.
    """
    datasets = {name: data for name, data in objects.items() if data is not None}
    if engine is None:
        yield True
        return
    from upslope.distributed.ray_engine import RayEngine

    if isinstance(engine, RayEngine):
        with engine.together(datasets, device, make_model, fingerprint_of) as leads:
            yield leads
        return
    fingerprint = fingerprint_of(datasets, make_model)
    with engine.together(datasets, device, make_model, fingerprint) as leads:
        yield leads


def fingerprint_of(
    datasets: Mapping[str, Any], make_model: Callable[[], nn.Module] | None
) -> Fingerprint:
    """Return what must be equal in all processes of a command.

    datasets: by name. make_model: as of `sharing`.
    """
    from upslope.distributed.fingerprint import Fingerprint
    from upslope.files import json_digest
    from upslope.network_record import describe_lastingly

    ids = {name: (len(data), json_digest(list(data.ids))) for name, data in datasets.items()}
    network = json_digest(describe_lastingly(make_model)) if make_model else None
    return Fingerprint(ids, network)


@contextmanager
def sharing_setup(engine: Ranks | RayEngine | None, config: Config, setup: Setup) -> Iterator[bool]:
    """Do as `sharing` with the data sets and the network that a comparison is made of."""
    if engine is None:
        yield True
        return
    from upslope.batches import resolve_device
    from upslope.datasets.readable import first_readable
    from upslope.models import without_lazy_layers

    splits = setup.splits
    make_model = without_lazy_layers(
        setup.model, lambda: setup.task.prepare(first_readable(splits.pool))
    )
    objects = {"pool": splits.pool, "test": splits.test, "validation": splits.validation}
    with sharing(engine, objects, resolve_device(config.device), make_model) as leads:
        yield leads
