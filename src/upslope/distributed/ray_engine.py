"""Workers of Ray: actors that hold the data and the network, and compute batches or whole tasks.

    with RayEngine.started(workers=4) as engine, engine.together({"pool": pool}, device, make):
        score_to_file(...)

Ray restarts an actor that dies, on another machine where its own is gone, and gives it the batches
again that it had; each result is taken once, in order. Without an address a cluster of this machine
alone is started, which listens on loopback and ends with the block; RAY_ADDRESS names another.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upslope.distributed.engine import Work, using
from upslope.distributed.fingerprint import Fingerprint, check_alike
from upslope.distributed.parcels import Holdings, pack_or_warn, to_cpu
from upslope.errors import ConfigError, RunError
from upslope.extras import missing_package

_RESTARTS = 20
"""Times that Ray starts an actor again; batches that kill actors must not do so for ever."""

_RETRIES = 3
"""Times that batches, or a task, are given out again after the process that had them died."""

_TOKENS = "ray._private.authentication.authentication_token_setup"
"""The logger of Ray's lines on tokens, which reach the screen whatever its own log level is."""

Identify = Callable[[Mapping[str, Any], Callable[[], nn.Module] | None], Fingerprint]
"""Returns what tells data sets by name, and networks that a function makes, from others."""

_LOOPBACK = ("127.0.0.1", "::1")
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster of several machines: loopback alone
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what later versions of Ray do; else it warns
}


@dataclass
class RayEngine:
    """Workers of a Ray cluster, started when they are first needed.

    workers: how many at a time. threads: of torch in each, and the CPUs that each asks for. gpus:
    that each asks for; 0.5 lets two share one.
    """

    workers: int
    threads: int = 1
    gpus: float = 0.0
    _holdings: Holdings | None = field(default=None, init=False)
    _identify: Identify | None = field(default=None, init=False)
    _actors: list[Any] = field(default_factory=list, init=False)
    _payload_reference: Any = field(default=None, init=False)

    @classmethod
    @contextmanager
    def started(
        cls, workers: int | None = None, *, threads: int | None = None, gpus: float = 0.0
    ) -> Iterator[RayEngine]:
        """Yield workers of the cluster at RAY_ADDRESS, or of one that this starts and ends.

        workers: how many; by default one per CPU of this machine, or one per share of its GPUs.
        threads, gpus: as of the engine; by default this process's threads, divided by the workers.

        Raises:
            ConfigError: Ray is missing, or the cluster has too few CPUs or GPUs.
            RunError: the cluster cannot be reached, or would listen beyond this machine.
        """
        if workers is not None and workers < 1:
            raise ConfigError(f"Expected `workers` to be at least 1 but got {workers}.")
        count = workers or _default_workers(gpus)
        engine = cls(count, threads or max(1, torch.get_num_threads() // count), gpus)
        ray = _import_ray()
        address = os.environ.get("RAY_ADDRESS")
        _connect(ray, engine, address)
        try:
            if not address and ray.util.get_node_ip_address() not in _LOOPBACK:
                raise RunError(
                    "Expected Ray to listen on this machine alone but it took the address "
                    f"{ray.util.get_node_ip_address()}, which others reach. Start a cluster of "
                    "your own with `ray start`, and name it in RAY_ADDRESS."
                )
            engine._check_resources(ray)
            yield engine
        finally:
            engine._actors.clear()
            ray.shutdown()

    @property
    def description(self) -> str:
        """Return what a ledger keeps of the engine: what may change the last bits of scores."""
        return f"ray, {self.threads} {'thread' if self.threads == 1 else 'threads'} per worker"

    @contextmanager
    def together(
        self,
        objects: Mapping[str, Any],
        device: torch.device,
        make_model: Callable[[], nn.Module] | None = None,
        identify: Identify | None = None,
    ) -> Iterator[bool]:
        """Let the workers compute batches while the block runs; yields True.

        objects: name -> data set; each worker gets a copy. device: of this process. make_model:
        returns a network as that in use, with any weights. identify: returns what must be equal in
        this process and in every worker, whose machine may have other code.
        """
        self._holdings, self._identify = Holdings(dict(objects), make_model, device), identify
        try:
            with using(self):
                yield True
        finally:
            self._actors.clear()  # Ray ends actors that nobody refers to
            self._holdings = self._payload_reference = self._identify = None

    # --- batches ---

    def compute(self, work: Work, batches: Sequence[Tensor]) -> Generator[Any]:
        """Yield the results of all batches, in order, computed by the actors.

        Work that cannot be pickled is computed in this process, which a warning says.

        Raises:
            RunError: an actor died again and again.
            DataError, ModelError: an actor holds other samples, or builds another network.
            UpslopeError: what the work raises.
        """
        parcel = None
        if self._holdings is not None and len(batches) > 1:
            parcel = pack_or_warn(self._holdings, work, "this process", whole=True)
        if parcel is None:
            yield from work.stream(batches)
            return
        ray = _import_ray()
        self._start_actors(ray)
        parcel_reference, key = ray.put(parcel), uuid.uuid4().hex
        chunks = _chunks(list(batches), len(self._actors))
        load = [0] * len(self._actors)
        running: dict[Any, tuple[int, int]] = {}
        results: dict[int, list[Any]] = {}
        count = 0
        for place in range(len(chunks)):
            while place not in results:
                ahead = 2 * len(self._actors)  # a chunk in work and one that waits, for each
                while count < min(len(chunks), place + 2 * ahead) and len(running) < ahead:
                    who = load.index(min(load))
                    chunk = chunks[count]
                    reference = self._actors[who].compute.remote(
                        [self._payload_reference], key, [parcel_reference], chunk
                    )
                    running[reference] = (count, who)
                    load[who] += 1
                    count += 1
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    number, who = running.pop(reference)
                    load[who] -= 1
                    results[number] = _result(ray, reference)
            yield from results.pop(place)

    def _start_actors(self, ray: Any) -> None:
        if self._actors:
            return
        assert self._holdings is not None  # `compute` has looked
        options = {
            **self._options(),
            "max_restarts": _RESTARTS,
            "max_task_retries": _RETRIES,
        }
        from ray import cloudpickle

        objects, make_model = dict(self._holdings.objects), self._holdings.make_model
        leader = self._identify(objects, make_model) if self._identify else None
        payload = cloudpickle.dumps((objects, make_model, self._identify, leader))
        self._payload_reference = ray.put(
            payload
        )  # kept: an actor that is started again reads it again
        kind = ray.remote(_Worker)
        device = self._holdings.device.type
        self._actors = [
            kind.options(**options).remote(device, self.threads) for _ in range(self.workers)
        ]

    # --- whole tasks ---

    def put(self, value: Any) -> Any:
        """Return a reference to a value that tasks may take as an argument."""
        return _import_ray().put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a reference to what a function will return, called by a worker as a task.

        It is called again, on another machine if need be, where its process dies.
        """
        ray = _import_ray()
        task = ray.remote(function).options(**self._options(), max_retries=_RETRIES)
        return task.remote(*arguments)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Return those of the references that are ready, waiting for the first so long."""
        ready, _ = _import_ray().wait(list(references), num_returns=1, timeout=seconds)
        return list(ready)

    def result(self, reference: Any) -> Any:
        """Return what a task returned.

        Raises:
            RunError: its processes died again and again.
            UpslopeError: what the task raised.
        """
        return _result(_import_ray(), reference)

    def cancel(self, references: Sequence[Any]) -> None:
        """End tasks that are running or waiting."""
        ray = _import_ray()
        for reference in references:
            ray.cancel(reference, force=True)

    def _options(self) -> dict[str, Any]:
        return {"num_cpus": self.threads, "num_gpus": self.gpus}

    def _check_resources(self, ray: Any) -> None:
        there = ray.cluster_resources()
        resources = {"CPU": self.workers * self.threads, "GPU": self.workers * self.gpus}
        for kind, count in resources.items():
            if count > there.get(kind, 0):
                raise ConfigError(
                    f"Expected a Ray cluster with {count:g} {kind}s for {self.workers} workers but "
                    f"it has {there.get(kind, 0):g}. Take fewer workers, or let them share GPUs "
                    "(--gpus-per-worker 0.5)."
                )


class _Worker:
    """An actor: holds the data, and the network of the work that it was given last.

    References come in lists, so that they are read where they are new and not at each call; and
    with each call, so that an actor that was started again has them.
    """

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._holdings: Holdings | None = None
        self._work: tuple[str, Any] = ("", None)

    def compute(
        self, payload_parts: list[Any], key: str, parcel: list[Any], batches: list[Tensor]
    ) -> list[Any]:
        """Return the results of some batches.

        payload_parts: what every actor holds. key: of the work in the parcel.
        """
        import ray
        from ray import cloudpickle

        if self._holdings is None:
            # Written by the process that started this worker, for it alone.
            objects, make_model, identify, leader = cloudpickle.loads(ray.get(payload_parts[0]))
            if identify is not None:
                _check_worker(leader, identify(objects, make_model))
            self._holdings = Holdings(objects, make_model, self._device)
        if self._work[0] != key:
            self._work = (key, self._holdings.unpack(ray.get(parcel[0])))
        return [to_cpu(result) for result in self._work[1].stream(batches)]


def _check_worker(leader: Fingerprint, here: Fingerprint) -> None:
    """Raise an error where this worker holds other samples, or builds another network."""
    who = f"the one on {socket.gethostname()}"
    check_alike(leader, here, "all workers of Ray", who, "the process that started them")


def _chunks(batches: list[Tensor], actors: int) -> list[list[Tensor]]:
    """Return the batches sent together: at most eight, and fewer where actors would wait."""
    size = max(1, min(8, len(batches) // (4 * actors)))
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, Exception) else error from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise RunError(
            f"Expected workers of Ray to keep running but one died {_RETRIES + 1} times at the "
            f"same work ({type(error).__name__}: {reason}). Nothing recorded is lost: the same "
            "command goes on. Fewer workers, or a smaller experiment.score_batch, need less memory."
        ) from error


def _connect(ray: Any, engine: RayEngine, address: str | None) -> None:
    """Connect to the cluster at an address, or start one."""
    local: dict[str, Any] = {}
    if not address:
        cpus = max(os.cpu_count() or 1, engine.workers * engine.threads)
        local = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    tokens = logging.getLogger(_TOKENS)
    tokens.addFilter(_tells_more)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            configure_logging=False,
            logging_level="error",
            **local,
        )
    except Exception as error:  # a start that takes too long is a plain Exception of Ray's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if address:
            where = f"reach the Ray cluster at {address} (RAY_ADDRESS)"
            fix = "Look at `ray status`, or unset RAY_ADDRESS to start one on this machine"
        else:
            where = "start a Ray cluster here"
            fix = "Run the same command again once the machine has less to do, or without Ray"
        raise RunError(f"Expected to {where} but got: {reason}. {fix}.") from error
    finally:
        tokens.removeFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    """Say whether a line of Ray's is more than that other users of the machine are kept out."""
    return "authentication is enabled" not in record.getMessage()


def _import_ray() -> Any:
    if not os.environ.get("RAY_ADDRESS"):
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise missing_package("ray", "for the engine 'ray'", "ray") from error
    if not os.environ.get("RAY_ADDRESS"):
        # Where Ray was imported before, it has read its variable already.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    return ray


def _default_workers(gpus: float) -> int:
    if gpus:
        return max(1, int(torch.cuda.device_count() / gpus))
    return os.cpu_count() or 1
