"""Checkpoints, from which a run continues bit for bit."""

import copy
import itertools
import math
import re
from contextlib import AbstractContextManager
from pathlib import Path

import pyro
import torch
from torch import Tensor

from pplmodels import distributed
from pplmodels.errors import InputError, as_input_error
from pplmodels.io import atomic_write, named_in_utf8
from pplmodels.rng import get_rng_state, set_rng_state
from pplmodels.states import filled, mapped, named, packed
from pplmodels.training.state import TrainState

CHECKPOINT = "checkpoint.safetensors"
BEST_WEIGHTS = "best.safetensors"
EARLIER = "checkpoint.pt"  # the file of earlier versions, a pickle
# Leaves that differ between versions of torch and between machines: optimizer options and states of GPUs.
GPUS = re.compile(r"rng/\d+/cuda")
LOCAL = re.compile(rf"optim/param_groups/\d+/(?!params/)|{GPUS.pattern}")
POSITIONS = 624  # valid positions in the state of NumPy's generator, which does not check them itself


def save_checkpoint(folder: Path, state: TrainState) -> None:
    """Write the state of a training and the random generators of all ranks. Rank 0 writes; the other ranks wait."""
    _write({**state.state_dict(), "rng": distributed.all_gather_object(get_rng_state())}, folder / CHECKPOINT)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restore what :func:`save_checkpoint` wrote into ``state`` and this rank's random generators.

    A rank without a stored generator state is seeded with its number and the step. Raises :class:`InputError` unless
    the file holds, tensor for tensor, what this pair and its optimizer save. The file is memory-mapped, so a size that
    exceeds its own bytes is rejected before memory is allocated.
    """
    path = folder / CHECKPOINT
    leaves = _read(path, state)
    with _refused_as_other(path):
        number = next(rank for rank in itertools.count(1) if f"rng/{rank}/torch" not in leaves)
        own = {
            **state.state_dict(),
            "optim": _stepped(state.svi.optim, leaves),
            "rng": [get_rng_state()] * number,
        }
        loaded = _checked(leaves, own)
        _check_course(loaded, own)
        state.load_state_dict(loaded)
    with as_input_error(f"{path} has no valid state of the random generators."):
        if distributed.rank() < number:
            set_rng_state(loaded["rng"][distributed.rank()])
        else:
            pyro.set_rng_seed(state.step + distributed.rank())


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint. Raises :class:`InputError` if there is only one of an earlier version."""
    found = (folder / CHECKPOINT).exists()
    if not found and (folder / EARLIER).exists():
        raise InputError(
            f"{folder} has a {EARLIER} of an earlier version of pplmodels, which cannot be read: resume it with "
            f"that version, or start a new run from its weights with --init-from {folder}."
        )
    return found


def step_of(path: Path) -> int:
    """The step of a checkpoint of any pair. Raises :class:`InputError`."""
    step = _leaves(path).get("step")
    if type(step) is not int:
        raise InputError(f"{path} has no step.")
    return step


def save_weights(folder: Path, state: TrainState) -> None:
    """Write the best weights so far."""
    _write(state.weights(), folder / BEST_WEIGHTS)


def load_weights(folder: Path, state: TrainState) -> None:
    """Load the weights written by :func:`save_weights`."""
    path = folder / BEST_WEIGHTS
    leaves = _read(path, state)
    with _refused_as_other(path):
        state.load_weights(_checked(leaves, state.weights()))


def _write(state: dict, path: Path) -> None:
    if distributed.rank() == 0:
        atomic_write(path, lambda temporary: temporary.write_bytes(packed(named(state))))
    distributed.barrier()


def _refused_as_other(path: Path) -> AbstractContextManager:
    return as_input_error(f"{path} is a checkpoint of a pair with another configuration.")


def _leaves(path: Path) -> dict:
    with as_input_error(f"{path} is not a checkpoint, or is truncated."), named_in_utf8(path) as file:
        return mapped(file)


def _read(path: Path, state: TrainState) -> dict:
    """The leaves of a checkpoint file, after checking that it belongs to this pair."""
    if not (has_checkpoint(path.parent) and path.exists()):
        raise InputError(f"{path.parent} has no checkpoint to resume from.")
    leaves = _leaves(path)
    classes = leaves.get("model_class"), leaves.get("guide_class")
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path} is not a checkpoint.")
    if classes != (type(state.svi.model).__name__, type(state.svi.guide).__name__):
        raise InputError(f"{path} is a checkpoint of {classes[0]} and {classes[1]}, not of this pair.")
    return leaves


def _checked(leaves: dict, own: dict) -> dict:
    """The leaves of a file, nested like ``own``.

    Raises ValueError unless they have the names, shapes and types of the leaves of ``own``, and finite numbers.
    """
    expected = named(own)
    leaves = _as_here({name: leaf for name, leaf in leaves.items() if name.partition("/")[0] in own}, expected)
    if leaves.keys() != expected.keys():
        raise ValueError("other names")
    for name, leaf in leaves.items():
        _check(leaf, expected[name])
    return filled(own, leaves)


def _as_here(leaves: dict, own: dict) -> dict:
    """``leaves``, with those that depend on the version of torch or on the machine taken from ``own``."""
    known = {name: leaf for name, leaf in leaves.items() if name in own or not LOCAL.match(name)}
    missing = {name: leaf for name, leaf in own.items() if name not in leaves and LOCAL.match(name)}
    gpus = {name: leaf for name, leaf in own.items() if GPUS.match(name)}
    others = {name: leaf for name, leaf in gpus.items() if getattr(leaves.get(name), "shape", None) != leaf.shape}
    return {**known, **missing, **others}


def _check(leaf, own) -> None:
    if isinstance(own, Tensor):
        if not isinstance(leaf, Tensor) or leaf.shape != own.shape or leaf.dtype != own.dtype:
            raise ValueError("another tensor")
    elif isinstance(own, float):
        if type(leaf) not in (int, float) or not math.isfinite(leaf):
            raise ValueError("no number")
    elif type(leaf) is not type(own):
        raise ValueError("another type")


def _check_course(state: dict, own: dict) -> None:
    """Raise ValueError for impossible values of the right types."""
    if state["step"] < 0 or state["seconds"] < 0:
        raise ValueError("before the start")
    for group, other in zip(state["optim"]["param_groups"], own["optim"]["param_groups"], strict=True):
        if group["params"] != other["params"]:
            raise ValueError("other parameters")
    if not all(0 <= generators["numpy"]["state"]["pos"] <= POSITIONS for generators in state["rng"]):
        raise ValueError("no position")


def _stepped(optim: torch.optim.Optimizer, leaves: dict) -> dict:
    """The state of an optimizer after one step, restricted to the parameters that have state in ``leaves``."""
    stepped = copy.deepcopy(optim)
    for group in stepped.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    stepped.step()
    own = stepped.state_dict()
    numbers = {name.split("/")[2] for name in leaves if name.startswith("optim/state/")}
    return {**own, "state": {number: kept for number, kept in own["state"].items() if str(number) in numbers}}
