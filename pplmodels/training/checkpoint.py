"""Everything a run needs to go on, bit for bit, from where it was."""

import pickle
import random
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from pplmodels.errors import InputError
from pplmodels.files import replace_file
from pplmodels.infer import SVI

FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, svi: SVI, step: int, seconds: float) -> None:
    """Write weights, optimizer and random generators after ``step`` steps and ``seconds`` of training.

    Schedules, the annealing clock and the position in the epoch are functions of the step.
    """
    state = {
        "model_class": type(svi.model).__name__,
        "guide_class": type(svi.guide).__name__,
        "step": step,
        "seconds": seconds,
        "model": svi.model.state_dict(),
        "guide": svi.guide.state_dict(),
        "optim": svi.optim.state_dict(),
        "generators": generator_states(),
    }
    replace_file(folder / FILE, lambda path: torch.save(state, path))


def load_checkpoint(folder: Path, svi: SVI) -> tuple[int, float]:
    """Restore what :func:`save_checkpoint` wrote; returns (step, seconds). Raises :class:`InputError`."""
    path = folder / FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classes = state["model_class"], state["guide_class"]
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no checkpoint to resume from.") from error
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, BadZipFile) as error:
        raise InputError(f"{path} is not a checkpoint, or was cut short.") from error
    if classes != (type(svi.model).__name__, type(svi.guide).__name__):
        raise InputError(f"{path} belongs to the pair {classes[0]}/{classes[1]}, not to this one.")
    # An optimizer replaces its learning-rate tensors when it loads; schedules hold the ones it has now.
    rates = [group["lr"] for group in svi.optim.param_groups]
    try:
        svi.model.load_state_dict(state["model"])
        svi.guide.load_state_dict(state["guide"])
        svi.optim.load_state_dict(state["optim"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} belongs to a pair of another configuration.") from error
    for group, rate in zip(svi.optim.param_groups, rates, strict=True):
        if isinstance(rate, torch.Tensor):
            group["lr"] = rate.copy_(group["lr"])
    restore_generators(state["generators"])
    return state["step"], state["seconds"]


def generator_states() -> dict:
    """The states of all random generators a program may draw from, in types that load without pickle."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator, in case a guide uses it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {k: _plain(v) for k, v in numpy_state["state"].items()}},
    }


def _plain(value):
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def restore_generators(states: dict) -> None:
    """Put all generators back to what :func:`generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, values, gauss = states["python"]
    random.setstate((version, tuple(values), gauss))
    numpy_state = {**states["numpy"], "state": dict(states["numpy"]["state"])}
    numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002
