"""Runs signals over samples: batched, read ahead, each distinct signal once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.batches import StreamedSource, in_order
from upslope.datasets.base import Dataset
from upslope.datasets.readable import readable
from upslope.distributed.engine import compute_batches
from upslope.errors import DataError
from upslope.gradnorm import samples_that_fit
from upslope.pool import Need
from upslope.progress import Observer, Progress, Stop, no_progress
from upslope.seeds import deterministic, generator, global_generator
from upslope.signals import FitContext, FittedSignal, Signal, build
from upslope.signals.base import FittedOnce, Targets
from upslope.tasks.base import Task

OnCorrupt = Literal["fail", "skip"]


class KnowsSignals(Protocol):
    """Something that computes signals of its own, as what was trained along with the model."""

    def signal(self, need: Need) -> Signal | None:
        """Return the signal of that need, None for one that it does not know."""
        ...


@dataclass(frozen=True)
class LabelledSet:
    """The samples on which a signal may be fitted: positions in the data set, and targets of each.

    indices: positions in the data set.
    """

    indices: Sequence[int] = ()
    targets: Targets = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class SignalTable:
    """Signals over candidates, on the CPU.

    candidates: positions in the data set, in the order given, without `skipped`, those that could
    not be read. signals: need -> (n_candidates, ...). labelled_signals: need -> (n_labelled, ...),
    for the needs that ask for it.
    """

    candidates: tuple[int, ...]
    signals: dict[Need, Tensor]
    labelled_signals: dict[Need, Tensor]
    skipped: tuple[int, ...] = ()


def compute_signals(
    needs: Sequence[Need],
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    candidates: Sequence[int],
    *,
    device: torch.device,
    seed: int,
    cycle: int = 0,
    labelled: LabelledSet | None = None,
    unlabelled: Sequence[int] | None = None,
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "fail",
    companion: KnowsSignals | None = None,
    train: Callable[[Sequence[int]], nn.Module] | None = None,
    cache: Path | None = None,
    observer: Observer = no_progress,
    stop: Stop | None = None,
) -> SignalTable:
    """Return the signals of `needs` over `candidates`, with `model` in eval mode.

    Equal signals are computed once; signals with something to train are fitted first, on
    `unlabelled` (the candidates by default) and `labelled`. Random signals (dropout passes) draw
    from (seed, cycle). The model's modes and torch's generators are as before afterwards. train: as
    `FitContext` has it; without it, signals that must train a network like the run's are refused.
    cache: a folder for what signals learn once for a run.

    task: as in training. dataset: the pool. device: where to compute. batch_size: samples at a
    time. companion: what trained along with the model, if anything. observer: is told of progress.

    Raises:
        ConfigError: a signal that does not exist.
        DataError: a sample cannot be read and `on_corrupt` is "fail".
        Interrupted: a stop was requested.
    """
    labelled, stop = labelled or LabelledSet(), stop or Stop()
    plain = list(dict.fromkeys(replace(need, labelled=False) for need in needs))
    with evaluating(model), deterministic(device):
        signals: dict[Need, Signal] = {}
        for need in plain:
            signal = (companion.signal(need) if companion else None) or build(need)
            trainable: object = signal
            if isinstance(trainable, FittedSignal):
                once = isinstance(trainable, FittedOnce) and trainable.once
                when = () if once else (cycle,)
                context = FitContext(
                    model=model,
                    task=task,
                    dataset=dataset,
                    unlabelled=candidates if unlabelled is None else unlabelled,
                    labelled=labelled.indices,
                    targets=labelled.targets,
                    device=device,
                    rng=generator(seed, "fit", str(need), *when),
                    progress=_fitting(observer, stop),
                    train=train,
                    cache=cache,
                    skip_unreadable=on_corrupt == "skip",
                )
                signal = trainable.fit(context)
            signals[need] = signal
        for_labelled = {replace(n, labelled=False): n for n in needs if n.labelled}
        if signals:
            fitting = _fitting_batch(model, task, dataset, candidates, device)
            batch_size = min(batch_size, fitting)
        run = _Pass(batch_size, on_corrupt, observer, stop)
        work = _Signals(signals, model, task, dataset, candidates, device, on_corrupt, seed, cycle)
        values, readable, left_out = run(work)
        labelled_values: dict[Need, Tensor] = {}
        if for_labelled and labelled.indices:
            signals_of_labelled = {need: signals[need] for need in for_labelled}
            labelled_values, _, _ = replace(run, on_corrupt="fail")(
                replace(
                    work, signals=signals_of_labelled, indices=labelled.indices, on_corrupt="fail"
                )
            )
    return SignalTable(
        readable,
        {need: values[replace(need, labelled=False)] for need in needs},
        {for_labelled[need]: tensor for need, tensor in labelled_values.items()},
        left_out,
    )


@dataclass(frozen=True)
class _Signals:
    """What is computed of each batch of samples: several signals, from one forward pass or more.

    indices: positions in the data set. Random numbers that a network draws from torch's global
    generators depend on (seed, cycle, place of the batch), so that batches may be computed in any
    order and in any process.
    """

    signals: dict[Need, Signal]
    model: nn.Module
    task: Task
    dataset: Dataset
    indices: Sequence[int]
    device: torch.device
    on_corrupt: OnCorrupt
    seed: int
    cycle: int

    def stream(self, batches: Sequence[Tensor]) -> Generator[tuple[list[int], dict[Need, Tensor]]]:
        """Yield (positions in `indices` that could be read, their signals) of each batch."""
        read = partial(readable if self.on_corrupt == "skip" else _all, self.dataset)
        data = StreamedSource(read, self.indices, self.device)
        for batch, (inputs, mask) in zip(batches, data.stream(batches), strict=True):
            yield batch[mask.cpu()].tolist(), self._compute(inputs, int(batch[0]))

    def _compute(self, inputs: Tensor, place: int) -> dict[Need, Tensor]:
        """Return the signals of the samples that could be read, on the CPU."""
        if not len(inputs):
            return {}
        drawing = global_generator(self.seed, "signals", self.cycle, place, device=self.device)
        with evaluating(self.model), deterministic(self.device), drawing:
            inputs_on_device = self.task.prepare(inputs)
            return {
                need: signal.compute(self.model, self.task, inputs_on_device).detach().cpu()
                for need, signal in self.signals.items()
            }


@dataclass(frozen=True)
class _Pass:
    """One pass over samples, batch by batch."""

    batch_size: int
    on_corrupt: OnCorrupt
    observer: Observer
    stop: Stop

    def __call__(
        self, work: _Signals
    ) -> tuple[dict[Need, Tensor], tuple[int, ...], tuple[int, ...]]:
        """Return (signals, indices that could be read, and those that could not)."""
        indices = work.indices
        parts: dict[Need, list[Tensor]] = {need: [] for need in work.signals}
        readable: list[int] = []
        # Without a signal there is nothing to read, unless unreadable samples must be found.
        if work.signals or self.on_corrupt == "skip":
            for positions, values in self._results(work):
                readable += [indices[p] for p in positions]
                for need, value in values.items():
                    parts[need].append(value)
        else:
            readable = list(indices)
        left_out = tuple(sorted(set(indices) - set(readable)))
        empty = torch.empty(0)
        return (
            {n: torch.cat(p) if p else empty for n, p in parts.items()},
            tuple(readable),
            left_out,
        )

    def _results(self, work: _Signals) -> Iterator[tuple[list[int], dict[Need, Tensor]]]:
        """Yield the results of all batches in order; progress is told, and a stop is obeyed."""
        total = len(work.indices)
        batches = in_order(total, self.batch_size)
        self.observer(Progress("score", 0, total))
        with closing(compute_batches(work, batches)) as results:
            for batch, result in zip(batches, results, strict=True):
                self.stop.check()
                yield result
                self.observer(Progress("score", int(batch[-1]) + 1, total))


def _all(dataset: Dataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    return dataset.inputs(indices), torch.ones(len(indices), dtype=torch.bool)


def _fitting_batch(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    indices: Sequence[int],
    device: torch.device,
) -> int:
    """Return how many samples fit in memory, judged by the first that can be read."""
    for index in indices[:100]:
        with contextlib.suppress(DataError):
            sample = task.prepare(dataset.inputs([index]).to(device))
            return samples_that_fit(model, sample)
    return 1


def _fitting(observer: Observer, stop: Stop) -> Callable[[int, int], None]:
    def report(count: int, total: int) -> None:
        stop.check()
        observer(Progress("fit", count, total))

    return report
