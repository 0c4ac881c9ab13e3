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
    Recurrence,
    by_gate,
    sigmoid_slope,
    tanh_slope,
)


class GRU(Recurrence):
    """h_t as above. The gates r, z and n are in this order."""

    name = "gru"

    def _bias(self) -> Tensor | None:
        return self.layer.b_x

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        steps, n, width = len(products), products.shape[1], products.shape[2] // 3
        b_h = self.layer.b_h
        add_product = prepare_product(self.layer.w_h, n)
        shift = products.new_zeros(1) if b_h is None else b_h
        states = products.new_empty(steps + 1, n, width)
        states[steps if self.reverse else 0] = start[0]
        self.gates, self.carry, self.slope = products, *products.new_empty(2, steps, n, width)
        both_gates = products[..., : 2 * width].unbind(0)
        rows, carry, slopes = (s.unbind(0) for s in (states, self.carry, self.slope))
        gates = by_gate(products, 3)
        for t, before, after in self._steps(steps):
            (r, z, new), h = (gate[t] for gate in gates), rows[before]
            hidden = add_product(h, shift)
            both_gates[t].add_(hidden[:, : 2 * width]).sigmoid_()
            state = hidden[:, 2 * width :]
            new.addcmul_(r, state).tanh_()
            torch.lerp(new, h, z, out=rows[after])
            # From here on only the coefficients of the gradients above are kept: those of dh_t,
            # written over the gates.
            carry[t].copy_(z)
            slope = tanh_slope(1 - z, new, grad_input=slopes[t])
            sigmoid_slope(h - new, z, grad_input=z)
            torch.mul(slope, r, out=new)
            sigmoid_slope(state.mul_(slope), r, grad_input=r)
        return states

    def _run_backward(self, g: Tensor) -> Gradients:
        last = 2 * g.shape[2]
        x, hidden = torch.empty_like(self.gates), torch.empty_like(self.gates)
        gates, coefficients = by_gate(hidden, 3), by_gate(self.gates, 3)
        # Lists of rows, as in the forward pass: no index of a tensor in each step.
        new, sums = x[..., last:].unbind(0), hidden.unbind(0)
        rows, carry, slope = (s.unbind(0) for s in (g, self.carry, self.slope))
        dh = rows[0 if self.reverse else -1]
        add_product = prepare_product(self.layer.w_h.mT, len(dh))
        for t, before, _ in reversed([*self._steps(len(hidden))]):
            for k in range(3):
                torch.mul(dh, coefficients[k][t], out=gates[k][t])
            torch.mul(dh, slope[t], out=new[t])
            dh = add_product(sums[t], torch.addcmul(rows[before], dh, carry[t]))
        x[..., :last] = hidden[..., :last]
        return Gradients(x, hidden, (dh,))
