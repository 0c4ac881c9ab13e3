"""The network of the paper's experiments, in full."""

from __future__ import annotations

import torch
from oracle import assert_agrees

from upslope.models.resnet import resnet18_cifar, resnet_small


def test_cifar_resnet18_agrees_to_1e_9_for_both_norms():
    torch.manual_seed(0)
    model = resnet18_cifar(10, (3, 32, 32))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    seen = assert_agrees(model, torch.randn(2, 3, 16, 16))
    folded = seen.operators.count("conv2d + batch_norm (eval)")
    assert folded > 0
    assert len(seen.operators) == 41 - folded


def test_small_resnet_in_either_memory_format():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 16, 16)
    assert_agrees(resnet_small(5, (3, 16, 16)), x)
    assert_agrees(resnet_small(5, (3, 16, 16)).to(memory_format=torch.channels_last), x)
