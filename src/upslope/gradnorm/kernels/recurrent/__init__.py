"""Kernels of recurrent networks and cells.

- `recurrence`: one direction of one layer as one kernel; `elman`, `gru` and `lstm` fill it in;
- `packed`: sequences of unequal length;
- `networks`: the rules of `nn.LSTM`, `nn.GRU` and `nn.RNN`;
- `cells`: the rules of their cells, which a model calls step by step.
"""
