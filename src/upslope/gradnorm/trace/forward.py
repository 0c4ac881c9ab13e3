"""One forward pass under the interceptor, and the backward passes that start from it.

`recording` makes one for each attempt at a microbatch. Several losses can be asked of it, and each
may go backward several times: from all losses, from parts of them, or scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.utils._pytree import tree_map_only

from upslope.gradnorm.core.half_precision import upcast
from upslope.gradnorm.core.heap import drop_free_pages, give_pages_back
from upslope.gradnorm.core.layouts.layout import Layout, SamplesNotSeparable
from upslope.gradnorm.core.layouts.layout_probe import LayoutProbe, LayoutUnknown, codes, halves
from upslope.gradnorm.core.layouts.separation import scales
from upslope.gradnorm.core.model_io import (
    Loss,
    call,
    check_losses,
    clone_rows,
    copy_objects,
    refuse_outputs_without_rows,
    tensors_in,
)
from upslope.gradnorm.core.program.program import switches_of
from upslope.gradnorm.core.program.steering import Steering
from upslope.gradnorm.core.state.restoring import without_traces
from upslope.gradnorm.core.uses.tape import ComputeOptions, FusionMismatch, Listener, Tape
from upslope.gradnorm.losses import identify
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.trace.conv_bn_fusion import (
    ConvBatchNormFusion,
    Pairs,
    correct_pairs,
    pairs_of,
)
from upslope.gradnorm.trace.intercept import Interceptor
from upslope.gradnorm.trace.meetings import Meetings
from upslope.gradnorm.trace.same_activations import MeetingsBothWays


class Forward:
    """A forward pass with its tape.

    run: the model and its batch. fuses: whether convolutions and the batch normalisation behind
    them may be one kernel. copies: whether weights may be held to be copied to every sample.
    reads_constants: whether constants that move entries within samples may be any (`program`).
    meetings: what runs where weights meet samples. is_seldom: whether what the pass has freed goes
    back to the system at once, for no other such pass follows.
    """

    tape: Tape

    def __init__(
        self,
        run: BatchRun,
        *,
        fuses: bool,
        copies: bool,
        reads_constants: bool = False,
        meetings: type[Meetings] = Meetings,
        is_seldom: bool = False,
    ):
        self._run, self._fuses, self._copies, self._meetings = run, fuses, copies, meetings
        self.reads_constants = reads_constants
        self.placeholders: list[Tensor] = []
        """What the model holds in place of convolutions that are normalised already."""
        self._switches = switches_of(run.inventory)
        self._is_recorded, self._is_seldom = False, is_seldom

    def record(self) -> None:
        """Run the model, unless it has been run.

        Raises:
            SamplesNotSeparable: the engine cannot follow the samples through some operator.
        """
        if self._is_recorded:
            return
        run = self._run
        model_and_weights = run.inventory, run.weights
        fuses = self._fuses and run.n > 0  # no samples leave no numbers to normalise
        pairs = pairs_of(*model_and_weights, self._learn_pairs) if fuses else {}
        for last in range(len(pairs) + 2, -1, -1):  # until what is fused is right, or nothing is
            self.tape = Tape(run.weights, run.options)
            if not self._copies:
                self.tape.expansions = None
            fusion = ConvBatchNormFusion(pairs)
            self.tape.fusion, self.placeholders = fusion, fusion.placeholders
            self._interceptor = Interceptor(
                self.tape, run.inventory, run.n, self._copies, self._meetings
            )
            self._interceptor.program.indices.reads_constants = self.reads_constants
            run.types = self.tape.types
            try:
                run.outputs = self._call()
                refuse_outputs_without_rows(run.outputs)
                fusion.check(tensors_in(run.outputs))
                self._interceptor.program.close()
                self._interceptor.routes.add_numbers(self.steering.untold)
                self._end = self._interceptor.program.point
                self._interceptor.routes.is_closed = True
                self._is_recorded = True
                if self._is_seldom:
                    drop_free_pages()  # where the outputs of every operator have been, once more
                return
            except FusionMismatch as mismatch:
                # The model has other pairs by now, or uses a convolution in another way. Each time
                # at least one pair goes; the last attempt has none.
                wrong = mismatch.place
                pairs = (
                    correct_pairs(*model_and_weights, wrong, self._learn_pairs) if last > 1 else {}
                )

    def _learn_pairs(self) -> Pairs:
        """Run two samples with nothing fused, and see which normalisation follows which kernel."""
        run = self._run
        tape = Tape(run.weights, ComputeOptions())
        tape.fusion = fusion = ConvBatchNormFusion(None)
        interceptor = Interceptor(tape, run.inventory, 2)

        def take(tensor: Tensor, per_sample: bool) -> Tensor:
            own_tensor = clone_rows(tensor)
            return interceptor.as_sample(own_tensor) if per_sample else own_tensor

        try:
            # Two samples, not one: some models squeeze a single one.
            with without_traces(run.model), torch.enable_grad(), interceptor:
                call(run.model, run.batch.rows(slice(0, 2)).map(take))
        except Exception:  # what a model does not like will be told in the pass that counts
            return {}
        return fusion.seen

    def _call(self) -> Any:
        run = self._run
        # Checkpoints run parts of the model again in the backward pass, where nothing intercepts.
        no_hooks = torch.autograd.graph.disable_saved_tensors_hooks("the model uses checkpoints")
        inputs = run.batch.map(self._take)  # before anything intercepts: it is no part of the pass
        with run.forward_pass(run.batch), no_hooks, self._interceptor:
            return call(run.model, inputs)

    def _take(self, tensor: Tensor, per_sample: bool) -> Tensor:
        own_tensor = clone_rows(tensor)  # for a model may write into what it is given
        return self._interceptor.as_sample(own_tensor) if per_sample else own_tensor

    def by_both_ways(self) -> Forward:
        """Return a pass of the same batch in which kernels tell no more than numbers."""
        return Forward(
            self._run, fuses=self._fuses, copies=False, meetings=MeetingsBothWays, is_seldom=True
        )

    @property
    def has_copies(self) -> bool:
        """Whether weights were held to be copied to every sample (`batch_expansion`).

        Or expanded once for operators each of which may have worked on a sample of its own.
        """
        return self._interceptor.copied or self.tape.has_shared_expansion

    @property
    def repeats(self) -> bool:
        """Whether the next batch of the same program has its samples in the same places.

        But for rows that are routed, of which each batch tells the samples (`is_routed`).
        """
        return self._interceptor.program.repeats and self.tape.routed_from is None

    @property
    def is_routed(self) -> bool:
        """Whether rows were sent to some weights by the data, and are read off (`routing`)."""
        return self._interceptor.routes.are_read

    @property
    def is_placed_by_data(self) -> bool:
        """Whether samples are where the numbers of indices of this batch have sent them."""
        return self._interceptor.program.indices.is_placed_by_data

    @property
    def follows_data(self) -> bool:
        """Whether the data have sent entries anywhere, told by their indices in either way."""
        return self.is_routed or self.is_placed_by_data

    def note_own_decisions(self, layouts: Mapping[int, Layout]) -> None:
        """Note what a router would decide for each sample alone, where that steers the model.

        layouts: as of `layouts_with_routes`.
        """
        for note, own_numbers in self._interceptor.routes.own_decisions(layouts):
            self.steering.add_own_numbers(note, own_numbers)

    def layouts_with_routes(self, layouts: Mapping[int, Layout]) -> Mapping[int, Layout]:
        """Return use -> layout of all uses of this batch, routed ones among them.

        layouts: of what has its samples in the same places in each batch of the program.

        Raises:
            LayoutUnknown: the samples of the routed rows are not told by them.
        """
        if not self.is_routed or self._run.n == 1:
            return layouts
        every = self._interceptor.routes.layouts(layouts)
        if every is None:
            raise LayoutUnknown("the samples of routed rows are not known")
        return every

    @property
    def steering(self) -> Steering:
        """The numbers of samples that left for Python, and may have steered the model."""
        return self._interceptor.program.steering

    def operators(self) -> tuple[Any, ...]:
        """Return the operators that met weights, in order, with what decides on them."""
        run = self._run
        names = [kernel.name for kernel in self.tape.kernels]
        return (run.inventory.training, self._switches, *run.weights.parameters, *names)

    def program(self, loss: Loss, operators: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the identity of what ran (`program`), and what decides on kernels beside it.

        operators: what `operators` returned once the losses were there.
        """
        return self._identity(loss, operators, self._interceptor.program.identity)

    def program_of_shapes(self, loss: Loss, operators: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the identity of what ran but for the numbers of constant indices.

        Arguments as of `program`.
        """
        return self._identity(loss, operators, self._interceptor.program.identity_of_shapes)

    def _identity(self, loss: Loss, operators: tuple[Any, ...], ran: int) -> tuple[Any, ...]:
        shapes, options = self._run.batch.shapes, self._run.options
        modes = self._copies, self.reads_constants
        return (operators, ran, shapes, modes, options, identify(loss))

    def losses(self, loss: Loss) -> Tensor:
        """Return the losses of the outputs, (n,); what a loss does with weights is seen as well.

        Raises:
            GradientNormError: they are not n finite numbers.
        """
        run = self._run
        outputs = run.outputs
        # Several losses may follow one forward pass, each with a program of its own.
        self._interceptor.program.rewind(self._end)
        with self._interceptor, run.loss_pass():
            # A loss in half precision would round away what tells samples apart.
            if run.options.dtype is not None:
                outputs = tree_map_only(Tensor, upcast, outputs)
            losses = loss(copy_objects(outputs))
        self._interceptor.program.close()
        # Where halves of the losses do not tell who is where, they do not tell it of routed rows.
        if self.is_routed and self.is_placed_by_data:
            self._interceptor.routes.lose()
            self._interceptor.program.note_indices_read()
        check_losses(losses, run.n, run.batch.first)
        return losses

    def backward(
        self,
        losses: Tensor,
        share: Tensor,
        listener: Listener,
        *,
        last: bool = False,
        places: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Run one backward pass through all uses of weights.

        losses: (n,). share: (n,), what each is multiplied by. listener: is told of every use.
        last: whether no other pass follows, so that activations can go. places: number -> tensors
        whose gradients the listener is told of as well.

        Raises:
            SamplesNotSeparable: some gradient reached a parameter past every kernel.
        """
        if not losses.requires_grad:
            return
        self.tape.listener, self.tape.is_last = listener, last
        anchors, parameters = self.tape.anchors, self._run.weights.parameters
        places = places or {}
        try:
            # What `torch.autograd.grad` comes to. It would ask each parameter whether it is a
            # tensor, and import half a second of code for more losses than one.
            parameter_gradients = _engine_run_backward(
                (losses,),
                (share.to(losses.dtype, copy=True),),  # a custom function may write into it
                not last,
                False,  # no graph of the gradients
                (*anchors, *parameters.values(), *self.placeholders, *places.values()),
                allow_unreachable=True,
                accumulate_grad=False,
            )
        finally:
            self.tape.listener = None
            if last:  # their graph holds the tape, which would wait for the garbage collector
                self.tape.expansions = None
        names = [*parameters, *("a convolution's output" for _ in self.placeholders)]
        of_places = parameter_gradients[len(parameter_gradients) - len(places) :]
        for number, gradient in zip(places, of_places, strict=True):
            if gradient is not None:
                listener.on_gradient(number, gradient, ())
        for name, gradient in zip(names, parameter_gradients[len(anchors) :], strict=False):
            if gradient is not None:
                raise SamplesNotSeparable(f"`{name}` is used where no operator can be seen")

    def probe(self, losses: Tensor) -> LayoutProbe:
        """Return what backward passes from some of the losses show of the places of the samples.

        losses: (n,). Two passes, and more where two do not settle it.
        """
        n = self._run.n
        routes = self._interceptor.routes
        if routes.are_read and self.repeats:
            probe = self._new_probe(losses)
            probe.unheard = routes.uses
            self._probe(probe, losses, halves(n), routes.places_with_gradient())
            routes.probe_from_places(probe, self.backward)
            keys = routes.keys_needed
            # What a loop would be for a sample alone need not be known.
            doubtful = {i for i in probe.heard if i < 0 and len(probe.fitting[i]) != 1}
            probe.heard -= doubtful - keys
            is_told = probe.is_settled and probe.silent.isdisjoint(keys)
            if is_told and routes.layouts(probe.layouts()) is not None:
                return probe
        if routes.are_read:
            routes.lose()
            self.tape.route()
        probe = self._new_probe(losses)
        by_halves = self.repeats and not self.is_placed_by_data
        if by_halves:
            self._probe(probe, losses, halves(n))
        if not (by_halves and probe.is_settled):
            probe.by_codes = True
            self._probe(probe, losses, codes(n))
        return probe

    def _new_probe(self, losses: Tensor) -> LayoutProbe:
        n = self._run.n
        u = scales(n, losses, precision=self._run.options.dtype)
        return LayoutProbe(torch.ones(n, dtype=torch.bool), self.tape.kernels, u=u)

    def _probe(
        self,
        probe: LayoutProbe,
        losses: Tensor,
        masks: Iterator[Tensor],
        places: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Run a backward pass for each mask. places: as of `backward`."""
        # The probe looks at each gradient in several ways, and notes a little of each pass, behind
        # which the heap would keep all that it has freed. To give it back would take long in every
        # batch, as where entries move by the data.
        is_seldom = self.repeats and not self.is_placed_by_data
        with give_pages_back() if is_seldom else nullcontext():
            if is_seldom:
                drop_free_pages()  # of the forward pass
            for mask in masks:
                probe.kept = mask.to(losses.device)
                weight = probe.kept.to(losses) if probe.u is None else probe.kept * probe.u
                self.backward(losses, weight, probe, places=places)
                if is_seldom:
                    drop_free_pages()
