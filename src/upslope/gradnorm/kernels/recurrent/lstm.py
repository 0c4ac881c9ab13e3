"""Long short-term memory (Hochreiter & Schmidhuber 1997, in the form of `nn.LSTM`).

    c_t = f c_{t-1} + i g        m_t = o tanh(c_t)        h_t = m_t, or its projection

With dc_t and dm_t the total gradients of c_t and m_t, through all later steps, the gradients of the
gates' sums are

    i: dc_t g i (1 - i)    f: dc_t c_{t-1} f (1 - f)    g: dc_t i (1 - g^2)
    o: dm_t tanh(c_t) o (1 - o)

and dc_t takes dm_t o (1 - tanh(c_t)^2) from m_t and dc_{t+1} f_{t+1} from the step after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts, PerSampleGradient
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.core.matrix_products import prepare_product
from upslope.gradnorm.kernels.recurrent import onednn
from upslope.gradnorm.kernels.recurrent.recurrence import (
    Gradients,
    Recurrence,
    in_steps,
    join_directions,
    rows_before,
    sigmoid_slope,
    tanh_slope,
)

_BLOCK = 1 << 18
"""Entries of the gates of the steps that are turned into coefficients together: enough to employ
all threads, few enough to stay in the caches. Set by hand."""


class LSTM(Recurrence):
    """c_t and h_t as above. The gates i, f, g and o are in this order."""

    name = "lstm"
    kept = (
        *Recurrence.kept,
        *("gates", "cells", "tanh_c", "outputs", "of_dc", "of_dm", "forget", "slope"),
    )

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        d, steps, n, width = len(products), *products.shape[1:3], products.shape[3] // 4
        projection = self._projection()
        new = products.new_empty if projection is None else products.new_zeros
        states = new(d, steps + 2, n, width)  # with zeros behind projected states
        rows = self._in_steps(states[:, :-1, :, : self.w_h.shape[-1]])
        cells = products.new_empty(d, steps + 1, n, width)
        tanh_c = products.new_empty(d, steps, n, width)
        self.gates, self.cells, self.tanh_c = products, cells, tanh_c
        self.outputs = tanh_c if projection is None else torch.empty_like(tanh_c)
        add_product = prepare_product(self.w_h, n)
        i, f, g, o = (self._in_steps(gate) for gate in products.chunk(4, dim=3))
        # Indices of tensors cost as much as the products of a small step: of lists, nothing.
        sums, c, tanh = (self._in_steps(s) for s in (products, cells, tanh_c))
        # Their memory is overwritten by coefficients, which the backward pass takes step by step.
        self.of_dc, self.of_dm = self._split(products)
        self.forget, self.slope = c, tanh
        m = tanh if projection is None else self._in_steps(self.outputs)
        last_cells = states[:, -1] if d == 2 else states[0, -1]
        rows[0].copy_(start[0])
        c[0].copy_(start[1])
        for block in self._blocks(products):
            for t in block:
                gates = add_product(rows[t], sums[t])
                torch.sigmoid(gates, out=sums[t])
                # The one gate that is no sigmoid, over what was put there.
                torch.tanh(gates[..., 2 * width : 3 * width], out=g[t])
                torch.mul(f[t], c[t], out=c[t + 1])
                torch.tanh(c[t + 1].addcmul_(i[t], g[t]), out=tanh[t])
                if projection is None:
                    torch.mul(o[t], tanh[t], out=rows[t + 1])
                else:
                    torch.mul(o[t], tanh[t], out=m[t])
                    rows[t + 1].copy_(m[t] @ projection.mT)
                if self.sizes is not None:
                    ending = self._ending(t)
                    last_cells[ending] = c[t + 1][ending]
            self._to_coefficients(block)
        if self.sizes is None:
            last_cells.copy_(c[-1])
        return states

    def _run_at_once(self, x: Tensor, start: Sequence[Tensor]) -> Tensor | None:
        """Return what `_run` does, by oneDNN; see `Recurrence`."""
        weights = [weight for layer in self.layers for weight in layer if weight is not None]
        if self.sizes is not None or self.layers[0].projection is not None:
            return None
        if not onednn.fits(x, *start, *weights):
            return None
        d, (t, n, _), width = len(self.layers), x.shape, self.w_h.shape[-1]
        x = x.contiguous()  # once for both directions
        states = x.new_empty(d, t + 2, n, width)
        coefficients = x.new_empty(d, t, n, 4, width)
        forget, slope = x.new_empty(2, d, t, n, width)
        for k, layer in enumerate(self.layers):
            h, c = start[0][k], start[1][k]
            states[k, t if k else 0] = h
            outputs = states[k, :t] if k else states[k, 1 : t + 1]
            for part in onednn.parts(t, n * width):
                # The second direction takes its steps from the last on.
                times = slice(t - part.stop, t - part.start) if k else part
                steps = onednn.run(x[times], (h, c), layer[:4], reverse=bool(k))
                if steps is None:
                    return None
                outputs[times] = steps.output
                h, c = steps.output[0 if k else -1], steps.cells[-1]
                _write_coefficients(steps, coefficients[k, part], forget[k, part], slope[k, part])
            states[k, -1] = c
        self.of_dc, self.of_dm, self.forget, self.slope = (
            in_steps(s, flips=False)  # kept in the order in which the steps are taken
            for s in (coefficients[..., :3, :], coefficients[..., 3, :], forget, slope)
        )
        return states

    def _projection(self) -> Tensor | None:
        matrices = [layer.projection for layer in self.layers if layer.projection is not None]
        return join_directions(matrices) if matrices else None

    def _to_coefficients(self, block: range) -> None:
        """Overwrite the gates of some steps by the coefficients of the gradients.

        Those of dc_t and dm_t above. c_{t-1} is overwritten by f, and tanh(c_t) by
        o (1 - tanh(c_t)^2).
        """
        gates, cells, tanh_c = self.gates, self.cells, self.tanh_c
        d, steps = tanh_c.shape[:2]
        if len(block) == steps:  # all at once; the second direction may begin at the last cells
            direction, step, *others = cells.stride()
            between = direction + (step if self.flips else 0)
            before = cells.as_strided(tanh_c.shape, (between, step, *others))
            _overwrite(gates, before, tanh_c)
            return
        for k in range(d):
            low, high, flips = block.start, block.stop, int(k == 1 and self.flips)
            if flips:
                low, high = steps - high, steps - low
            before = cells[k, low + flips : high + flips]
            _overwrite(gates[k, low:high], before, tanh_c[k, low:high])

    def _run_backward(self, g: Tensor) -> Gradients:
        projection, (d, _, n, _), p = self._projection(), g.shape, self.w_h.shape[-1]
        gates = g.new_empty(*g.shape[:1], len(self.slope), n, self.w_h.shape[-2])
        rows = self._in_steps(g[:, :-1, :, :p])
        before = rows_before(rows)
        last_cells = g[:, -1] if d == 2 else g[0, -1]
        dc, dh = last_cells, rows[-1]
        dc = dc if self.sizes is None else torch.zeros_like(dc)
        add_product = prepare_product(self.w_h.mT, n)
        sums_c, sums_o = self._split(gates)
        # Lists of rows, as in the forward pass.
        at, slope, forget = self._in_steps(gates), self.slope, self.forget
        of_dc, of_dm = self.of_dc, self.of_dm
        outputs = None if projection is None else g.new_empty(*gates.shape[:3], p)
        hidden = [] if outputs is None else self._in_steps(outputs)
        for t in reversed(range(len(at))):
            if self.sizes is not None:
                ending = self._ending(t)
                dc[ending] += last_cells[ending]
            dm = dh
            if projection is not None:
                hidden[t].copy_(dh)
                dm = dh @ projection
            dc = torch.addcmul(dc, dm, slope[t])
            torch.mul(dc.unsqueeze(-2), of_dc[t], out=sums_c[t])
            torch.mul(dm, of_dm[t], out=sums_o[t])
            dc = dc * forget[t]
            dh = add_product(at[t], before[t])
        return Gradients(gates, gates, (dh, dc), outputs)

    def _projection_gradient(
        self, gradients: Gradients, direction: int, samples: Samples
    ) -> PerSampleGradient:
        assert gradients.outputs is not None
        outputs = gradients.outputs[direction]
        return OuterProducts(samples.rows(self.outputs[direction]), samples.rows(outputs))

    def _blocks(self, products: Tensor) -> Iterator[range]:
        """Yield the steps, in groups of about `_BLOCK` entries of their gates."""
        steps = products.shape[1]
        size = max(1, _BLOCK // max(products[:, 0].numel(), 1))
        yield from (range(i, min(i + size, steps)) for i in range(0, steps, size))

    def _split(self, gates: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return views of each step: of i, f and g, (n, 3, h), which act on c_t, and of o, (n, h).

        gates: (d, t, n, 4 h).
        """
        apart = gates.view(*gates.shape[:3], 4, -1)
        return self._in_steps(apart[..., :3, :]), self._in_steps(apart[..., 3, :])


def _write_coefficients(
    steps: onednn.Steps, coefficients: Tensor, forget: Tensor, slope: Tensor
) -> None:
    """Write the coefficients of the gradients, of all steps of a direction.

    coefficients: (t, n, 4, h), those of dc_t and dm_t. forget and slope: (t, n, h), f and
    o (1 - tanh(c_t)^2).
    """
    _, gates, cells = steps
    size = max(1, _BLOCK // gates[0].numel())
    for at in (slice(start, start + size) for start in range(0, len(gates), size)):
        i, f, g, o = gates[at].unbind(2)
        of_i, of_f, of_g, of_o = coefficients[at].unbind(2)
        tanh_c = torch.tanh(cells[1:][at], out=slope[at])
        sigmoid_slope(g, i, grad_input=of_i)
        sigmoid_slope(cells[:-1][at], f, grad_input=of_f)
        tanh_slope(i, g, grad_input=of_g)
        sigmoid_slope(tanh_c, o, grad_input=of_o)
        tanh_slope(o, tanh_c, grad_input=tanh_c)
        forget[at] = f


def _overwrite(gates: Tensor, before: Tensor, tanh_c: Tensor) -> None:
    """Overwrite gates (..., 4 h), c_{t-1} and tanh_c (..., h): see `LSTM._to_coefficients`."""
    i, f, g, o = gates.chunk(4, dim=-1)
    gate = i.clone()
    sigmoid_slope(g, i, grad_input=i)
    tanh_slope(gate, g, grad_input=g)
    gate.copy_(f)
    sigmoid_slope(before, f, grad_input=f)
    before.copy_(gate)
    gate.copy_(o)
    sigmoid_slope(tanh_c, o, grad_input=o)
    tanh_slope(gate, tanh_c, grad_input=tanh_c)
