"""Everything a run needs to go on, bit for bit, from where it was."""

import io
import pickle
from pathlib import Path
from zipfile import BadZipFile

import pyro
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pplmodels import ranks
from pplmodels.errors import InputError
from pplmodels.files import replace_file
from pplmodels.generators import generator_states, restore_generators
from pplmodels.infer import SVI

FILE = "checkpoint.pt"
BEST = "best.pt"


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
    """Restore what :func:`save_checkpoint` wrote; returns (step, seconds, summed). Raises :class:`InputError`.

    A rank that there was not before draws from where its number and the step put it.
    """
    # An optimizer replaces its learning-rate tensors when it loads; schedules hold the ones it has now.
    rates = [group["lr"] for group in svi.optim.param_groups]
    state = _load(folder / FILE, svi, averaged, {"optim": svi.optim})
    for group, rate in zip(svi.optim.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(group["lr"])
    if ranks.index() < len(state["generators"]):
        restore_generators(state["generators"][ranks.index()])
    else:
        pyro.set_rng_seed(state["step"] + ranks.index())
    return state["step"], state["seconds"], state["summed_losses"]


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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classes = state["model_class"], state["guide_class"]
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} holds no checkpoint to resume from.") from error
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, BadZipFile) as error:
        raise InputError(f"{path} is not a checkpoint, or was cut short.") from error
    if classes != (type(svi.model).__name__, type(svi.guide).__name__):
        raise InputError(f"{path} belongs to the pair {classes[0]}/{classes[1]}, not to this one.")
    parts = {"model": svi.model, "guide": svi.guide, **more, **({} if averaged is None else {"averaged": averaged})}
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} belongs to a pair of another configuration.") from error
    return state
