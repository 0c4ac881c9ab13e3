"""The processes that torchrun has started for one command: rank 0 leads, the others follow.

    torchrun --nproc-per-node 2 -m upslope run ...

Rank 0 runs the program as it would alone: it alone opens the ledger, writes files, prints and
selects. The other ranks open the same data and wait for work: batches to score or to evaluate,
and their part in a training. So nothing is written twice, and no rank can disagree with another
on what comes next.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from upslope.distributed.engine import Engine, Work, using
from upslope.distributed.fingerprint import Fingerprint, check_alike
from upslope.distributed.launch import count_processes, place_on_machine, rank_of_process
from upslope.distributed.parcels import UNPICKLABLE, Holdings, Parcel, pack_or_warn, to_cpu
from upslope.distributed.survivors import Survivors
from upslope.errors import ConfigError, RunError, UpslopeError
from upslope.processes import STOPPING, make_portable

_PATIENCE = timedelta(days=30)
"""How long a rank waits for another: rank 0 may select for hours. That one has died shows at once,
by its connection."""


_ROUND_SECONDS = 1.0
"""How long each rank computes before results are gathered: ranks that are slower for a moment then
make no others wait, and progress is told often enough."""


class JointWork(Work, Protocol):
    """Work in which every rank takes part at the same time, such as a training."""

    def take_part(self, ranks: Ranks) -> None:
        """Do this rank's part; called on every rank but rank 0, which has begun by itself."""
        ...


class CalledOffError(Exception):
    """Rank 0 has ended joint work early, and tells why itself."""


@dataclass(frozen=True)
class _Order:
    """What rank 0 sends. parcel: the work; None where the command is over."""

    parcel: Parcel | None
    batches: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class _Fault:
    """What a rank hands in for a result that it could not compute."""

    error: BaseException


@dataclass
class Ranks:
    """This process among those of the command.

    rank, size: of `torch.distributed`. control: the group of all ranks by which plain data travel.
    tensors: that by which tensors on the device do. survivors: tells which rank has died. broken:
    one has, and nothing can be sent any more.
    """

    rank: int
    size: int
    control: Any
    tensors: Any
    survivors: Survivors
    broken: bool = field(default=False, init=False)
    _has_met: bool = field(default=False, init=False)
    _holdings: Holdings | None = field(default=None, init=False)

    @property
    def leads(self) -> bool:
        """Return whether this process is rank 0, which runs the program."""
        return self.rank == 0

    # --- meeting and parting ---

    @contextmanager
    def together(
        self,
        objects: Mapping[str, Any],
        device: torch.device,
        make_model: Callable[[], nn.Module] | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> Iterator[bool]:
        """Yield whether this rank leads, with all ranks at work for it; others work first, until
        rank 0 has left the block, and then find False.

        objects: what every rank holds and nobody sends: data sets. make_model: returns a network
        of the kind that is used, with any weights. fingerprint: equal on every rank, or they do
        not hold the same.

        Raises:
            DataError: ranks hold other data than rank 0.
            ModelError: ranks build another network.
            UpslopeError: what a rank could not open.
        """
        self._holdings = Holdings(dict(objects), make_model, device)
        self._meet(None, fingerprint)
        if not self.leads:
            self._follow()
            yield False
            return
        with using(self):
            yield True

    def _meet(self, error: BaseException | None, fingerprint: Fingerprint | None = None) -> None:
        """Tell rank 0 that this rank is ready, or why not; rank 0 raises the first reason."""
        self._has_met = True
        reports = self.gather((None if error is None else make_portable(error), fingerprint))
        if not self.leads or error is not None:
            return
        for rank, (reason, other) in enumerate(reports):
            if reason is not None:
                raise reason
            if other is None or fingerprint is None:
                continue
            check_alike(fingerprint, other, f"all {self.size} processes", f"rank {rank}", "rank 0")

    def leave(self, error: BaseException | None) -> None:
        """Part in good order, whatever happened: rank 0 ends the others.

        Raises:
            RunError: a rank has died, and this one was asked to stop for it.
        """
        if self.broken:
            return
        try:
            if not self._has_met:
                self._meet(error or RunError("Rank 0 ended before it began."))
            if self.leads:
                self._send(_Order(None))
            elif self._holdings is None:
                self._hear()  # rank 0 answers every meeting, at last with the end
        except RunError:
            # torchrun asks rank 0 to stop when another dies: the death is the reason to tell.
            if self.leads and isinstance(error, KeyboardInterrupt):
                raise

    # --- work that is handed out batch by batch ---

    def compute(self, work: Work, batches: Sequence[Tensor]) -> Generator[Any]:
        """Yield the results of all batches in order: each rank computes every `size`-th.

        Work that cannot be pickled is computed by rank 0 alone, which a warning says.

        Raises:
            RunError: a rank has died.
            UpslopeError: what the work raises on any rank.
        """
        assert self._holdings is not None  # `together` has set it
        parcel = pack_or_warn(self._holdings, work, "rank 0 alone") if len(batches) > 1 else None
        if parcel is None:
            yield from work.stream(batches)
            return
        self._send(_Order(parcel, tuple(batches)))
        results = work.stream(batches[:: self.size])
        there: dict[int, Any] = {}
        counts = [0] * self.size
        place = 0
        try:
            while place < len(batches):
                own_results = _compute_some(results)
                self._go_on(True)
                for rank, part in enumerate(self.gather(own_results)):
                    for value in part:
                        there[rank + counts[rank] * self.size] = value
                        counts[rank] += 1
                while place in there:
                    value = there.pop(place)
                    place += 1
                    if isinstance(value, _Fault):
                        raise value.error
                    yield value
        finally:
            # Also where the reader of the results wants no more: the others wait for a word.
            if not self.broken:
                self._go_on(False)

    def _serve(self, work: Work, batches: Sequence[Tensor]) -> None:
        """Compute this rank's batches while rank 0 wants them."""
        results = work.stream(batches[self.rank :: self.size])
        while True:
            own_results = _compute_some(results)
            if not self._go_on():
                return
            self.gather(own_results)

    def _go_on(self, word: bool = False) -> bool:
        """Rank 0 says whether there is another round; the others hear it."""
        flag = torch.tensor([int(word)])
        with self.guarding():
            dist.broadcast(flag, src=0, group=self.control)
        return bool(flag)

    # --- work in which all take part at once ---

    def begin(self, work: JointWork) -> None:
        """Have the other ranks take part in joint work that rank 0 begins now.

        Raises:
            ConfigError: the work cannot be pickled.
        """
        assert self._holdings is not None  # `together` has set it
        try:
            parcel = self._holdings.pack(work)
        except UNPICKLABLE as error:
            raise ConfigError(
                "Expected everything that a training uses to be picklable, as it travels to "
                f"{self.size - 1} other processes, but got: {error}. Define networks, tasks and "
                "data sets at the top of a module, or leave torchrun out."
            ) from error
        self._send(_Order(parcel))

    # --- following ---

    def _follow(self) -> None:
        """Do what rank 0 sends until it says that the command is over."""
        assert self._holdings is not None  # `together` has set it
        while True:
            order = self._hear()
            if order.parcel is None:
                return
            work = self._holdings.unpack(order.parcel)
            if order.batches is not None:
                self._serve(work, order.batches)
                continue
            try:
                work.take_part(self)
            except (
                CalledOffError,
                UpslopeError,
                KeyboardInterrupt,
            ):  # rank 0 meets the same, and tells
                if self.broken:
                    raise

    # --- collectives ---

    def share(self, value: Any = None) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        with self.guarding():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0, an empty list elsewhere."""
        box: list[Any] | None = [None] * self.size if self.leads else None
        with self.guarding():
            dist.gather_object(value, box, dst=0, group=self.control)
        return box or []

    def add(self, tensor: Tensor) -> Tensor:
        """Return the tensor, on the device or the CPU, as its sum over all ranks, in place."""
        group = self.control if tensor.device.type == "cpu" else self.tensors
        with self.guarding():
            dist.all_reduce(tensor, group=group)
        return tensor

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Tell a failure of the connection as the end of a rank.

        Raises:
            RunError: a rank has died; the message names it where it is known.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if not _is_of_connection(error):
                raise
            self.broken = True
            raise RunError(self.survivors.explain_loss()) from error

    def _send(self, order: _Order) -> None:
        self.share(order)

    def _hear(self) -> _Order:
        order: _Order = self.share()
        return order


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks | None]:
    """Join the other processes of the command while the block runs; None where there are none.

    Ctrl-C and SIGTERM are rank 0's to answer: it ends the others in good order.

    device: "cpu" where no rank uses a GPU.

    Raises:
        ConfigError: more processes on a machine than it has GPUs.
    """
    size = count_processes()
    if size == 1:
        yield None
        return
    rank = rank_of_process()
    local, here = place_on_machine()
    if here == size and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no other is to connect
    if rank:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
    gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if gpus and here > torch.cuda.device_count():
        raise ConfigError(
            f"Expected at most {torch.cuda.device_count()} processes on this machine, one per GPU, "
            f"but torchrun started {here}. Lower --nproc-per-node, or take --device cpu."
        )
    if gpus:
        torch.cuda.set_device(local)
    store, _, _ = next(rendezvous("env://", rank=rank, world_size=size))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    tensors = dist.new_group(backend="nccl") if gpus else dist.group.WORLD
    ranks = Ranks(rank, size, dist.group.WORLD, tensors, Survivors(store, rank, size))
    failure: BaseException | None = None
    try:
        try:
            yield ranks
        except BaseException as error:
            failure = error
            raise
        finally:
            if ranks.leads:
                ranks.survivors.leave_word()
            ranks.leave(failure)
    finally:
        # Its threads must end here: one that is left at the interpreter's end aborts the process.
        ranks.control = ranks.tensors = tensors = None
        with suppress(RuntimeError):
            dist.destroy_process_group()
        gc.collect()


def leader(engine: Engine | None) -> Ranks | None:
    """Return the engine where it is the ranks of torchrun, which can train together."""
    return engine if isinstance(engine, Ranks) else None


def _compute_some(results: Iterator[Any]) -> list[Any]:
    """Return the next results of this rank, as many as a round takes; a fault is the last."""
    some: list[Any] = []
    until = time.monotonic() + _ROUND_SECONDS
    while not some or time.monotonic() < until:
        try:
            some.append(to_cpu(next(results)))
        except StopIteration:
            break
        except Exception as error:
            some.append(_Fault(make_portable(error)))
            break
    return some


def _is_of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()
