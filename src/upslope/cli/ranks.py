"""Commands under torchrun: rank 0 does what the command does, the other processes work for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from upslope.display import err
from upslope.distributed.launch import count_processes
from upslope.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from upslope.config import Config, Setup
    from upslope.distributed.ranks import Ranks

_COMMANDS = ("run", "compare", "score", "predict")
"""The commands that several processes do together; all others would do everything several times."""


def check_command(name: str) -> None:
    """Raise ConfigError for a command that torchrun is of no use to."""
    if (size := count_processes()) > 1 and name not in _COMMANDS:
        raise ConfigError(
            f"Expected a command that several processes can do together, {', '.join(_COMMANDS)}, "
            f"but torchrun started {size} processes for `upslope {name}`. Run it without torchrun."
        )


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks | None]:
    """Join the other processes of the command while the block runs; None where there are none.

    device: "cpu" where none uses a GPU.
    """
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
def shared_with_ranks(
    ranks: Ranks | None,
    objects: Mapping[str, Any],
    device: torch.device,
    make_model: Callable[[], nn.Module],
) -> Iterator[bool]:
    """Yield True on rank 0, with the others at work for it; the others work here, and find False.

    objects: name -> data set that every rank has opened. make_model: as of the network in use.
    """
    if ranks is None:
        yield True
        return
    from upslope.files import json_digest

    held = {name: data for name, data in objects.items() if data is not None}
    ids = {name: (len(data), json_digest(list(data.ids))) for name, data in held.items()}
    with ranks.together(held, device, make_model, ids) as leads:
        yield leads


@contextmanager
def sharing_setup(ranks: Ranks | None, config: Config, setup: Setup) -> Iterator[bool]:
    """The same for what a comparison is made of."""
    if ranks is None:
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
    with shared_with_ranks(ranks, objects, resolve_device(config.device), make_model) as leads:
        yield leads
