"""Context managers that set torch's default device and dtype for new tensors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def default_device(device: torch.device | None) -> AbstractContextManager:
    """Inside this context, new tensors are created on ``device`` (if any), even if another default device is set.

    This includes tensors that Pyro creates from plain numbers. If no default device has been set, the context does
    nothing, because setting one makes calls to torch slower.
    """
    is_set = any(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    return device if device and is_set and torch.get_default_device() != device else nullcontext()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside this context, new floating-point tensors have the given ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Inside this context or a decorated function, new tensors have torch's original default dtype and device.

    So data generated inside do not depend on the program's defaults.
    """
    with default_dtype(torch.float32), torch.device("cpu"):
        yield
