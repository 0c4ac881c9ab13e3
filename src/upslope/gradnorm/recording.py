"""One forward pass of a model with its tape, and backward passes over it.

A `Recording` is made once per batch and can be asked for the squared norms of several losses:
they share the forward pass. What the first batch of a model shows about the places of its samples
(`layout`) is remembered for the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from upslope.errors import GradientNormError
from upslope.gradnorm.alone import sample_by_sample
from upslope.gradnorm.folding import PairFolding, corrected, pairs_of
from upslope.gradnorm.intercept import Interceptor
from upslope.gradnorm.layout import (
    Inseparable,
    Layout,
    LayoutProbe,
    Scattered,
    codes,
    halves,
)
from upslope.gradnorm.listeners import PartListener, Reduction, SquaredNorms, Unplaced
from upslope.gradnorm.losses import Loss
from upslope.gradnorm.mixing import refuse_mixing
from upslope.gradnorm.outputs import (
    Inputs,
    batch_size,
    call,
    check_losses,
    opened,
    tensors_in,
)
from upslope.gradnorm.tape import Listener, Means, Tape
from upslope.gradnorm.tokens import Unfolded
from upslope.gradnorm.weights import Weights

T = TypeVar("T")

_layouts: WeakKeyDictionary[nn.Module, dict[Any, dict[int, Layout]]] = WeakKeyDictionary()


class Recording:
    """The outputs of one forward pass, and the tape that belongs to them.

    first: which sample of the caller's batch is the first here, for messages.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, weights: Weights, means: Means, first: int = 0
    ):
        self.model, self.weights, self.first = model, weights, first
        self.inputs = opened(inputs)
        self.means = means
        self.n = batch_size(self.inputs)
        self._rng = torch.get_rng_state()
        self.why_slow: str | None = None
        """Why the samples go one by one, if they do."""
        self._copies = True
        try:
            self._start()
        except (Inseparable, RuntimeError) as error:
            self._give_way(error)

    def _start(self, folded: bool = True) -> None:
        """Run the model with a new tape."""
        known = self.model, self.inputs, self.weights
        pairs = pairs_of(*known) if folded and self.means.dtype is None else {}
        for last in range(len(pairs) + 2, -1, -1):  # until what is folded is right, or nothing is
            self.tape = Tape(self.weights, self.means)
            folding = PairFolding(self.tape, pairs)
            self.tape.folding, self._tokens = folding, folding.tokens
            self._interceptor = Interceptor(self.tape, self.model, self.n, self._copies)
            try:
                self.outputs = self._forward()
                folding.check(tensors_in(self.outputs))
                return
            except Unfolded as found:
                pairs = corrected(*known, found.place) if last > 1 else {}

    @property
    def _plain(self) -> bool:
        return self.why_slow is not None

    def tried(self, passes: Callable[[], T]) -> T | None:
        """What passes over the tape find; None where the samples must go one by one."""
        while not self._plain:
            try:
                return passes()
            except (Inseparable, RuntimeError) as error:
                self._give_way(error)
        return None

    def _give_way(self, error: Exception) -> None:
        """Run the model again, on the same random numbers: with no copies, or without the tape.

        What the model itself raises, it will raise again.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        if self._interceptor.copied:
            self._copies = False
            try:
                with self._same_random_numbers():
                    self._start()
                return
            except (Inseparable, RuntimeError) as again:
                error = again
        self.why_slow = str(error).partition("\n")[0]
        with self._same_random_numbers():
            self.outputs = self._forward()

    @contextlib.contextmanager
    def _same_random_numbers(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            yield

    def _forward(self) -> Any:
        # Copies, for a model may write into what it is given.
        inputs = tree_map_only(Tensor, lambda t: t.detach().clone(), self.inputs)
        if self._plain:
            return call(self.model, inputs)
        # Checkpoints run parts of the model again in the backward pass, where nothing intercepts.
        no_hooks = torch.autograd.graph.disable_saved_tensors_hooks("the model uses checkpoints")
        with no_hooks, self._interceptor:
            return call(self.model, tree_map_only(Tensor, self._taken, inputs))

    def _taken(self, tensor: Tensor) -> Tensor:
        per_sample = tensor.dim() > 0 and tensor.shape[0] == self.n
        return self._interceptor.sampled(tensor) if per_sample else tensor

    def losses(self, loss: Loss) -> Tensor:
        """(n,): the losses of the outputs; what a loss does with weights is seen as well."""
        outputs = self.outputs
        with contextlib.nullcontext() if self._plain else self._interceptor:
            if self.tape.means.dtype is not None:
                outputs = tree_map_only(Tensor, widened, outputs)
            losses = loss(outputs)
        check_losses(losses, self.n, self.first)
        return losses

    def squared_norms(self, loss: Loss, *, last: bool = False) -> dict[str, Tensor]:
        """name -> (n,) squared norms of each weight's per-sample gradient of `loss`."""
        return self.reduced(SquaredNorms(), loss, last=last)

    def reduced(self, reduction: Reduction, loss: Loss, *, last: bool = False) -> dict[str, Tensor]:
        """name -> (n, ...): a reduction of each weight's per-sample gradient of `loss`.

        A weight that no gradient reaches has zeros. After the `last` pass the activations are
        gone: they make room while it runs, which saves memory, and time where memory is fresh.
        """
        found: dict[str, Tensor] | None = {}
        if self.n > 0:
            found = self.tried(lambda: self._recorded_somehow(reduction, loss, last))
        if found is None:
            found = self._one_by_one(reduction, loss)
        missing = (name for name in self.weights.parameters if name not in found)
        return found | {name: self._nothing(reduction, name) for name in missing}

    def _nothing(self, reduction: Reduction, name: str) -> Tensor:
        parameter = self.weights.parameters[name].detach()
        row = reduction.of_dense(name, torch.zeros_like(parameter)[None])
        return row.expand(self.n, *row.shape[1:])

    def _recorded_somehow(self, reduction: Reduction, loss: Loss, last: bool) -> dict[str, Tensor]:
        try:
            return self._recorded(reduction, loss, last)
        except GradientNormError:
            if not self._tokens:
                raise
        # Tokens are no numbers, for what looks at them unseen.
        with self._same_random_numbers():
            self._start(folded=False)
        return self._recorded(reduction, loss, last)

    def _recorded(self, reduction: Reduction, loss: Loss, last: bool) -> dict[str, Tensor]:
        losses = self.losses(loss)
        known = self._remembered(losses)
        if known is not None:
            try:
                return self._heard(reduction, losses, known, last)
            except Unplaced:
                if last:
                    with self._same_random_numbers():
                        self._start()
                    losses = self.losses(loss)
        return self._heard(reduction, losses, self.layouts(losses), last)

    def _heard(
        self, reduction: Reduction, losses: Tensor, layouts: Mapping[int, Layout], last: bool
    ) -> dict[str, Tensor]:
        listener = PartListener(self.tape, self.n, layouts, reduction)
        self.backward(losses, torch.ones_like(losses), listener, last=last)
        return listener.finish()

    def backward(
        self,
        losses: Tensor,
        share: Tensor,
        listener: Listener,
        *,
        last: bool = False,
        routed: bool = False,
    ) -> None:
        """One backward pass; through the uses after the model routes its samples, or through all.

        Raises:
            Inseparable: some gradient reached a parameter past every kernel.
        """
        if not losses.requires_grad:
            return
        self.tape.listener = listener
        anchors = self.tape.anchors[routed:]
        try:
            reached = torch.autograd.grad(
                (losses * share).sum(),  # one number: for more, torch imports half a second of code
                [*anchors, *self.weights.parameters.values(), *self._tokens],
                retain_graph=not last,
                allow_unused=True,
            )
        finally:
            self.tape.listener = None
        names = [*self.weights.parameters, *("a convolution's output" for _ in self._tokens)]
        escaped = [
            name for name, g in zip(names, reached[len(anchors) :], strict=True) if g is not None
        ]
        if escaped:
            raise Inseparable(f"`{escaped[0]}` is used where no operator can be seen")

    def _keys(self) -> tuple[Any, Any]:
        """Under what layouts are remembered: with the input's shape, and for any shape.

        Of the uses before samples are routed by the data, if they are.
        """
        names = [kernel.name for kernel in self.tape.kernels[: self.tape.routed_from]]
        uses = (self.model.training, self.tape.routed_from, *names)
        leaves = tree_flatten(self.inputs)[0]
        return (uses, tuple(t.shape[1:] for t in leaves if isinstance(t, Tensor))), uses

    def _remembered(self, losses: Tensor) -> dict[int, Layout] | None:
        if self.n == 1:
            return {}
        known = _layouts.get(self.model, {})
        found = next((known[key] for key in self._keys() if key in known), None)
        if found is not None and self.tape.routed_from is not None:
            found = found | self._probed(losses, by_data=True, routed=True).layouts()[0]
        return found

    def layouts(self, losses: Tensor) -> dict[int, Layout]:
        """use -> where its samples are, read off backward passes from some of the losses.

        Raises:
            Inseparable: they cannot be told apart.
            GradientNormError: the model mixes samples.
        """
        if self.n == 1:
            return {}
        refuse_mixing(self.model, self.inputs, self._in_full_precision())
        routed = self.tape.routed_from
        try:
            found, proven = self._probed(losses, by_data=routed is not None).layouts()
        except Inseparable:  # by no rule that follows from shapes
            if routed is not None:
                raise
            return self._probed(losses, by_data=True).layouts()[0]
        end = len(self.tape.kernels) if routed is None else routed
        plain = all(layout == Layout() for index, layout in found.items() if index < end)
        _layouts.setdefault(self.model, {})[self._keys()[plain]] = {
            index: layout
            for index, layout in proven.items()
            if index < end and not isinstance(layout, Scattered)
        }
        return found

    def _probed(self, losses: Tensor, *, by_data: bool, routed: bool = False) -> LayoutProbe:
        probe = LayoutProbe(torch.ones(self.n, dtype=torch.bool), self.tape.kernels, by_data)
        for kept in codes(self.n) if by_data else halves(self.n):
            probe.kept = kept.to(losses.device)
            self.backward(losses, probe.kept.to(losses), probe, routed=routed)
        return probe

    def _in_full_precision(self) -> Any:
        if self.means.dtype is None:
            return self.outputs
        with torch.no_grad(), self._same_random_numbers():
            return call(self.model, tree_map_only(Tensor, torch.clone, self.inputs))

    def _one_by_one(self, reduction: Reduction, loss: Loss) -> dict[str, Tensor]:
        """One backward pass a sample: always right, and slow."""
        parameters = self.weights.parameters
        rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
        found = sample_by_sample(
            self.model, self.inputs, self.outputs, list(parameters.values()), self.n, loss
        )
        for gradients in found:
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                dense = torch.zeros_like(parameter) if gradient is None else gradient
                dense = dense.to_dense() if dense.is_sparse else dense
                rows[name].append(reduction.of_dense(name, dense.detach()[None]))
        return {name: torch.cat(row) for name, row in rows.items()}


def widened(tensor: Tensor) -> Tensor:
    """In a type whose losses can be trusted."""
    return tensor.float() if tensor.is_floating_point() else tensor
