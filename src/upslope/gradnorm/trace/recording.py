"""A microbatch on its way through the engine: attempts, from fast to slow, until one is exact.

Made once per microbatch by `microbatches` and by the functions that ask for several losses of one
forward pass (`egl`, `hutchinson`, `explain`). `ladder` says what an attempt may use, `forward` runs
it, `reducing` makes its numbers and has them proven. What the first batch of a program (`program`)
shows about the places of its samples (`layout`) is remembered for the next, once it is proven.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.layout import Layout, SamplesNotSeparable
from upslope.gradnorm.core.layouts.layout_probe import FrontGuess, LayoutProbe, LayoutUnknown
from upslope.gradnorm.core.model_io import (
    Batch,
    Loss,
    opens,
    refuse_outputs_without_rows,
)
from upslope.gradnorm.core.state.model_state import ModelState
from upslope.gradnorm.core.uses.reductions import (
    Reduction,
    SquaredNorms,
    TotalSquaredNorms,
)
from upslope.gradnorm.core.uses.tape import ComputeOptions
from upslope.gradnorm.core.weights.weights import Weights, has_custom_function
from upslope.gradnorm.proofs.backward import pull_back
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.company import Ways, check_steered, refuse_steered_losses
from upslope.gradnorm.proofs.comparison import are_near_in_half
from upslope.gradnorm.proofs.independence import losses_may_mix_samples, model_may_mix_samples
from upslope.gradnorm.proofs.per_sample_loop import reduce_one_by_one
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.ladder import FALLS, KnownSlow, Ladder
from upslope.gradnorm.trace.memory import (
    ProvenProgram,
    closed_outputs,
    cut_off,
    memory_of,
    warn_of_looking_around,
    warn_of_slowness,
)
from upslope.gradnorm.trace.reducing import (
    ReducedGradients,
    bring_into_range,
    prove_scaled,
    reduce_proven,
    reduce_scaled,
    reduce_separated,
    reduce_unproven,
)

T = TypeVar("T")


class Recording:
    """A model on one microbatch: its outputs, and reductions of its per-sample gradients.

    model: the network. batch: the samples. weights: what is differentiated by. options: how to
    compute. state: what every pass of the model starts from.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        weights: Weights,
        options: ComputeOptions,
        state: ModelState,
    ):
        self.run = BatchRun(model, batch, weights, options, state)
        self.n, self.weights = batch.n, weights
        self._memory = memory_of(model)
        self._shapes = (batch.shapes, *weights.parameters)
        self._ladder = Ladder(copies=self._memory.has_copies(self._shapes))
        self._program: Any = None
        """The program of the last losses, once they are known."""
        self._used_memory = False
        """Whether the attempt under way has its layouts from an earlier batch."""
        self._is_reference = False
        """Whether it is the reference in another type of a recording that did not prove right."""
        self._guess: FrontGuess | None = None
        """The layouts of the attempt under way, where they are those of batches of other shapes."""
        self.forward = self._forward()
        """The attempt under way, or the last one."""
        self.run_or_fall_back(lambda: None)  # for its outputs, which some callers read first

    @property
    def outputs(self) -> Any:
        """What the model put out, with its graph."""
        return self.run.outputs

    @property
    def fallback_reason(self) -> str | None:
        """Why the samples go one by one, if they do."""
        return self._ladder.fallback_reason

    def run_or_fall_back(self, passes: Callable[[], T]) -> T | None:
        """Return what passes over the tape find; None where the samples must go one by one.

        passes: called again on each rung of the ladder, after the forward pass of that rung.
        """
        while self._ladder.fallback_reason is None:
            try:
                self.forward.record()
                return passes()
            except FALLS as error:
                # The one place where the engine catches: `ladder` decides what is tried next.
                self._step_down(error)
        return None

    def _forward(self) -> Forward:
        ladder, reads_constants = self._ladder, self._memory.reads_constants
        return Forward(
            self.run, fuses=ladder.fuses, copies=ladder.copies, reads_constants=reads_constants
        )

    def _step_down(self, error: Exception) -> None:
        ladder, remembers = self._ladder, self._ladder.remembers
        ladder.step_down(
            error,
            used_memory=self._used_memory,
            is_guess=self._guess is not None,
            has_placeholders=bool(self.forward.placeholders),
            has_copies=self.forward.has_copies,
        )
        self._used_memory, self._guess = False, None
        if remembers and not ladder.remembers:
            is_wrong = not isinstance(error, LayoutUnknown)
            self._memory.forget(self._program, self.forward.operators(), is_wrong=is_wrong)
        if ladder.fallback_reason is None:
            self.forward = self._forward()
            return
        self._memory.reads_constants = False  # in the other way, the next batch may be fast
        self.run.has_hooks = ladder.has_hooks
        # What an earlier batch has shown need not be shown again, but for a random share.
        proves = not ladder.is_known or self.run.may_mix_samples or self._memory.draw_proof()
        proves = proves or bool(self.forward.steering.numbers)
        self.run.checks_company = self.n > 1 and proves
        self.run.outputs = self.run.run_plain(self.run.batch)
        refuse_outputs_without_rows(self.run.outputs)

    def squared_norms(self, loss: Loss, *, last: bool = False) -> dict[str, Tensor]:
        """Return name -> (n,) squared norms of each weight's per-sample gradient of `loss`.

        last: as in `reduce_per_sample`.
        """
        return self.reduce_per_sample(SquaredNorms(), loss, last=last)

    def reduce_per_sample(
        self, reduction: Reduction, loss: Loss, *, last: bool = False
    ) -> dict[str, Tensor]:
        """Return name -> (n, ...): a reduction of each weight's per-sample gradient of `loss`.

        A weight that no gradient reaches has zeros. After the `last` pass the activations are
        gone: they make room while it runs, which saves memory, and time where memory is fresh.

        Raises:
            GradientNormError: no gradient reaches any of the weights.
        """
        rows: dict[str, Tensor] = {}
        if self.n > 0:
            self._ladder.remembers = True  # another loss: other layouts are remembered of it
            results = self.run_or_fall_back(lambda: self._reduce(reduction, loss, last))
            if results is None:
                refuse_steered_losses(self.run, loss, self.forward.steering)
                results = ReducedGradients(reduce_one_by_one(self.run, reduction, loss), False)
                warn_of_slowness(self.run.model, self._memory, self.fallback_reason)
                if self._program is not None and self._is_worth_keeping():  # and not refused
                    run = self.run
                    run.may_mix_samples = run.may_mix_samples or model_may_mix_samples(run)
                    self._keep(self._program, loss, {})
            if not results.rows and not results.has_reached and self._is_cut_off(loss):
                raise cut_off(list(self.weights.parameters))
            rows = results.rows
        if isinstance(reduction, TotalSquaredNorms) and rows:
            return reduction.total(rows)
        missing = (name for name in self.weights.parameters if name not in rows)
        rows = rows | {name: self._zeros(reduction, name) for name in missing}
        return reduction.total(rows) if isinstance(reduction, TotalSquaredNorms) else rows

    def _is_cut_off(self, loss: Loss) -> bool:
        """Whether no parameter is in the graph of the losses: zeros alone do not say so."""
        losses = loss(self.run.run_plain(self.run.batch))
        if not losses.requires_grad:
            return True
        parameters = list(self.weights.parameters.values())
        return all(g is None for g in pull_back([losses], [torch.ones_like(losses)], parameters))

    def _zeros(self, reduction: Reduction, name: str) -> Tensor:
        parameter = self.weights.parameters[name].detach()
        row = reduction.of_dense(name, torch.zeros_like(parameter)[None])
        return row.expand(self.n, *row.shape[1:])

    def _reduce(self, reduction: Reduction, loss: Loss, last: bool) -> ReducedGradients:
        """Reduce the gradients by kernels, with layouts from memory or from this batch."""
        run, forward = self.run, self.forward
        self._used_memory, self._guess = False, None  # of the loss before, if there was one
        run.groups_apart.clear()
        losses = forward.losses(loss)
        operators = forward.operators()
        record = self._recall(loss, operators)
        places = self._known_layouts(record, operators)
        self._used_memory = places is not None and self.n > 1
        probe: LayoutProbe | None = None
        if places is None:
            probe = forward.probe(losses)
            places = probe.layouts()
        # Of routed rows no pass of the probe has told anything.
        scaled_sums = None if probe is None or forward.is_routed else probe.checksums(places)
        layouts = forward.layouts_with_routes(places)
        forward.note_own_decisions(places)
        if self._memory.is_to_be_proven(record, follows_data=forward.follows_data):
            results = reduce_proven(
                run, forward, reduction, loss, losses, layouts, scaled_sums,
                last=last, looks_around=record is None, other_types=self, ways=self._ways(losses),
                guess=self._guess,
            )  # fmt: skip
        else:
            # Asked of each batch: whether there is one, no operator need show.
            is_told = self.n == 1 or not has_custom_function(losses)
            reduce = reduce_unproven if is_told else reduce_separated
            results = reduce(run, forward, reduction, losses, layouts, last=last)
        again = functools.partial(self._reduce_scaled, reduction, loss, losses, layouts, last)
        results = bring_into_range(run, loss, reduction, results, again)
        if forward.reads_constants and not forward.repeats:
            self._memory.reads_constants = False  # what moves by them cannot be read
        ways = self._check_steered(loss, record)
        if record is None and self._is_settled(probe) and self._is_worth_keeping():
            silent = set() if probe is None else probe.silent
            self._keep(self._program, loss, {i: places[i] for i in places if i not in silent}, ways)
            is_in_front = all(layout == Layout() for layout in layouts.values())
            if probe is not None and not forward.follows_data and is_in_front:
                self._memory.keep_front(operators)
        return results

    def _reduce_scaled(
        self,
        reduction: Reduction,
        loss: Loss,
        losses: Tensor,
        layouts: Mapping[int, Layout],
        last: bool,
        factors: Tensor,
    ) -> ReducedGradients:
        """Reduce the gradients of losses times factors, (n,); the others are as of `_reduce`.

        Raises:
            SamplesNotSeparable: a custom function is on the way, which may not be linear.
        """
        if has_custom_function(losses):
            self._program = None  # in other batches there may be nothing to scale
            raise SamplesNotSeparable(
                "gradients are too small or too large for squares in float32, and a custom "
                "function may clip or round them once they are scaled"
            )
        forward = self._forward() if last else self.forward  # a last pass keeps no activations
        reduce = functools.partial(reduce_scaled, self.run, forward, reduction, loss)
        try:
            return reduce(layouts, factors)
        except LayoutUnknown:  # some gradient was zero before it was scaled
            of_losses = factors.to(losses)
            layouts = prove_scaled(self.run, forward, reduction, loss, of_losses, self, self._ways)
            return reduce(layouts, factors)

    @property
    def _may_remember(self) -> bool:
        """Whether an earlier batch may tell what this one is like."""
        return self.forward.repeats and self._ladder.remembers

    def _recall(self, loss: Loss, operators: tuple[Any, ...]) -> ProvenProgram | None:
        """Return what is remembered of the program of a loss. operators: as of `Forward`.

        Raises:
            KnownSlow: its samples went one by one.
        """
        run, forward = self.run, self.forward
        self._program = program = forward.program(loss, operators)
        record = self._memory.recall(program) if self._may_remember else None
        run.may_mix_samples = record is not None and record.may_mix_samples
        # It would fail again where it failed before, after all the work up to there.
        if record is not None and record.slow is not None:
            raise KnownSlow(record.slow)
        if record is None and not forward.reads_constants:
            self._memory.compare_indices(forward.program_of_shapes(loss, operators), program)
        return record

    def _known_layouts(
        self, record: ProvenProgram | None, operators: tuple[Any, ...]
    ) -> Mapping[int, Layout] | None:
        """Return the layouts that need no probe, or None. Arguments are those of `_recall`."""
        if record is not None:
            return record.layouts
        if self.n == 1:
            return {}
        # These operators had all samples in front for batches of other shapes: likely here too,
        # and the proof tells.
        if (
            self._may_remember
            and not self.forward.follows_data
            and self._memory.is_front(operators)
        ):
            self._guess = FrontGuess(self.n, self.forward.tape.kernels)
            return self._guess.layouts  # none yet: it hears each gradient first
        return None

    def _is_settled(self, probe: LayoutProbe | None) -> bool:
        """Whether all has been seen of the layouts of a batch, by a probe, a guess, or neither."""
        shown_by = self._guess or probe
        return shown_by is None or shown_by.is_settled

    def _ways(self, losses: Tensor) -> Sequence[Hashable]:
        """Return what is equal for samples that may go alone together, where they are proven."""
        ways = self.forward.steering.ways_apart()
        # What neither operators nor numbers tell of may be another thing for each.
        return range(self.n) if ways is None or has_custom_function(losses) else ways

    def _check_steered(self, loss: Loss, record: ProvenProgram | None) -> Ways:
        """Hold samples that others' numbers may have steered to what they are without those.

        record: of the program, if it is known. Returns the ways that were tried so far.
        """
        run, steering = self.run, self.forward.steering
        ways: Ways = set() if record is None else record.ways
        if run.n < 2 or not steering.numbers:
            return ways
        settled_ways = ways if self._memory.are_ways_settled(record) else ()
        ways |= check_steered(run, loss, steering, settled_ways)
        return ways

    def _is_worth_keeping(self) -> bool:
        """Whether a batch of the same program may come; asked once, when all else is proven."""
        is_like_others = self.forward.repeats and not self.forward.is_placed_by_data
        return is_like_others or (self.forward.repeats and self._memory.has_met(self._program))

    def _keep(
        self, program: Any, loss: Loss, layouts: Mapping[int, Layout], ways: Ways | None = None
    ) -> None:
        """Remember what was proven, and whether it must be proven for every batch."""
        run = self.run
        run.may_mix_samples = run.may_mix_samples or losses_may_mix_samples(run, loss)
        if run.may_mix_samples:
            if not opens(run.outputs):
                if self.forward.is_placed_by_data:
                    return  # the next one is proven as this one was, whatever its indices
                raise closed_outputs(run.outputs)
            warn_of_looking_around(run.model, self._memory)
        program_record = ProvenProgram(
            dict(layouts), self.fallback_reason, run.may_mix_samples, ways or set()
        )
        self._memory.keep(program, program_record)
        # The next batch need not fail first. Whoever is slow may yet be fast with copies.
        if not self._ladder.copies and self.fallback_reason is None:
            self._memory.keep_without_copies(self._shapes)

    def holds_in_double(self, loss: Loss) -> bool:
        """Whether the same program proves right in float64; see `OtherTypes`."""
        return self._reduce_in(torch.float64, SquaredNorms(), loss) is not None

    def agrees_in_single(
        self, reduction: Reduction, loss: Loss, rows: Mapping[str, Tensor]
    ) -> bool:
        """Whether float32 proves right, and has nearly the same to tell; see `OtherTypes`."""
        if self._is_reference:
            return False  # a model that sees to half precision itself, whatever its type
        if isinstance(reduction, TotalSquaredNorms):
            reduction = SquaredNorms()  # of each parameter by itself
        reference = self._reduce_in(torch.float32, reduction, loss)
        return reference is not None and are_near_in_half(rows, reference.rows)

    def _reduce_in(
        self, dtype: torch.dtype, reduction: Reduction, loss: Loss
    ) -> ReducedGradients | None:
        """Return what kernels find in another floating type, with products in it; None if wrong."""
        run = self.run
        try:
            model = copy.deepcopy(run.model).to(dtype)
            names = set(run.weights.parameters)
            parameters = {name: p for name, p in model.named_parameters() if name in names}
            options = run.options._replace(dtype=None)
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                record = Recording(
                    model, run.batch.to(dtype), Weights(parameters), options, ModelState(model)
                )
                record._is_reference = True
                return record.run_or_fall_back(lambda: record._reduce(reduction, loss, True))
        except GradientNormError:
            raise  # a refusal in another type is one in this
        except Exception:  # a model, or a loss, for one type alone: then nothing excuses the proof
            return None
