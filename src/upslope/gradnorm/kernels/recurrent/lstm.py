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

from upslope.gradnorm.core.layout import Samples
from upslope.gradnorm.core.matrix_products import prepare_product
from upslope.gradnorm.core.per_sample_gradients import OuterProducts, PerSampleGradient
from upslope.gradnorm.kernels.recurrent.recurrence import (
    Gradients,
    Recurrence,
    Step,
    by_gate,
    sigmoid_slope,
    tanh_slope,
)

_BLOCK = 1 << 18
"""Entries of the gates of the steps that are turned into coefficients together: enough to employ
all threads, few enough to stay in the caches. Set by hand."""


class LSTM(Recurrence):
    """c_t and h_t as above. The gates i, f, g and o are in this order."""

    name = "lstm"

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        steps, n, width = len(products), products.shape[1], products.shape[2] // 4
        w_h, projection = self.layer.w_h, self.layer.projection
        first = steps if self.reverse else 0
        states = products.new_zeros(steps + 2, n, width)
        rows = states[..., : w_h.shape[1]].unbind(0)
        rows[first].copy_(start[0])
        cells, tanh_c = products.new_empty(steps + 1, n, width), products.new_empty(steps, n, width)
        cells[first] = start[1]
        self.gates, self.forget, self.slope = products, cells, tanh_c
        self.outputs = tanh_c if projection is None else torch.empty_like(tanh_c)
        add_product = prepare_product(w_h, n)
        i, f, g, o = by_gate(products, 4)
        # Indices of tensors cost as much as the products of a small step: of lists, nothing.
        sums, c, tanh, m = (s.unbind(0) for s in (products, cells, tanh_c, self.outputs))
        for block in self._blocks(products):
            for t, before, after in block:
                gates = add_product(rows[before], sums[t])
                torch.sigmoid(gates, out=sums[t])
                # The one gate that is no sigmoid, over what was put there.
                torch.tanh(gates[:, 2 * width : 3 * width], out=g[t])
                torch.mul(f[t], c[before], out=c[after])
                torch.tanh(c[after].addcmul_(i[t], g[t]), out=tanh[t])
                if projection is None:
                    torch.mul(o[t], tanh[t], out=rows[after])
                else:
                    torch.mul(o[t], tanh[t], out=m[t])
                    torch.mm(m[t], projection.mT, out=rows[after])
                if self.sizes is not None:
                    ending = self._ending(t)
                    states[-1, ending] = c[after][ending]
            self._to_coefficients(block)
        if self.sizes is None:
            states[-1] = cells[0 if self.reverse else steps]
        return states

    def _to_coefficients(self, block: Sequence[Step]) -> None:
        """Overwrite the gates of some steps by the coefficients of the gradients above.

        Those of dc_t and dm_t. c_{t-1} is overwritten by f, and tanh(c_t) by o (1 - tanh(c_t)^2).
        """
        low, high = min(t for t, *_ in block), max(t for t, *_ in block) + 1
        before = self.forget[low + self.reverse : high + self.reverse]
        tanh_c = self.slope[low:high]
        i, f, g, o = self.gates[low:high].chunk(4, dim=2)
        gate = i.clone()
        sigmoid_slope(g, i, grad_input=i)
        tanh_slope(gate, g, grad_input=g)
        gate.copy_(f)
        sigmoid_slope(before, f, grad_input=f)
        before.copy_(gate)
        gate.copy_(o)
        sigmoid_slope(tanh_c, o, grad_input=o)
        tanh_slope(gate, tanh_c, grad_input=tanh_c)

    def _run_backward(self, g: Tensor) -> Gradients:
        w_h, projection = self.layer.w_h, self.layer.projection
        gates = torch.empty_like(self.gates)
        rows, hidden = g[..., : w_h.shape[1]].unbind(0), []
        dc, dh = g[-1], rows[0 if self.reverse else -2]
        dc = dc if self.sizes is None else torch.zeros_like(dc)
        add_product = prepare_product(w_h.mT, len(dc))
        sums, coefficients = _split(gates), _split(self.gates)
        # Lists of rows, as in the forward pass.
        at, slope, forget = (s.unbind(0) for s in (gates, self.slope, self.forget))
        for t, before, _ in reversed([*self._steps(len(gates))]):
            hidden.append(dh)
            if self.sizes is not None:
                ending = self._ending(t)
                dc[ending] += g[-1, ending]
            dm = dh if projection is None else dh @ projection
            dc = torch.addcmul(dc, dm, slope[t])
            torch.mul(dc[:, None], coefficients[0][t], out=sums[0][t])
            torch.mul(dm, coefficients[1][t], out=sums[1][t])
            dc = dc * forget[before]
            dh = add_product(at[t], rows[before])
        outputs = None
        if projection is not None:
            outputs = torch.stack(hidden if self.reverse else hidden[::-1])
        return Gradients(gates, gates, (dh, dc), outputs)

    def _projection_gradient(self, gradients: Gradients, samples: Samples) -> PerSampleGradient:
        assert gradients.outputs is not None
        return OuterProducts(samples.rows(self.outputs), samples.rows(gradients.outputs))

    def _blocks(self, products: Tensor) -> Iterator[Sequence[Step]]:
        """Yield the steps, in groups of about `_BLOCK` entries of their gates."""
        size = max(1, _BLOCK // max(products[0].numel(), 1))
        steps = [*self._steps(len(products))]
        yield from (steps[i : i + size] for i in range(0, len(steps), size))


def _split(gates: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(t, n, 4 h) -> t views (n, 3, h) of i, f and g, which act on c_t, and t views (n, h) of o."""
    apart = gates.view(*gates.shape[:2], 4, -1)
    return apart[:, :, :3].unbind(0), apart[:, :, 3].unbind(0)
