"""What the machine gives this process: processors and memory."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that this process can still take before the machine, its container or its own limits refuse more."""
    bounds = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # a container's, where there is one; without a limit it says "max"
        bounds.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    with suppress(ImportError):
        import resource  # which Windows does not have

        used = psutil.Process().memory_info()
        for limit, taken in ((resource.RLIMIT_DATA, used.rss), (resource.RLIMIT_AS, used.vms)):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY:
                bounds.append(soft - taken)
    return max(0, min(bounds))
