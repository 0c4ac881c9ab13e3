"""Memory of a model between batches: where its samples are, what is proven, and what was told.

Kept with the model and gone with it: nothing here refers to a tensor, a module or a graph. Also the
messages that a model gives rise to once, and those that the end of its memory is.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from upslope.errors import GradientNormError, warn_user
from upslope.gradnorm.core.layouts.layout import Layout

PROOF_SHARE = 1 / 512
"""The share of the batches of a proven program that are proven again, at random."""

_ROUTED_PROOFS = 4
"""The first batches of a program whose rows are routed that are proven: each has other rows."""

_STEERED_TRIALS = 4
"""The first batches of a program in which ways of single samples are tried again:
what a number steers may be zero in all samples of one batch, behind a ReLU, and not in the next."""

_PROGRAMS = 512
"""Programs remembered for each model; texts of many lengths have one for each."""


@dataclass
class ProvenProgram:
    """What is known of a program: the layout of each use, or why its samples go one by one."""

    layouts: dict[int, Layout] = field(default_factory=dict)
    slow: str | None = None
    may_mix_samples: bool = False
    """Whether samples may depend on others (`independence`), so that every batch is proven."""
    ways: set[tuple[str, ...]] = field(default_factory=set)
    """Numbers of single samples that make no difference beside those of the batch (`company`)."""
    batches_proven: int = 1
    """Batches of the program that were proven."""
    batches_steered: int = 1
    """Batches of the program in which numbers of the samples left for Python."""


class Memory:
    """The programs of one model."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Hashable, ProvenProgram] = OrderedDict()
        self._programs_in_doubt: OrderedDict[Hashable, ProvenProgram] = OrderedDict()
        """Programs of which a batch has reached entries that no batch had reached before."""
        self._front: set[Hashable] = set()
        # A generator of its own: drawing proofs must not move the caller's random numbers.
        self._random = random.Random(0)
        self._losses: OrderedDict[Hashable, None] = OrderedDict()
        self._programs_met: OrderedDict[Hashable, None] = OrderedDict()
        self.reads_constants = False
        """Whether constants that move entries within samples may be any (`core/program`)."""
        self._programs_by_shapes: dict[Hashable, Hashable] = {}
        """Program without the numbers of constant indices -> the first of these that was met."""
        self._has_compared = False
        self._without_copies: set[Hashable] = set()
        self.told: set[str] = set()
        """What this model's user was warned of."""

    def recall(self, program: Hashable) -> ProvenProgram | None:
        """What was proven of a program."""
        record = self._programs.get(program)
        if record is not None:
            self._programs.move_to_end(program)
        return record

    def keep(self, program: Hashable, record: ProvenProgram) -> None:
        """Remember what was proven of a program."""
        before = self._programs_in_doubt.pop(program, None)
        if before is not None:
            layouts = {
                use: layout.settled_by(before.layouts.get(use))
                for use, layout in record.layouts.items()
            }
            # Uses that no gradient has reached this time were shown by the batch before.
            record.layouts = {**before.layouts, **layouts}
        self._programs[program] = record
        while len(self._programs) > _PROGRAMS:
            self._programs.popitem(last=False)

    def has_met(self, program: Hashable) -> bool:
        """Whether this was asked of a program before: of indices as they come, few come again."""
        if program in self._programs_met:
            return True
        self._programs_met[program] = None
        while len(self._programs_met) > _PROGRAMS:
            self._programs_met.popitem(last=False)
        return False

    def compare_indices(self, of_shapes: Hashable, program: Hashable) -> None:
        """Take in a new program; of_shapes: the same without the numbers of constant indices.

        If one was met that differs in these alone, they may be random.
        """
        if self._has_compared:  # once: where they cannot be read, nothing is read in the next batch
            return
        first = self._programs_by_shapes.setdefault(of_shapes, program)
        self.reads_constants = self._has_compared = first != program
        if len(self._programs_by_shapes) > _PROGRAMS:
            self._programs_by_shapes.clear()

    def forget(self, program: Hashable, operators: Hashable, *, is_wrong: bool) -> None:
        """Forget what was remembered. is_wrong: whether it is, or says not enough."""
        record = self._programs.pop(program, None)
        if record is not None and not is_wrong:
            self._programs_in_doubt[program] = record
            while len(self._programs_in_doubt) > _PROGRAMS:
                self._programs_in_doubt.popitem(last=False)
        self._front.discard(operators)

    def keep_front(self, operators: Hashable) -> None:
        """Remember that these operators had all samples in dimension 0.

        Batches of other shapes are then tried so before anything is probed, and proven
        (`layout_probe.FrontGuess`).
        """
        self._front.add(operators)

    def is_front(self, operators: Hashable) -> bool:
        """Whether `keep_front` was told of these operators."""
        return operators in self._front

    def keep_without_copies(self, batch: Hashable) -> None:
        """Remember that batches of these shapes hold no weight that is copied to every sample."""
        self._without_copies.add(batch)

    def has_copies(self, batch: Hashable) -> bool:
        """Whether weights may be held to be copied to every sample in batches of these shapes."""
        return batch not in self._without_copies

    def knows_loss(self, loss: Hashable) -> bool:
        """Whether a loss was proven on outputs of this shape, and need not be now."""
        return loss in self._losses and not self.draw_proof()

    def keep_loss(self, loss: Hashable) -> None:
        """Remember that a loss takes each sample by itself."""
        self._losses[loss] = None
        while len(self._losses) > _PROGRAMS:
            self._losses.popitem(last=False)

    def is_to_be_proven(self, record: ProvenProgram | None, *, follows_data: bool) -> bool:
        """Whether a batch is held against autograd, which is counted.

        record: of its program, if it is known. follows_data: whether rows go where the data say.
        """
        if record is None or record.may_mix_samples or self.draw_proof():
            return True
        if follows_data and record.batches_proven < _ROUTED_PROOFS:
            record.batches_proven += 1
            return True
        return False

    def are_ways_settled(self, record: ProvenProgram | None) -> bool:
        """Whether the ways of a program were tried often enough; asked once per batch.

        record: as of `is_to_be_proven`.
        """
        if record is None:
            return False
        record.batches_steered += 1
        return record.batches_steered > _STEERED_TRIALS and not self.draw_proof()

    def draw_proof(self) -> bool:
        """Whether a batch of a proven program is to be proven again."""
        return self._random.random() < PROOF_SHARE


_memories: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()


def memory_of(model: nn.Module) -> Memory:
    """What is remembered of this model."""
    memory = _memories.get(model)
    if memory is None:
        memory = _memories[model] = Memory()
    return memory


def warn_of_slowness(model: nn.Module, memory: Memory, reason: str | None) -> None:
    """Warn that samples go one by one. reason: why, as `Ladder.fallback_reason`."""
    if reason is None or "slow" in memory.told:
        return
    memory.told.add("slow")
    warn_user(
        f"{type(model).__name__}: per-sample gradients are found one sample at a time, "
        f"exactly and slowly, because {reason.rstrip('.')}. "
        "`explain(model, inputs)` shows every use of a parameter."
    )


def warn_of_looking_around(model: nn.Module, memory: Memory) -> None:
    """Warn that samples may depend on others, so that every batch is proven."""
    if "around" in memory.told:
        return
    memory.told.add("around")
    warn_user(
        f"{type(model).__name__}: the numbers of a sample may depend on the other "
        "samples of its batch, in the model or in the loss (they moved, or could not be "
        "had, when others were replaced by NaN or by extreme values, or they meet a "
        "statistic of the batch: a mean, a maximum, a running sum over the samples). Every "
        "batch is proven, which takes several times as long; a batch that does mix samples "
        "is refused."
    )


def closed_outputs(outputs: Any) -> GradientNormError:
    """The error for losses that look around, at outputs that cannot be taken apart."""
    return GradientNormError(
        "Expected a loss in which each sample's number depends on that sample's outputs "
        "alone but losses move when the samples of others do, and outputs of type "
        f"{type(outputs).__name__} cannot be taken apart to see how. Return a tensor, "
        "or a tuple or dict of tensors, from the model."
    )


def cut_off(names: Sequence[str]) -> GradientNormError:
    """Return the error for a loss that depends on none of the parameters. names: of these."""
    some_names = ", ".join(f"`{name}`" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return GradientNormError(
        f"Expected a loss that depends on the parameters asked for ({some_names}) but no gradient "
        "reaches any of them: the model is cut off from autograd (`torch.no_grad`, `.detach()`, "
        "`.numpy()` or an integer output inside), or the loss does not look at what they make."
    )
