"""Everything a run needs to go on, bit for bit, from where it was."""

import copy
import io
import math
import pickletools
import zipfile
from pathlib import Path

import pyro
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pplmodels import ranks
from pplmodels.errors import InputError, refused_as
from pplmodels.files import named_in_utf8, replace_file
from pplmodels.generators import generator_states, restore_generators
from pplmodels.infer import SVI

FILE = "checkpoint.pt"
BEST = "best.pt"
# What a checkpoint's pickle may name besides storages. torch's own list is longer: a bytearray of any size is on it.
NAMES = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
POSITIONS = 624  # of NumPy's generator in its block of numbers; it does not look whether a state's is one of them


def save_checkpoint(
    folder: Path, svi: SVI, step: int, seconds: float, summed: Tensor, averaged: AveragedModel | None = None
) -> None:
    """Write weights, optimizer and random generators (of all ranks) after ``step`` steps and ``seconds`` of training.

    ``summed`` are the losses since the last evaluation. Schedules, the annealing clock and the position in the epoch
    are functions of the step. Rank 0 writes, the others wait for it.
    """
    state = {
        "step": step,
        "seconds": seconds,
        "summed_losses": summed,
        "optim": svi.optim.state_dict(),
        "generators": ranks.from_all(generator_states()),
        **_weights(svi, averaged),
    }
    _write(state, folder / FILE)


def load_checkpoint(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> tuple[int, float, Tensor]:
    """Restore what :func:`save_checkpoint` wrote; returns (step, seconds, summed).

    A rank that there was not before draws from where its number and the step put it. Raises :class:`InputError` for a
    file that does not hold, tensor for tensor, what this pair and its optimizer save. It is mapped, not read: what it
    claims beyond its own bytes is refused before memory is taken for it.
    """
    # An optimizer replaces its learning-rate tensors when it loads; schedules hold the ones it has now.
    rates = [group["lr"] for group in svi.optim.param_groups]
    state = _load(folder / FILE, svi, averaged, {"optim": svi.optim})
    for group, rate in zip(svi.optim.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(group["lr"])
    with refused_as(f"{folder / FILE} does not hold the state of the random generators."):
        if ranks.index() < len(state["generators"]):
            restore_generators(state["generators"][ranks.index()])
        else:
            pyro.set_rng_seed(state["step"] + ranks.index())
    return state["step"], state["seconds"], state["summed_losses"].clone()


def step_of(path: Path) -> int:
    """The step of a checkpoint, of whatever pair. Raises :class:`InputError` for a file that is none."""
    step = _read(path).get("step")
    if type(step) is not int:
        raise InputError(f"{path} does not say its step.")
    return step


def save_weights(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> None:
    """Write the weights that are best so far."""
    _write(_weights(svi, averaged), folder / BEST)


def load_weights(folder: Path, svi: SVI, averaged: AveragedModel | None = None) -> None:
    """Go back to the weights of :func:`save_weights`."""
    _load(folder / BEST, svi, averaged, {})


def _write(state: dict, path: Path) -> None:
    buffer = io.BytesIO()
    if ranks.index() == 0:
        torch.save(state, buffer)  # into memory: on a full disk it raises a RuntimeError that does not say so
        replace_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
    ranks.wait()


def _weights(svi: SVI, averaged: AveragedModel | None) -> dict:
    return {
        "model_class": type(svi.model).__name__,
        "guide_class": type(svi.guide).__name__,
        "model": svi.model.state_dict(),
        "guide": svi.guide.state_dict(),
        **({} if averaged is None else {"averaged": averaged.state_dict()}),
    }


def _load(path: Path, svi: SVI, averaged: AveragedModel | None, more: dict) -> dict:
    if not path.exists():
        raise InputError(f"{path.parent} holds no checkpoint to resume from.")
    state = _read(path)
    classes = state["model_class"], state["guide_class"]
    if classes != (type(svi.model).__name__, type(svi.guide).__name__):
        raise InputError(f"{path} belongs to the pair {classes[0]}/{classes[1]}, not to this one.")
    parts = {"model": svi.model, "guide": svi.guide, **more, **({} if averaged is None else {"averaged": averaged})}
    with refused_as(f"{path} belongs to a pair of another configuration."):
        for name, part in parts.items():
            own = part.state_dict()
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(state[name], own, part)
            else:
                _check(state[name], own)
        if more:
            _check_course(state)
        for name, part in parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))
    return state


def _read(path: Path) -> dict:
    """What is in a checkpoint's file, the names of the pair's classes at least."""
    with refused_as(f"{path} is not a checkpoint, or was cut short."):
        _refuse_foreign(path)
        # mapped: a storage is then a part of the file; what is kept of it is copied
        with named_in_utf8(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not {"model_class", "guide_class"} <= state.keys():
            raise ValueError("no names")
    return state


def _refuse_foreign(path: Path) -> None:
    """Raise ValueError unless ``path`` is an uncompressed archive whose pickle names tensors and containers only."""
    if not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
            raise ValueError("compressed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries that are larger than the archive, or overlap")
        (pickled,) = (entry for entry in entries if entry.filename.lower().endswith("data.pkl"))
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise ValueError("names in another form than torch's")
            if opcode.name == "GLOBAL" and argument not in NAMES:
                module, _, name = argument.partition(" ")
                if module != "torch" or not name.endswith("Storage"):
                    raise ValueError(f"it names {argument}")


def _check(given, own) -> None:
    """Raise ValueError unless ``given`` is like ``own``: its keys, lengths, shapes and types; finite numbers."""
    if isinstance(own, torch.Tensor):
        alike = isinstance(given, torch.Tensor) and given.layout == own.layout and given.device.type == "cpu"
        if not alike or given.shape != own.shape or given.dtype != own.dtype:
            raise ValueError("another tensor")
    elif isinstance(own, dict):
        if not isinstance(given, dict) or given.keys() != own.keys():
            raise ValueError("other names")
        for name, value in own.items():
            _check(given[name], value)
    elif isinstance(own, list | tuple):
        if not isinstance(given, list | tuple) or len(given) != len(own):
            raise ValueError("another length")
        for one, other in zip(given, own, strict=True):
            _check(one, other)
    elif isinstance(own, float):
        if type(given) not in (int, float) or not math.isfinite(given):
            raise ValueError("no number")
    elif type(given) is not type(own):
        raise ValueError("another type")


def _check_optimizer(given: dict, own: dict, optim: torch.optim.Optimizer) -> None:
    """As :func:`_check`, for an optimizer; what it keeps for a parameter is known after a step."""
    if given.keys() != own.keys():
        raise ValueError("no optimizer")
    for group, other in zip(given["param_groups"], own["param_groups"], strict=True):
        shared = {name for name in other if name in group or name == "params"}  # versions of torch differ in the rest
        _check({name: group[name] for name in shared}, {name: other[name] for name in shared})
        if group["params"] != other["params"]:
            raise ValueError("other parameters")
    stepped = copy.deepcopy(optim)
    for group in stepped.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    stepped.step()
    kept = stepped.state_dict()["state"]
    _check(given["state"], {number: kept[number] for number in given["state"]})


def _check_course(state: dict) -> None:
    """As :func:`_check`, for what is neither weights nor optimizer."""
    for given in state["generators"]:
        _check_generators(given, generator_states())
    _check([state["step"], state["seconds"], state["summed_losses"]], [0, 0.0, torch.zeros((), dtype=torch.float64)])
    if state["step"] < 0 or state["seconds"] < 0:
        raise ValueError("before the start")


def _check_generators(given: dict, own: dict) -> None:
    bits = own["cuda"] if len(given["cuda"]) == len(own["cuda"]) else given["cuda"]  # of another machine: not restored
    python = (*own["python"][:2], given["python"][2] and 0.0)  # a spare normal number, or None
    _check({**given, "python": tuple(given["python"])}, {**own, "cuda": bits, "python": python})
    position = given["numpy"]["state"]["pos"]
    if not 0 <= position <= POSITIONS:
        raise ValueError("no position")
