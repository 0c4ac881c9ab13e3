"""Reduces the gradient of each parameter as soon as it is complete, while a backward pass runs.

Made by `trace/reducing` for each pass that counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.sums_of_squares import SumOfSquares
from upslope.gradnorm.core.layouts.layout import Layout, Samples
from upslope.gradnorm.core.layouts.layout_probe import LayoutUnknown
from upslope.gradnorm.core.uses.dense_sums import Uses, dense_sums, group_parameters
from upslope.gradnorm.core.uses.joint_uses import JointUses, Use
from upslope.gradnorm.core.uses.pending_uses import PendingUses
from upslope.gradnorm.core.uses.reductions import Reduction, TotalSquaredNorms
from upslope.gradnorm.core.uses.tape import Kernel, Tape


class ReducingListener:
    """Reduces the gradient of each parameter as soon as it is complete.

    A parameter with a single use is reduced at once, so that its activations can go.

    has_total: whether squares are added up over all parameters beside what the reduction makes of
    each; without being asked where the reduction is `TotalSquaredNorms`, and nothing else then.
    in_double: whether float32 may not hold squares of what single uses have as their inputs.
    """

    def __init__(
        self,
        tape: Tape,
        n: int,
        layouts: Mapping[int, Layout],
        reduction: Reduction,
        has_total: bool = False,
        *,
        in_double: bool = False,
    ):
        self.tape, self.n, self.layouts, self.reduction = tape, n, layouts, reduction
        self._weights, self._uses_of = tape.weights, tape.uses_of
        self._scratch = tape.options.scratch
        self._usual, self._in_double = Samples(n), in_double
        self._results: dict[str, Tensor] = {}
        self._is_by_name = not isinstance(reduction, TotalSquaredNorms)
        self._total = SumOfSquares() if has_total or not self._is_by_name else None
        self._pending = PendingUses(self._weights, self._uses_of, self._scratch)
        self._joint_uses = JointUses()
        self._has_loops = max(self._uses_of.values(), default=1) > 1
        self.reached = False
        """Whether the backward pass came to some use of a weight, be it with zeros."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Take in the gradient that reached one use; see `Listener`."""
        self.reached = True
        kernel = self.tape.kernels[index]
        samples = self._samples(kernel, index, g)
        if samples is None:
            return
        use = Use(kernel, g, inputs)
        if self._has_loops and samples is self._usual:
            count = self._count_uses(kernel.weights[0])
            if count > 1 and kernel.joint_key is not None:
                joint_use = self._joint_uses.keep(use, count)
                if joint_use is None:
                    return
                use = joint_use
        self._take(use, samples)

    def _count_uses(self, weight: Tensor) -> int:
        """Return how many uses there are of the first parameter that a weight is made of."""
        names = self._weights.sources(weight)
        return self._uses_of[names[0]] if names else 1

    def _take(self, use: Use, samples: Samples) -> None:
        """Take in the per-sample gradients of the weights of a use, or of several that are one."""
        weights, uses_of, total = self._weights, self._uses_of, self._total
        parameters, waits = weights.parameters, False
        for weight, part in use.kernel.weight_gradients(use.g, *use.inputs, samples=samples):
            names = weights.sources(weight)
            # Reduced at once, its operands can go before the next layer is reached.
            if (
                len(names) == 1
                and uses_of[names[0]] == use.number
                and (weight is parameters[names[0]] or weights.isometric(weight))
            ):
                part = part.in_double() if self._in_double else part
                if total is not None:
                    part.add_squares(total, self._scratch)
                if self._is_by_name:
                    self._results[names[0]] = self._reduce(names[0], [(weight, part)])
            else:
                self._pending.add(weight, part, use.number)
                waits = True
        if waits:
            for name, uses in self._pending.take_complete(use.kernel, use.number):
                self._keep(name, self._reduce(name, uses))

    def _samples(self, kernel: Kernel, index: int, g: Tensor) -> Samples | None:
        """Return where the samples of a use are; None where no gradient has ever reached it.

        Raises:
            LayoutUnknown: a gradient reached it, or some of its entries, for the first time.
        """
        layout = kernel.layout or self.layouts.get(index)
        if layout is None:
            if self.n > 1 and bool(g.any()):
                raise LayoutUnknown(
                    f"a gradient reached `{kernel.name}` that had reached it in no batch before"
                )
            return None if self.n > 1 else self._usual
        if layout.reaches_others(g):
            raise LayoutUnknown(
                f"a gradient reached entries of `{kernel.name}` that it had reached in no batch "
                "before"
            )
        # Made once: most uses have it.
        return self._usual if layout.is_usual else Samples(self.n, layout)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """name -> (n, ...), for every parameter that a gradient reached; or as `total`."""
        for use in self._joint_uses.take_rest():
            self._take(use, self._usual)
        rest = self._pending.take_rest()
        for names in group_parameters(self._weights, rest, self.n, self._scratch):
            uses_of = {name: rest.pop(name) for name in names}
            rows: dict[str, list[Tensor]] = {name: [] for name in names}
            for _, totals in dense_sums(self._weights, uses_of, self._scratch):
                for name, gradients in totals.items():
                    rows[name].append(self.reduction.of_dense(name, gradients))
            for name, parts in rows.items():
                self._keep(name, torch.cat(parts))
        for name, uses in rest.items():
            self._keep(name, self._reduce(name, uses))
        return self._results if self._is_by_name else self._sum_squares()

    @torch.no_grad()
    def total(self) -> dict[str, Tensor]:
        """Return the squares of all parameters together, by one name; {} if there are none."""
        return self._sum_squares()

    def _sum_squares(self) -> dict[str, Tensor]:
        total = None if self._total is None else self._total.total()
        return {} if total is None else {TotalSquaredNorms.of_all: total}

    def _keep(self, name: str, rows: Tensor) -> None:
        """Keep what the reduction has made of a parameter: of `TotalSquaredNorms`, squares."""
        if self._is_by_name:
            self._results[name] = rows
        if self._total is not None:
            self._total.add_squares(rows)

    def _reduce(self, name: str, uses: Uses) -> Tensor:
        return self.reduction.of_uses(self._weights, name, uses, self._scratch)
