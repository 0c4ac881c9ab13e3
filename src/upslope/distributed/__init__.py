"""Work on several processes, devices and machines: who computes which batch, and how it comes back.

Without an engine (`engine`) everything is computed in this process. `ranks.Ranks` are the processes
that torchrun has started. An engine changes where a batch is computed, and no number.
"""
