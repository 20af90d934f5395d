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
from torch.optim.swa_utils import AveragedModel

from pplmodels import distributed
from pplmodels.errors import InputError, as_input_error
from pplmodels.infer import SVI
from pplmodels.io import atomic_write, named_in_utf8
from pplmodels.rng import get_rng_state, set_rng_state
from pplmodels.states import filled, mapped, named, packed

CHECKPOINT = "checkpoint.safetensors"
BEST_WEIGHTS = "best.safetensors"
EARLIER = "checkpoint.pt"  # the file of earlier versions, a pickle
# Leaves that differ between versions of torch and between machines: optimizer options and states of GPUs.
GPUS = re.compile(r"rng/\d+/cuda")
LOCAL = re.compile(rf"optim/param_groups/\d+/(?!params/)|{GPUS.pattern}")
POSITIONS = 624  # valid positions in the state of NumPy's generator, which does not check them itself


def save_checkpoint(
    folder: Path, svi: SVI, step: int, seconds: float, summed: Tensor, averaged: AveragedModel | None = None
) -> None:
    """Write the weights, the optimizer and the random generators of all ranks.

    ``step`` is the number of steps taken, ``seconds`` the time of training so far, and ``summed`` the sum of the losses
    since the last evaluation. Schedules and the position in the epoch are functions of the step. Rank 0 writes; the
    other ranks wait.
    """
    state = {
        **_weights(svi, averaged),
        "step": step,
        "seconds": seconds,
        "summed_losses": summed,
        "optim": svi.optim.state_dict(),
        "rng": distributed.all_gather_object(get_rng_state()),
    }
    _write(state, folder / CHECKPOINT)


def load_checkpoint(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> tuple[int, float, Tensor]:
    """Restore what :func:`save_checkpoint` wrote; returns (step, seconds, summed).

    A rank without a stored generator state is seeded with its number and the step. Raises :class:`InputError` unless
    the file holds, tensor for tensor, what this pair and its optimizer save. The file is memory-mapped, so a size that
    exceeds its own bytes is rejected before memory is allocated.
    """
    path = folder / CHECKPOINT
    leaves = _read(path, svi)
    # Loading replaces the learning-rate tensors of an optimizer, but schedules hold references to the current ones.
    rates = [group["lr"] for group in svi.optim.param_groups]
    with _refused_as_other(path):
        number = next(rank for rank in itertools.count(1) if f"rng/{rank}/torch" not in leaves)
        own = {
            **_weights(svi, averaged),
            "step": 0,
            "seconds": 0.0,
            "summed_losses": torch.zeros((), dtype=torch.float64),
            "optim": _stepped(svi.optim, leaves),
            "rng": [get_rng_state()] * number,
        }
        state = _checked(leaves, own)
        _check_course(state, own)
        _restore(state, {**_parts(svi, averaged), "optim": svi.optim})
    for group, rate in zip(svi.optim.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(group["lr"])
    with as_input_error(f"{path} does not hold the state of the random generators."):
        if distributed.rank() < number:
            set_rng_state(state["rng"][distributed.rank()])
        else:
            pyro.set_rng_seed(state["step"] + distributed.rank())
    return state["step"], state["seconds"], state["summed_losses"]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint. Raises :class:`InputError` if there is only one of an earlier version."""
    found = (folder / CHECKPOINT).exists()
    if not found and (folder / EARLIER).exists():
        raise InputError(
            f"{folder} was trained with an earlier version of pplmodels, whose {EARLIER} is not read: resume it with "
            f"that version, or begin a new run with its weights by --init-from {folder}."
        )
    return found


def step_of(path: Path) -> int:
    """The step of a checkpoint of any pair. Raises :class:`InputError`."""
    step = _leaves(path).get("step")
    if type(step) is not int:
        raise InputError(f"{path} does not say its step.")
    return step


def save_weights(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> None:
    """Write the best weights so far."""
    _write(_weights(svi, averaged), folder / BEST_WEIGHTS)


def load_weights(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> None:
    """Load the weights written by :func:`save_weights`."""
    leaves = _read(folder / BEST_WEIGHTS, svi)
    with _refused_as_other(folder / BEST_WEIGHTS):
        _restore(_checked(leaves, _weights(svi, averaged)), _parts(svi, averaged))


def _write(state: dict, path: Path) -> None:
    if distributed.rank() == 0:
        atomic_write(path, lambda temporary: temporary.write_bytes(packed(named(state))))
    distributed.barrier()


def _weights(svi: SVI, averaged: AveragedModel | None) -> dict:
    return {
        "model_class": type(svi.model).__name__,
        "guide_class": type(svi.guide).__name__,
        **{name: part.state_dict() for name, part in _parts(svi, averaged).items()},
    }


def _parts(svi: SVI, averaged: AveragedModel | None) -> dict[str, torch.nn.Module]:
    return {"model": svi.model, "guide": svi.guide, **({} if averaged is None else {"averaged": averaged})}


def _restore(state: dict, parts: dict) -> None:
    for name, part in parts.items():
        part.load_state_dict(state[name])


def _refused_as_other(path: Path) -> AbstractContextManager:
    return as_input_error(f"{path} belongs to a pair of another configuration.")


def _leaves(path: Path) -> dict:
    with as_input_error(f"{path} is not a checkpoint, or was cut short."), named_in_utf8(path) as file:
        return mapped(file)


def _read(path: Path, svi: SVI) -> dict:
    """The leaves of a checkpoint file, after checking that it belongs to this pair."""
    if not (has_checkpoint(path.parent) and path.exists()):
        raise InputError(f"{path.parent} holds no checkpoint to resume from.")
    leaves = _leaves(path)
    classes = leaves.get("model_class"), leaves.get("guide_class")
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path} is not a checkpoint.")
    if classes != (type(svi.model).__name__, type(svi.guide).__name__):
        raise InputError(f"{path} belongs to the pair {classes[0]}/{classes[1]}, not to this one.")
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
