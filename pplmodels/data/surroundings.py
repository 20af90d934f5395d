"""What data are made of does not depend on the defaults that a program has set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Within, or in a function decorated so, new tensors are float32 and on the CPU, as torch makes them by itself."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
