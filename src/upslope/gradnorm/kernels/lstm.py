"""Long short-term memory (Hochreiter & Schmidhuber 1997, in the form of `nn.LSTM`).

    c_t = f c_{t-1} + i g        m_t = o tanh(c_t)        h_t = m_t, or its projection

With dc_t the whole gradient of c_t, and dm_t that of m_t, the gates' sums have the gradients

    i: dc_t g i (1 - i)    f: dc_t c_{t-1} f (1 - f)    g: dc_t i (1 - g^2)
    o: dm_t tanh(c_t) o (1 - o)

and dc_t takes dm_t o (1 - tanh(c_t)^2) from m_t and dc_{t+1} f_{t+1} from the step after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from upslope.gradnorm.kernels.recurrence import (
    Pulled,
    Recurrence,
    Step,
    by_gate,
    sigmoid_slope,
    tanh_like,
    tanh_slope,
)
from upslope.gradnorm.layout import Samples
from upslope.gradnorm.parts import Outer, Part
from upslope.gradnorm.products import repeated

_BLOCK = 1 << 18
"""Entries of the gates of all steps that are taken together."""


class LSTM(Recurrence):
    """See the head of this file. The gates are in the order i, f, g, o."""

    name = "lstm"

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        steps, n, width = len(products), products.shape[1], products.shape[2] // 4
        w_h, projection = self.own.w_h, self.own.projection
        first = steps if self.reverse else 0
        states = products.new_zeros(steps + 2, n, width)
        rows = states[..., : w_h.shape[1]].unbind(0)
        rows[first].copy_(start[0])
        cells, bent = products.new_empty(steps + 1, n, width), products.new_empty(steps, n, width)
        cells[first] = start[1]
        self.gates, self.forget, self.slope = products, cells, bent
        self.outputs = bent if projection is None else torch.empty_like(bent)
        # Twice the sums of g, whose sigmoids s give tanh = 2 s - 1.
        products[..., 2 * width : 3 * width].mul_(2)
        w_h = torch.cat([w_h[: 2 * width], 2 * w_h[2 * width : 3 * width], w_h[3 * width :]])
        plus, gates, tanh = repeated(w_h, n), by_gate(products, 4), tanh_like(products)
        for block in self._blocks(products):
            for t, before, after in block:
                torch.sigmoid(plus(rows[before], products[t]), out=products[t])
                i, f, s, o = (gate[t] for gate in gates)
                c = torch.mul(f, cells[before], out=cells[after])
                tanh(c.addcmul_(i, s, value=2).sub_(i), bent[t])
                if projection is None:
                    torch.mul(o, bent[t], out=rows[after])
                else:
                    torch.mul(o, bent[t], out=self.outputs[t])
                    torch.mm(self.outputs[t], projection.mT, out=rows[after])
                if self.sizes is not None:
                    ending = self._ending(t)
                    states[-1, ending] = cells[after, ending]
            self._to_coefficients(block)
        if self.sizes is None:
            states[-1] = cells[0 if self.reverse else steps]
        return states

    def _to_coefficients(self, block: Sequence[Step]) -> None:
        """What the gradients of the gates' sums are multiples of, in place of the gates.

        The cells before give way to f, and tanh(c_t) to o (1 - tanh(c_t)^2).
        """
        low, high = min(t for t, *_ in block), max(t for t, *_ in block) + 1
        before = self.forget[low + self.reverse : high + self.reverse]
        bent = self.slope[low:high]
        i, f, g, o = self.gates[low:high].chunk(4, dim=2)
        g.mul_(2).sub_(1)  # from the sigmoid of twice its sum to the tanh
        kept = i.clone()
        sigmoid_slope(g, i, grad_input=i)
        tanh_slope(kept, g, grad_input=g)
        kept.copy_(f)
        sigmoid_slope(before, f, grad_input=f)
        before.copy_(kept)
        kept.copy_(o)
        sigmoid_slope(bent, o, grad_input=o)
        tanh_slope(kept, bent, grad_input=bent)

    def _back(self, g: Tensor) -> Pulled:
        w_h, projection = self.own.w_h, self.own.projection
        gates = torch.empty_like(self.gates)
        rows, of_h = g[..., : w_h.shape[1]].unbind(0), []
        dc, dh = g[-1], rows[0 if self.reverse else -2]
        dc = dc if self.sizes is None else torch.zeros_like(dc)
        plus, own, coefficients = repeated(w_h.mT, len(dc)), _split(gates), _split(self.gates)
        for t, before, _ in reversed([*self._steps(len(gates))]):
            of_h.append(dh)
            if self.sizes is not None:
                ending = self._ending(t)
                dc[ending] += g[-1, ending]
            dm = dh if projection is None else dh @ projection
            dc = torch.addcmul(dc, dm, self.slope[t])
            torch.mul(dc[:, None], coefficients[0][t], out=own[0][t])
            torch.mul(dm, coefficients[1][t], out=own[1][t])
            dc = dc * self.forget[before]
            dh = plus(gates[t], rows[before])
        outputs = None
        if projection is not None:
            outputs = torch.stack(of_h if self.reverse else of_h[::-1])
        return Pulled(gates, gates, (dh, dc), outputs)

    def _projected(self, pulled: Pulled, samples: Samples) -> Part:
        assert pulled.outputs is not None
        return Outer(samples.rows(self.outputs), samples.rows(pulled.outputs))

    def _blocks(self, products: Tensor) -> Iterator[Sequence[Step]]:
        """The steps in groups large enough for all threads, and small enough for the caches."""
        size = max(1, _BLOCK // max(products[0].numel(), 1))
        steps = [*self._steps(len(products))]
        yield from (steps[i : i + size] for i in range(0, len(steps), size))


def _split(gates: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(t, n, 4 h) -> t views of the gates that c_t goes through, (n, 3, h), and of o, (n, h)."""
    apart = gates.view(*gates.shape[:2], 4, -1)
    return apart[:, :, :3].unbind(0), apart[:, :, 3].unbind(0)
