"""What every test shares."""

from __future__ import annotations

import torch

# Tests compute little: a second thread costs more than it gives, and far more beside other work.
torch.set_num_threads(1)
