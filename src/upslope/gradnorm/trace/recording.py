"""One forward pass of a model with its tape, and backward passes over it.

A `Recording` is made once per microbatch and can be asked for the squared norms of several losses:
they share the forward pass. What the first batch of a program (`program`) shows about the places of
its samples (`layout`) is remembered for the next, once it has been proven (`proof`).

The ladder, from fast to slow; every step down is for a reason, and the last one is told:

1. kernels, with convolutions and the normalisation behind them as one (`conv_bn_fusion`);
2. kernels without folding: the model looked at the output of a convolution itself;
3. kernels, with no weight held to be copied to every sample (`batch_expansion`);
4. one pass per sample by autograd alone (`per_sample_loop`).
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from upslope.errors import GradientNormError, warn_user
from upslope.gradnorm.core.batch import Batch, call, clone_rows
from upslope.gradnorm.core.layout import (
    GradientsHooked,
    Layout,
    LayoutProbe,
    SamplesNotSeparable,
    codes,
    halves,
)
from upslope.gradnorm.core.listeners import LayoutUnknown, ReducingListener, Reduction, SquaredNorms
from upslope.gradnorm.core.memory import Known, memory_of
from upslope.gradnorm.core.outputs import check_losses, tensors_in
from upslope.gradnorm.core.placeholders import FusionMismatch
from upslope.gradnorm.core.program import switches_of
from upslope.gradnorm.core.restoring import Buffers, RandomState
from upslope.gradnorm.core.separation import scales
from upslope.gradnorm.core.tape import ComputeOptions, Listener, Tape
from upslope.gradnorm.core.weights import Weights
from upslope.gradnorm.losses import Loss, identify
from upslope.gradnorm.proofs.independence import losses_look_around, model_looks_around, opens
from upslope.gradnorm.proofs.per_sample_loop import pull_back, sample_by_sample
from upslope.gradnorm.proofs.proof import (
    BothListeners,
    Checksums,
    ProofFailed,
    ProvenReduction,
    check_gradients,
    check_separation,
)
from upslope.gradnorm.proofs.statistics import Watch
from upslope.gradnorm.torch_faults import exact_batch_norm
from upslope.gradnorm.trace.conv_bn_fusion import ConvBatchNormFusion, corrected, pairs_of
from upslope.gradnorm.trace.intercept import Interceptor

T = TypeVar("T")


class KnownSlow(SamplesNotSeparable):
    """An earlier batch of the same program went sample by sample."""


class Recording:
    """The outputs of one forward pass, and the tape that belongs to them."""

    def __init__(self, model: nn.Module, batch: Batch, weights: Weights, options: ComputeOptions):
        self.model, self.batch, self.weights, self.options = model, batch, weights, options
        self.n = batch.n
        self._buffers, self._random = Buffers(model), RandomState(model)
        self._memory = memory_of(model)
        self._switches = switches_of(model)
        self.fallback_reason: str | None = None
        """Why the samples go one by one, if they do."""
        self.has_hooks = False
        """Whether hooks may change gradients, which must then be those of single samples."""
        self.checks_company = False
        """Whether to hold each sample's gradient alone against that in the batch."""
        self._copies = True
        self.looks_around = False
        """Whether a sample's numbers may depend on others, so that all samples are proven."""
        self._key: Any = None
        """The program of the last losses, once they are known."""
        self._scaled: dict[int, Tensor] | None = None
        """Checksums of passes with a power of two for each sample, where probing took them."""
        self._reached = False
        """Whether the last backward pass came to any weight, be it with zeros."""
        self.shared_outputs: set[int] | None = None
        """Outputs that are as long as the batch by chance, once that is known (`mixing`)."""
        self._has_drawn = False
        self.is_random = False
        """Whether the model draws random numbers that a sample alone would not meet."""
        try:
            self._start()
        except (SamplesNotSeparable, RuntimeError) as error:
            self._fall_back(error)

    def _start(self, fused: bool = True) -> None:
        """Run the model with a new tape."""
        known = self.model, self.batch, self.weights
        pairs = pairs_of(*known) if fused and self.options.dtype is None and self.n else {}
        for last in range(len(pairs) + 2, -1, -1):  # until what is folded is right, or nothing is
            self.tape = Tape(self.weights, self.options)
            fusion = ConvBatchNormFusion(self.tape, pairs)
            self.tape.fusion, self._placeholders = fusion, fusion.placeholders
            self._interceptor = Interceptor(self.tape, self.model, self.n, self._copies)
            try:
                self.outputs = self._forward()
                fusion.check(tensors_in(self.outputs))
                self._ran = self._interceptor.program.identity
                return
            except FusionMismatch as mismatch:
                pairs = corrected(*known, mismatch.place) if last > 1 else {}

    @property
    def _plain(self) -> bool:
        return self.fallback_reason is not None

    @property
    def precision(self) -> torch.dtype:
        """The least precise floating type that the model computed in, of those that occur."""
        types = {p.dtype for p in self.weights.parameters.values()} | self.tape.types
        if self.options.dtype is not None:
            return self.options.dtype
        floating = {t.to_real() for t in types if t.is_floating_point or t.is_complex}
        return max(floating, key=lambda t: torch.finfo(t).eps, default=torch.float32)

    def run_or_fall_back(self, passes: Callable[[], T]) -> T | None:
        """What passes over the tape find; None where the samples must go one by one."""
        while not self._plain:
            try:
                return passes()
            except (SamplesNotSeparable, RuntimeError) as error:
                self._fall_back(error)
        return None

    def _fall_back(self, error: Exception) -> None:
        """Run the model again, on the same random numbers: with no copies, or without the tape.

        What the model itself raises, it will raise again.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        if self._interceptor.copied and self._copies and not isinstance(error, KnownSlow):
            self._copies = False
            try:
                self._start()
                return
            except (SamplesNotSeparable, RuntimeError) as again:
                error = again
        self.fallback_reason = str(error).partition("\n")[0] or type(error).__name__
        self.has_hooks = isinstance(error, GradientsHooked)
        # What an earlier batch has shown need not be shown again, but for a random share.
        known = isinstance(error, KnownSlow)
        proves = not known or self.looks_around or self._memory.draw_proof()
        self.checks_company = self.n > 1 and proves
        self.outputs = self.run_plain(self.batch)

    def _forward(self) -> Any:
        """Run the model on this batch under the interceptor."""
        # Checkpoints run parts of the model again in the backward pass, where nothing intercepts.
        no_hooks = torch.autograd.graph.disable_saved_tensors_hooks("the model uses checkpoints")
        with self._a_pass(), no_hooks, self._interceptor:
            return call(self.model, self.batch.map(self._taken))

    @contextlib.contextmanager
    def _a_pass(self) -> Iterator[None]:
        """Every pass starts from the same buffers and random numbers; the first one draws them."""
        self._buffers.renew()
        if self._has_drawn:
            with self._random.replayed():
                yield
            return
        self._has_drawn = True
        try:
            yield
        finally:
            self.is_random = self._random.has_moved()

    def _taken(self, tensor: Tensor, per_sample: bool) -> Tensor:
        # Copies, for a model may write into what it is given.
        own = clone_rows(tensor)
        return self._interceptor.sampled(own) if per_sample else own

    def run_plain(
        self,
        batch: Batch,
        differentiable: Sequence[Tensor] = (),
        change: Callable[[Tensor], Tensor] | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """Return the model's outputs for some of the samples, without interception.

        differentiable: what stands for the floating inputs that have samples, in their order.
        change: what is made of each floating input that has samples. watch: runs with the model,
        and knows the inputs that have samples.
        """
        given = iter(differentiable)

        def take(tensor: Tensor, per_sample: bool) -> Tensor:
            if per_sample and tensor.is_floating_point() and differentiable:
                return next(given).clone()
            floating = tensor.is_floating_point() or tensor.is_complex()
            if per_sample and floating and change is not None:
                own = change(tensor.detach())
            else:
                own = clone_rows(tensor)
            return watch.mark(own) if watch is not None and per_sample else own

        with self._a_pass(), exact_batch_norm(), watch or contextlib.nullcontext():
            return call(self.model, batch.map(take))

    def losses(self, loss: Loss) -> Tensor:
        """(n,): the losses of the outputs; what a loss does with weights is seen as well."""
        outputs = self.outputs
        self._interceptor.program.rewind(self._ran)
        with contextlib.nullcontext() if self._plain else self._interceptor:
            if self.tape.options.dtype is not None:
                outputs = tree_map_only(Tensor, upcast_output, outputs)
            losses = loss(outputs)
        check_losses(losses, self.n, self.batch.first)
        return losses

    def squared_norms(self, loss: Loss, *, last: bool = False) -> dict[str, Tensor]:
        """name -> (n,) squared norms of each weight's per-sample gradient of `loss`."""
        return self.reduce_per_sample(SquaredNorms(), loss, last=last)

    def reduce_per_sample(
        self, reduction: Reduction, loss: Loss, *, last: bool = False
    ) -> dict[str, Tensor]:
        """name -> (n, ...): a reduction of each weight's per-sample gradient of `loss`.

        A weight that no gradient reaches has zeros. After the `last` pass the activations are
        gone: they make room while it runs, which saves memory, and time where memory is fresh.

        Raises:
            GradientNormError: no gradient reaches any of the weights.
        """
        rows: dict[str, Tensor] | None = {}
        if self.n > 0:
            rows = self.run_or_fall_back(lambda: self._reduce_with_retry(reduction, loss, last))
        if rows is None:
            rows = self._one_by_one(reduction, loss)
            self._tell_slow()
            if self._key is not None and self.repeats:  # not before: it may have been refused
                self.looks_around = self.looks_around or model_looks_around(self)
                self._keep(self._key, loss, {})
        if self.n > 0 and not rows and not self._reached and self._is_cut_off(loss):
            raise cut_off(self.weights)
        missing = (name for name in self.weights.parameters if name not in rows)
        return rows | {name: self._nothing(reduction, name) for name in missing}

    def _is_cut_off(self, loss: Loss) -> bool:
        """Whether no parameter is in the graph of the losses: zeros alone do not say so."""
        losses = loss(self.run_plain(self.batch))
        if not losses.requires_grad:
            return True
        parameters = list(self.weights.parameters.values())
        return all(g is None for g in pull_back([losses], [torch.ones_like(losses)], parameters))

    def _nothing(self, reduction: Reduction, name: str) -> Tensor:
        parameter = self.weights.parameters[name].detach()
        row = reduction.of_dense(name, torch.zeros_like(parameter)[None])
        return row.expand(self.n, *row.shape[1:])

    def _reduce_with_retry(self, reduction: Reduction, loss: Loss, last: bool) -> dict[str, Tensor]:
        try:
            return self._recorded(reduction, loss, last)
        except GradientNormError:
            if not self._placeholders:
                raise
        # Tokens are no numbers, for what looks at them unseen.
        self._start(fused=False)
        return self._recorded(reduction, loss, last)

    def _recorded(self, reduction: Reduction, loss: Loss, last: bool) -> dict[str, Tensor]:
        losses = self.losses(loss)
        self._key = program = self._program(loss)
        operators = self._operators()
        known = self._memory.recall(program) if self.repeats else None
        self.looks_around = known is not None and known.looks_around
        if known is not None and known.slow is not None:
            raise KnownSlow(known.slow)
        layouts: Mapping[int, Layout] | None = None
        if self.n == 1:
            layouts = {}
        elif known is not None:
            layouts = known.layouts
        elif self.repeats and self._memory.is_front(operators):
            layouts = defaultdict(Layout)
        if layouts is not None:
            prove = known is None or known.looks_around or self._memory.draw_proof()
            try:
                if known is None:
                    self.looks_around = model_looks_around(self)
                rows = self._heard(reduction, loss, losses, layouts, last, prove)
                if known is None and self.repeats:
                    self._keep(program, loss, layouts)
                return rows
            except (LayoutUnknown, ProofFailed):
                self._memory.forget(program, operators)
                if self.n == 1:
                    raise
                self._start()
                losses = self.losses(loss)
        probe = self._probed(losses)
        layouts = probe.layouts()
        self._scaled = probe.checksums(layouts)
        self.looks_around = model_looks_around(self)
        rows = self._heard(reduction, loss, losses, layouts, last, True)
        if self.repeats and probe.is_settled:
            steady = {i: at for i, at in layouts.items() if i not in probe.silent}
            self._keep(program, loss, steady)
            if all(layout == Layout() for layout in layouts.values()):
                self._memory.keep_front(operators)
        return rows

    def _keep(self, program: Any, loss: Loss, layouts: Mapping[int, Layout]) -> None:
        """Remember what was proven, and whether it must be proven for every batch."""
        self._look_at_losses(loss)
        self._memory.keep(program, Known(dict(layouts), self.fallback_reason, self.looks_around))

    def _look_at_losses(self, loss: Loss) -> None:
        """See whether samples may depend on others, and say once what that costs."""
        self.looks_around = self.looks_around or losses_look_around(self, loss)
        if self.looks_around and not opens(self.outputs):
            raise GradientNormError(
                "Expected a loss in which each sample's number depends on that sample's outputs "
                "alone but losses move when the samples of others do, and outputs of type "
                f"{type(self.outputs).__name__} cannot be taken apart to see how. Return a tensor, "
                "or a tuple or dict of tensors, from the model."
            )
        if self.looks_around and "around" not in self._memory.told:
            self._memory.told.add("around")
            warn_user(
                f"{type(self.model).__name__}: the numbers of a sample may depend on the other "
                "samples of its batch, in the model or in the loss (they moved, or could not be "
                "had, when others were replaced by NaN or by extreme values, or they meet a "
                "statistic of the batch: a mean, a maximum, a running sum over the samples). Every "
                "batch is proven, which takes several times as long; a batch that does mix samples "
                "is refused."
            )

    @property
    def repeats(self) -> bool:
        """Whether the next batch of the same program has its samples in the same places."""
        return self._interceptor.program.repeats and self.tape.routed_from is None

    def _operators(self) -> tuple[Any, ...]:
        """The operators that met weights, in order."""
        training = tuple(module.training for module in self.model.modules())
        return (
            training,
            self._switches,
            *self.weights.parameters,
            *(k.name for k in self.tape.kernels),
        )

    def _program(self, loss: Loss | None = None) -> tuple[Any, ...]:
        """The identity of what ran (`program`), and what decides on kernels beside it."""
        ran = self._interceptor.program.identity
        return (
            self._operators(),
            ran,
            self.batch.shapes,
            self._copies,
            self.options,
            identify(loss),
        )

    def _heard(
        self,
        reduction: Reduction,
        loss: Loss,
        losses: Tensor,
        layouts: Mapping[int, Layout],
        last: bool,
        prove: bool,
    ) -> dict[str, Tensor]:
        """The pass that counts; where it is to be proven, what the proof needs beside it."""
        ones = torch.ones_like(losses)
        if not prove:
            listener = ReducingListener(self.tape, self.n, layouts, reduction)
            self.backward(losses, ones, listener, last=last)
            self._reached = listener.reached
            return listener.finish()
        noting = ProvenReduction(reduction)
        parts = ReducingListener(self.tape, self.n, layouts, noting)
        once, scaled = (Checksums(self.n, layouts, self.tape.kernels) for _ in range(2))
        known, self._scaled = self._scaled, None
        enough = self.n == 1 or known is not None
        self.backward(losses, ones, BothListeners(once, parts), last=last and enough)
        rows = parts.finish()
        self._reached = parts.reached
        if self.n > 1:
            u = scales(self.n, losses, precision=self.options.dtype)
            if known is None:
                self.backward(losses, u, scaled, last=last)
                known = {index: sums for index, (sums, _) in scaled.sums.items()}
            known = {index: known[index] for index in known if index in once.sums}
            check_separation(self, once, known, u)
        try:
            check_gradients(self, loss, noting.products, rows, reduction, losses.detach())
        except ProofFailed:
            single = any(p.dtype == torch.float32 for p in self.weights.parameters.values())
            if not (single and self.precision == torch.float32 and self._holds_in_double(loss)):
                raise
        return rows

    def _holds_in_double(self, loss: Loss) -> bool:
        """Whether the same program proves right in float64.

        Where float32 rounds an activation to the other side of a kink, two right ways differ by
        more than rounding errors.
        """
        try:
            model = copy.deepcopy(self.model).double()
            names = set(self.weights.parameters)
            own = {name: p for name, p in model.named_parameters() if name in names}
            record = Recording(model, self.batch.double(), Weights(own), self.options)
            return (
                record.run_or_fall_back(lambda: record._recorded(SquaredNorms(), loss, True))
                is not None
            )
        except GradientNormError:
            raise
        except Exception:  # a model, or a loss, for float32 alone
            return False

    def backward(
        self, losses: Tensor, share: Tensor, listener: Listener, *, last: bool = False
    ) -> None:
        """One backward pass through all uses of weights.

        Raises:
            SamplesNotSeparable: some gradient reached a parameter past every kernel.
        """
        if not losses.requires_grad:
            return
        self.tape.listener = listener
        anchors = self.tape.anchors
        try:
            reached = torch.autograd.grad(
                (losses * share).sum(),  # one number: for more, torch imports half a second of code
                [*anchors, *self.weights.parameters.values(), *self._placeholders],
                retain_graph=not last,
                allow_unused=True,
            )
        finally:
            self.tape.listener = None
        names = [*self.weights.parameters, *("a convolution's output" for _ in self._placeholders)]
        escaped = [
            name for name, g in zip(names, reached[len(anchors) :], strict=True) if g is not None
        ]
        if escaped:
            raise SamplesNotSeparable(f"`{escaped[0]}` is used where no operator can be seen")

    def _probed(self, losses: Tensor) -> LayoutProbe:
        """Backward passes from some of the losses: two, and more where two do not settle it."""
        everyone = torch.ones(self.n, dtype=torch.bool)
        u = scales(self.n, losses, precision=self.options.dtype)
        probe = LayoutProbe(everyone, self.tape.kernels, u=u)
        if self.repeats:
            self._probe(probe, losses, halves(self.n))
        if not (self.repeats and probe.is_settled):
            probe.by_codes = True
            self._probe(probe, losses, codes(self.n))
        return probe

    def _probe(self, probe: LayoutProbe, losses: Tensor, masks: Iterator[Tensor]) -> None:
        for kept in masks:
            probe.kept = kept.to(losses.device)
            weight = probe.kept.to(losses) if probe.u is None else probe.kept * probe.u
            self.backward(losses, weight, probe)

    def layouts(self, losses: Tensor) -> dict[int, Layout]:
        """use -> where its samples are, read off backward passes from some of the losses.

        Raises:
            SamplesNotSeparable: they cannot be told apart.
        """
        return {} if self.n == 1 else self._probed(losses).layouts()

    def _tell_slow(self) -> None:
        """Warn, once per model, that samples go one by one."""
        if self.fallback_reason is None or "slow" in self._memory.told:
            return
        self._memory.told.add("slow")
        warn_user(
            f"{type(self.model).__name__}: per-sample gradients are found one sample at a time, "
            f"exactly and slowly, because {self.fallback_reason.rstrip('.')}. "
            "`explain(model, inputs)` shows every use of a parameter."
        )

    def _one_by_one(self, reduction: Reduction, loss: Loss) -> dict[str, Tensor]:
        """One backward pass per sample: always right, and slow."""
        parameters = self.weights.parameters
        rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
        reached: set[str] = set()
        for gradients in sample_by_sample(self, loss, range(self.n)):
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if gradient is not None:
                    reached.add(name)
                dense = torch.zeros_like(parameter) if gradient is None else gradient
                dense = dense.to_dense() if dense.is_sparse else dense
                rows[name].append(reduction.of_dense(name, dense.detach()[None]))
        return {name: torch.cat(rows[name]) for name in parameters if name in reached}


def cut_off(weights: Weights) -> GradientNormError:
    """The error for a loss that depends on none of the parameters."""
    names = list(weights.parameters)
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return GradientNormError(
        f"Expected a loss that depends on the parameters asked for ({shown}) but no gradient "
        "reaches any of them: the model is cut off from autograd (`torch.no_grad`, `.detach()`, "
        "`.numpy()` or an integer output inside), or the loss does not look at what they make."
    )


def upcast_output(tensor: Tensor) -> Tensor:
    """Upcast half-precision outputs to float32 before the loss."""
    return tensor.float() if tensor.is_floating_point() else tensor
