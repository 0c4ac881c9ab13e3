"""Protocols of networks: attributes by which one tells what its module tree does not show."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class NamesStages(Protocol):
    """A network that names the submodules whose outputs the module of `ll4al` reads."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of submodules, in the order in which they run."""
        ...


@runtime_checkable
class NamesHead(Protocol):
    """A network whose last linear layer to run is not the last that it registers."""

    @property
    def head_name(self) -> str:
        """Return the name of the linear layer that makes the logits, as "classifier.2"."""
        ...


@runtime_checkable
class NamesBackbone(Protocol):
    """A network that names the submodules that begin with trained weights, below its new ones."""

    @property
    def backbone(self) -> tuple[str, ...]:
        """Return the names of submodules, which `backbone_rate` applies to."""
        ...
