"""Simple recurrent networks (Elman 1990, in the form of `nn.RNN`).

    a_t = W_x x_t + W_h h_{t-1} + b        h_t = tanh(a_t) or relu(a_t)

With dh_t the total gradient of h_t, through all later steps, that of a_t is dh_t (1 - h_t^2), or
dh_t where h_t > 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.gradnorm.kernels.recurrent.recurrence import Gradients, Recurrence, fast_tanh


class Elman(Recurrence):
    """The recurrence h_t = tanh(a_t) of `nn.RNN`."""

    name = "rnn_tanh"

    def _run(self, products: Tensor, start: tuple[Tensor, ...]) -> Tensor:
        steps, w_h = len(products), self.layer.w_h.mT
        states = products.new_empty(steps + 1, *products.shape[1:])
        states[steps if self.reverse else 0] = start[0]
        self.slopes, self._tanh = products, fast_tanh(products)
        for t, before, after in self._steps(steps):
            self._activate(products[t].addmm_(states[before], w_h), states[after])
        return states

    def _activate(self, a: Tensor, out: Tensor) -> None:
        """Write the activation function at `a` to `out`, and then its slope at `a` to `a`."""
        self._tanh(a, out)
        torch.addcmul(out.new_ones(()), out, out, value=-1, out=a)

    def _run_backward(self, g: Tensor) -> Gradients:
        sums = torch.empty_like(self.slopes)
        dh = g[0 if self.reverse else -1]
        for t, before, _ in reversed([*self._steps(len(sums))]):
            torch.mul(dh, self.slopes[t], out=sums[t])
            dh = torch.addmm(g[before], sums[t], self.layer.w_h)
        return Gradients(sums, sums, (dh,))


class ReluElman(Elman):
    """The recurrence h_t = relu(a_t) of `nn.RNN`."""

    name = "rnn_relu"

    def _activate(self, a: Tensor, out: Tensor) -> None:
        torch.clamp_min(a, 0, out=out)
        a.copy_(out > 0)
