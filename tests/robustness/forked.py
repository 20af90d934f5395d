"""Train systems in forked child processes and observe their current phase; used by faults.py."""

import importlib
import mmap
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pplmodels.systems import all_systems, run_script, train
from pplmodels.systems import system as system_module
from pplmodels.training import loop

for slow in ("sklearn.datasets", "torch._dynamo"):  # slow to import: done once here instead of in each child
    importlib.import_module(slow)
all_systems()

SCENES = "--canvas 20 --object-size 8 --train-scenes 40 --test-scenes 30 --window 8 --what-dim 4 --batch-size 16"
NET = "--channels 6 --layers 2 --size 3 --embedding 4 --hidden 8 --batch-size 16 --averaging 0.9 --lr 0.05"
RUNS: dict[str, tuple[str, str]] = {  # the system and the options of each kind of run
    "pixelcnn": ("pixelcnn", f"{NET} --device cpu --steps 60 --eval-every 3 --patience 4 --no-compile"),
    "air": ("air", f"{SCENES} --device cpu --steps 12 --eval-every 4"),
    "starts": (
        "air",
        f"{SCENES} --device cpu --steps 8 --eval-every 4 --restarts 2 --count-steps 1 4 --no-compile",
    ),
}
STARTING, TRAINING, EVALUATING, WRITING, FINISHING = range(5)
PHASES = ("starting", "training", "evaluating", "writing a checkpoint or a log line", "finishing (metrics and plots)")
PATIENCE = 900  # seconds after which a child is considered hung

phase = mmap.mmap(-1, 1)  # written by the child, read by its parent


def begin(system: str, arguments: list[str], log: Path, fault: Callable[[], object] = lambda: None) -> int:
    """Call ``fault()`` and train a system in a forked child, which inherits all imports; returns the process id."""
    phase[0] = STARTING
    if pid := os.fork():
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = [f"train_{system}", *arguments]
        watch()
        fault()
        run_script(partial(train, system))
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch() -> None:
    """Record in ``phase`` what this process is doing."""

    def noted(function: Callable, during: int, after: int) -> Callable:
        def call(*args, **kwargs):
            phase[0] = during
            value = function(*args, **kwargs)
            phase[0] = after
            return value

        return call

    loop.save_checkpoint = noted(loop.save_checkpoint, WRITING, TRAINING)
    loop.Run.log = noted(loop.Run.log, WRITING, TRAINING)
    loop._evaluate_isolated = noted(loop._evaluate_isolated, EVALUATING, TRAINING)
    system_module.fit = noted(system_module.fit, STARTING, FINISHING)


def end(pid: int) -> int:
    """Wait for a child; returns its exit code, or minus the number of the signal that killed it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGALRM


def run(system: str, arguments: str, log: Path, fault: Callable[[], object] = lambda: None) -> int:
    """Train a system in a forked child and wait for it: :func:`begin` and :func:`end`."""
    return end(begin(system, shlex.split(arguments), log, fault))


def until(condition: Callable[[], bool], pid: int) -> bool:
    """Wait until the condition holds; returns False if the child ends before that."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    return True
