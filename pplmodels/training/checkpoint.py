"""Everything a run needs to go on, bit for bit, from where it was."""

import pickle
from pathlib import Path
from zipfile import BadZipFile

import torch

from pplmodels.errors import InputError
from pplmodels.files import replace_file
from pplmodels.generators import generator_states, restore_generators
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
