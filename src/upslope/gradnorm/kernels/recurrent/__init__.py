"""Kernels of recurrent networks and cells.

- `recurrence`: one layer, in one or both directions, as one kernel; `gru` and `lstm` fill it in;
- `onednn`: all steps of an LSTM in one call, where PyTorch takes them so;
- `rules`: the rules of `nn.LSTM`, `nn.GRU` and `nn.RNN`, packed or not, and of their cells, which a
  model calls step by step.
"""
