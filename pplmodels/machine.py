"""The processors and the memory that are available to this process."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

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
