"""The processors, the memory and the devices that are available to this process."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from pplmodels.errors import InputError

CGROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """The number of bytes that this process can still allocate within the limits of machine, container and process."""
    bounds = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # outside of containers the files are missing, and "max" means no limit
        bounds.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    with suppress(ImportError):
        import resource  # not available on Windows

        used = psutil.Process().memory_info()
        for limit, taken in ((resource.RLIMIT_DATA, used.rss), (resource.RLIMIT_AS, used.vms)):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY:
                bounds.append(soft - taken)
    return max(0, min(bounds))


def resolve_device(name: str) -> torch.device:
    """The device called "auto" (CUDA if available), "cpu" or "cuda". Raises :class:`InputError`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda is not possible: no CUDA device is available.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def peak_bytes(device: torch.device) -> int:
    """The peak memory of this process; on a GPU, the peak memory of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
