"""What torch gives tensors whose makers name no device or dtype, set for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def default_device(device: torch.device | None) -> AbstractContextManager:
    """Inside, new tensors are on ``device`` (if any) where somebody has set another as the default.

    Pyro, too, makes tensors of plain numbers. Where no default has been set nothing is: torch's calls would be slower.
    """
    is_set = any(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    return device if device and is_set and torch.get_default_device() != device else nullcontext()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new floating-point tensors are of ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Inside, or in a function decorated so, new tensors are those that torch makes where no default has been set.

    Data that are made so are the same whatever a program has set.
    """
    with default_dtype(torch.float32), torch.device("cpu"):
        yield
