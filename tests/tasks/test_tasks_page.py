"""The page on tasks: its configurations are valid, its code runs, every task is on it."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from upslope import tasks
from upslope.config import parse

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_every_task_has_its_row():
    for name in tasks.REGISTRY:
        assert f"| `{name}` |" in PAGE, name


def test_configurations_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        parse(yaml.safe_load(block))


def test_the_factory_makes_a_network_that_serves():
    pytest.importorskip("transformers", reason="transformers is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    scope = {}
    exec(code, scope)
    model = scope["make"](3, (2, 9))
    tasks.TextClassification(3).check(model, torch.ones(2, 2, 9, dtype=torch.int32))
