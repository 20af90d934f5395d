"""Batches."""

import pytest
import torch


@pytest.fixture
def x():
    return torch.randn(12, 4)
