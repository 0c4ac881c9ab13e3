"""What every test shares."""

from __future__ import annotations

import pytest
import torch

# Tests compute little: a second thread costs more than it gives, and far more beside other work.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, one of several workers would wait for them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
