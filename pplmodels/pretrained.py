"""Saving one half of a pair so that it can be rebuilt without its training script."""

import importlib
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from pyro.nn import PyroModule
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pplmodels.defaults import default_dtype
from pplmodels.errors import InputError, refused_as
from pplmodels.files import PAIR, named_in_utf8, newest_run, read_json, replace_file, write_json

IMAGE = ("channel", "row", "column")  # dimensions
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REGISTERED = 4  # parameters that a constructor may register for each tensor that is saved: it may replace some


class Half(PyroModule):
    """One half of a pair, a model or a guide: a named PyroModule that remembers its constructor arguments.

    ``role`` ("model" or "guide") names the half's two files in a folder: ``<role>.safetensors`` holds the
    weights and buffers, ``<role>.json`` the class name and the constructor arguments. Neither file can run
    code when it is loaded. A constructor's arguments alone decide the shapes of the weights, and it reads no value of a
    tensor for that: a half is sketched on the meta device, without memory, before it is rebuilt.

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
        write_json(description, described)
        replace_file(file, lambda path: path.write_bytes(save(weights)))

    def load_weights(self, folder: str | Path) -> None:
        """Take over the weights that a half of the same sizes has saved in ``folder``, and stay in this mode.

        A buffer that a constructor's argument sets (a prior's mean, an annealed ratio) keeps this half's value. Raises
        :class:`InputError` for other sizes.
        """
        _, weights = _files(folder, self.role)
        with refused_as(f"{weights} does not hold the weights of a {type(self).__name__} of these sizes."):
            if _shapes(weights) != {key: value.shape for key, value in self.state_dict().items()}:
                raise ValueError("other shapes")
            own = inspect.signature(type(self)).parameters.keys() & dict(self.named_buffers(recurse=False)).keys()
            found = {key: value for key, value in load_file(weights).items() if key not in own}
            self.load_state_dict(found, strict=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **modules: torch.nn.Module) -> "Half":
        """Rebuild what :meth:`save_pretrained` wrote, on the CPU, in evaluation mode and in the dtypes of its weights.

        Tensors that are not saved are made in the dtype of most weights. Where that has 16 bits they are made in
        float32, and of these the buffers are rounded, as :meth:`torch.nn.Module.to` does.
        ``modules`` are the constructor's arguments that are modules of somebody else, which are not saved with this
        half. Raises :class:`InputError` when the files are missing, cut short or of another class. No weights are
        allocated before the shapes that the description asks for are those whose bytes are in the weights' file.
        """
        name, arguments = _description(folder, cls.role)
        description, weights = _files(folder, cls.role)
        if name != cls.__name__:
            raise InputError(f"{description} describes a {name}, not a {cls.__name__}.")

        def build() -> Half:
            try:
                return cls(**arguments, **modules)
            except Exception as error:  # with arguments of a stranger, any
                raise InputError(f"{description} does not say what a {name} is made of ({error}).") from error

        with refused_as(f"{weights} does not hold the weights of the {name} in {description}."):
            shapes = _shapes(weights)
            with torch.device("meta"), _ZeroForUnknown(), _registering_at_most(REGISTERED * (len(shapes) + 1)):
                sketch = build()
            if {key: value.shape for key, value in sketch.state_dict().items()} != shapes:
                raise ValueError("other shapes")
            values = load_file(weights)
            dtype = _commonest_dtype(values)
            with torch.device("cpu"), default_dtype(dtype if dtype.itemsize > 2 else torch.float32):
                half = build()
            _give_dtypes(half, values, dtype)
            half.load_state_dict(values)
        return half.eval()


def load_pair(folder: str | Path) -> tuple[Half, Half]:
    """The model and the guide that were saved in ``folder``, of whatever classes, on the CPU and in evaluation mode.

    The classes are found by their names, so that no file says what code to run; yours must have been imported. A guide
    whose constructor has an argument ``model`` is given the model. Of a folder of runs the newest that holds a pair is
    taken, and told on stderr.
    """
    importlib.import_module("guides")  # so that its classes are known; at the top it would be a circle
    with named_in_utf8(newest_run(folder, PAIR)) as folder:
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
    otherwise = f"{description} is not a description of a {role}."
    try:
        described = read_json(description, otherwise)
    except OSError as error:
        raise InputError(f"{description} cannot be read ({error.strerror}).") from error
    match described:
        case {"class": str(name), "arguments": dict(arguments)}:
            return name, arguments
    raise InputError(otherwise)


def _shapes(weights: Path) -> dict[str, torch.Size]:
    """The shapes of the tensors in a safetensors file, whose bytes are there: the format's reader compares them."""
    if not weights.is_file():
        raise FileNotFoundError(weights)
    with safe_open(weights, "pt") as file:
        return {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping


def _commonest_dtype(values: Mapping[str, Tensor]) -> torch.dtype:
    """That of most floating-point tensors; torch's own default where there are none."""
    found = Counter(value.dtype for value in values.values() if value.dtype in FLOATING)
    return found.most_common(1)[0][0] if found else torch.float32


def _give_dtypes(half: Half, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Convert floating-point tensors where they are, so that whoever shares them still does.

    Those that are saved get the dtype of their values, the other buffers ``dtype`` where that has 16 bits.
    """
    for tensor in half.buffers() if dtype.itemsize == 2 else ():
        if tensor.dtype in FLOATING:
            tensor.data = tensor.data.to(dtype)
    for key, tensor in half.state_dict(keep_vars=True).items():
        if (dtype := values[key].dtype) != tensor.dtype:
            if not {dtype, tensor.dtype} <= set(FLOATING):
                raise ValueError(f"{key} is of another dtype")
            tensor.data = tensor.data.to(dtype)


class _ZeroForUnknown(TorchFunctionMode):
    """Reads 0 from tensors on the meta device, which have no values: networks of others look at what they keep."""

    READING = (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.READING and args[0].is_meta:
            return function(torch.zeros((), dtype=args[0].dtype, device="cpu"))
        return function(*args, **(kwargs or {}))


@contextmanager
def _registering_at_most(number: int) -> Iterator[None]:
    """Let modules within register so many parameters: the layers of a made-up description could have no end."""
    registered = itertools.count(1)

    def count(*_) -> None:
        if next(registered) > number:
            raise ValueError("it has more layers than there are weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def count_parameters(*modules: torch.nn.Module) -> int:
    """How many numbers the modules learn."""
    return sum(p.numel() for module in modules for p in module.parameters())
