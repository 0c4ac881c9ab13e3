"""Gated recurrent units (Cho et al. 2014, arXiv:1406.1078, in the form of `nn.GRU`).

    s_t = W_nh h_{t-1} + b_nh        n = tanh(W_nx x_t + b_nx + r s_t)
    h_t = (1 - z) n + z h_{t-1}

With dh_t the total gradient of h_t, through all later steps, and e = (1 - z) (1 - n^2), the
gradients are

    r: dh_t e s_t r (1 - r)    z: dh_t (h_{t-1} - n) z (1 - z)    s_t: dh_t e r    W_nx x_t: dh_t e
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.gradnorm.core.matrix_products import prepare_product
from upslope.gradnorm.kernels.recurrent.recurrence import (
    Gradients,
    Layer,
    Recurrence,
    join_directions,
    rows_before,
    sigmoid_slope,
    tanh_slope,
)


class GRU(Recurrence):
    """h_t as above. The gates r, z and n are in this order."""

    name = "gru"
    kept = (*Recurrence.kept, "gates", "carry", "slope")

    def _bias(self, layer: Layer) -> Tensor | None:
        return layer.b_x

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        d, steps, n, width = len(products), *products.shape[1:3], products.shape[3] // 3
        add_product = prepare_product(self.w_h, n)
        zeros = products.new_zeros(1)
        shift = join_directions([(zeros if b is None else b)[None] for *_, b, _ in self.layers])
        states = products.new_empty(d, steps + 1, n, width)
        self.gates, self.carry, self.slope = products, *products.new_empty(2, d, steps, n, width)
        both_gates = self._in_steps(products[..., : 2 * width])
        rows, carry, slopes = (self._in_steps(s) for s in (states, self.carry, self.slope))
        gates = [self._in_steps(gate) for gate in products.chunk(3, dim=3)]
        rows[0].copy_(start[0])
        for t in range(steps):
            (r, z, new), h = (gate[t] for gate in gates), rows[t]
            hidden = add_product(h, shift)
            both_gates[t].add_(hidden[..., : 2 * width]).sigmoid_()
            state = hidden[..., 2 * width :]
            new.addcmul_(r, state).tanh_()
            torch.lerp(new, h, z, out=rows[t + 1])
            # From here on only the coefficients of the gradients above are kept: those of dh_t,
            # written over the gates.
            carry[t].copy_(z)
            slope = tanh_slope(1 - z, new, grad_input=slopes[t])
            sigmoid_slope(h - new, z, grad_input=z)
            torch.mul(slope, r, out=new)
            sigmoid_slope(state.mul_(slope), r, grad_input=r)
        return states

    def _run_backward(self, g: Tensor) -> Gradients:
        last = 2 * g.shape[3]
        x, hidden = torch.empty_like(self.gates), torch.empty_like(self.gates)
        gates, coefficients = (
            self._in_steps(s.view(*s.shape[:3], 3, -1)) for s in (hidden, self.gates)
        )
        # Lists of rows, as in the forward pass: no index of a tensor in each step.
        new, sums = self._in_steps(x[..., last:]), self._in_steps(hidden)
        rows, carry, slope = (self._in_steps(s) for s in (g, self.carry, self.slope))
        dh, before = rows[-1], rows_before(rows)
        add_product = prepare_product(self.w_h.mT, g.shape[2])
        for t in reversed(range(len(sums))):
            torch.mul(dh.unsqueeze(-2), coefficients[t], out=gates[t])
            torch.mul(dh, slope[t], out=new[t])
            dh = add_product(sums[t], torch.addcmul(before[t], dh, carry[t]))
        x[..., :last] = hidden[..., :last]
        return Gradients(x, hidden, (dh,))
