"""Saving one half of a pair so that it can be rebuilt without its training script."""

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from pyro.nn import PyroModule
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pplmodels.errors import InputError
from pplmodels.files import replace_file

IMAGE = ("channel", "row", "column")  # dimensions


class Half(PyroModule):
    """One half of a pair, a model or a guide: a named PyroModule that remembers its constructor arguments.

    ``role`` ("model" or "guide") names the half's two files in a folder: ``<role>.safetensors`` holds the
    weights and buffers, ``<role>.json`` the class name and the constructor arguments. Neither file can run
    code when it is loaded.

    ``dims`` names the event dimensions of sites, the number of a step left out, and ``coords`` says what some of these
    dimensions count: :func:`pplmodels.inspect.posterior` and its like label their arrays so.
    """

    role: str
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    coords: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __new__(cls, *args, **kwargs):
        """Record what ``__init__`` is about to receive."""
        self = super().__new__(cls)
        signature = inspect.signature(cls)
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        described = {name: value for name, value in arguments.items() if not isinstance(value, torch.nn.Module)}
        object.__setattr__(self, "_arguments", described)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights and the constructor arguments into ``folder`` (made if missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"class": type(self).__name__, "arguments": self._arguments}
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        description, file = _files(folder, self.role)
        replace_file(description, lambda path: path.write_text(json.dumps(described, indent=2)))
        replace_file(file, lambda path: save_file(weights, path))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **modules: torch.nn.Module) -> "Half":
        """Rebuild what :meth:`save_pretrained` wrote, on the CPU and in evaluation mode.

        ``modules`` are the constructor's arguments that are modules of somebody else, which are not saved with this
        half. Raises :class:`InputError` when the files are missing, cut short or of another class.
        """
        name, arguments = _description(folder, cls.role)
        description, weights = _files(folder, cls.role)
        if name != cls.__name__:
            raise InputError(f"{description} describes a {name}, not a {cls.__name__}.")
        try:
            half = cls(**arguments, **modules)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{description} does not say what a {name} is made of ({error}).") from error
        try:
            half.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{weights} does not hold the weights of the {name} in {description}.") from error
        return half.eval()


def load_pair(folder: str | Path) -> tuple[Half, Half]:
    """The model and the guide that were saved in ``folder``, of whatever classes, on the CPU and in evaluation mode.

    The classes are found by their names, so that no file says what code to run; yours must have been imported. A guide
    whose constructor has an argument ``model`` is given the model.
    """
    importlib.import_module("guides")  # so that its classes are known; at the top it would be a circle
    model = _class_of(folder, "model").from_pretrained(folder)
    guide = _class_of(folder, "guide")
    parts = {"model": model} if "model" in inspect.signature(guide).parameters else {}
    return model, guide.from_pretrained(folder, **parts)


def _class_of(folder: str | Path, role: str) -> type[Half]:
    name, _ = _description(folder, role)
    waiting = list(Half.__subclasses__())
    while waiting:
        kind = waiting.pop()
        if kind.__name__ == name and getattr(kind, "role", None) == role:
            return kind
        waiting += kind.__subclasses__()
    raise InputError(f"{_files(folder, role)[0]} describes a {name}, which is not known: import its module first.")


def _files(folder: str | Path, role: str) -> tuple[Path, Path]:
    """Description and weights of a half."""
    return Path(folder) / f"{role}.json", Path(folder) / f"{role}.safetensors"


def _description(folder: str | Path, role: str) -> tuple[str, dict]:
    """Class name and constructor arguments of a saved half."""
    description, _ = _files(folder, role)
    try:
        described = json.loads(description.read_text())
        return described["class"], described["arguments"]
    except OSError as error:
        raise InputError(f"{description} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{description} is not a description of a {role}.") from error


def count_parameters(*modules: torch.nn.Module) -> int:
    """How many numbers the modules learn."""
    return sum(p.numel() for module in modules for p in module.parameters())
